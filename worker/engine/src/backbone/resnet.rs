//! Blocks and layout that residual networks share (He et al., 2015), with torchvision's names. The stride of a bottleneck
//! is in its 3x3 convolution, as there (the "v1.5" that its weights are for), not in the first 1x1 as in Keras.

use super::{Same, Unit, conv_norm};
use crate::nn::{Act, Builder, GlobalAvgPool, MaxPool, Residual, Sequential, Shortcut};

/// Convolutions `((inputs, outputs), k, stride)` with batch-norms, rectified in between, and a sum, then a rectifier.
fn block(
    b: &mut Builder,
    name: &str,
    layers: &[((usize, usize), usize, usize)],
    same: Same,
    shortcut: Shortcut,
) -> Sequential {
    let mut body = Sequential::default();
    for (i, (shape, k, stride)) in layers.iter().enumerate() {
        let number = i + 1;
        let conv = b.conv(&format!("{name}.conv{number}"), *shape, *k, *stride, same.or(k / 2));
        // The last one is rectified after the sum.
        let act = if number < layers.len() { Act::Relu } else { Act::None };
        body = conv_norm(body, conv, b.norm(&format!("{name}.bn{number}"), shape.1).act(act));
    }
    Sequential::default().with(Residual { body, shortcut, act: Act::Relu })
}

/// Two 3x3 convolutions.
fn basic_block(
    b: &mut Builder,
    name: &str,
    (cin, cout): (usize, usize),
    stride: usize,
    same: Same,
    shortcut: Shortcut,
) -> Sequential {
    block(b, name, &[((cin, cout), 3, stride), ((cout, cout), 3, 1)], same, shortcut)
}

/// A 1x1 convolution down to a quarter of the outputs, a 3x3 and a 1x1 back up.
fn bottleneck(
    b: &mut Builder,
    name: &str,
    (cin, cout): (usize, usize),
    stride: usize,
    same: Same,
    shortcut: Shortcut,
) -> Sequential {
    let width = cout / 4;
    block(b, name, &[((cin, width), 1, 1), ((width, width), 3, stride), ((width, cout), 1, 1)], same, shortcut)
}

/// What the layers of a network are made of.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Block {
    Basic,
    Bottleneck,
}

/// A network for ImageNet: a 7x7 stem, four layers of so many blocks, and the mean.
pub(super) fn imagenet(b: &mut Builder, same: Same, block: Block, depths: [usize; 4]) -> (Vec<Unit>, usize) {
    let stem =
        conv_norm(Sequential::default(), b.conv("conv1", (3, 64), 7, 2, same.or(3)), b.norm("bn1", 64).act(Act::Relu));
    let stem = stem.with(MaxPool { k: 3, stride: 2, pad: 1 });
    let mut units = vec![Unit::of("stem", stem)];
    let mut cin = 64;
    for (layer, depth) in depths.into_iter().enumerate() {
        let cout = (64 << layer) * if block == Block::Bottleneck { 4 } else { 1 };
        for index in 0..depth {
            let name = format!("layer{}.{index}", layer + 1);
            let stride = if index == 0 && layer > 0 { 2 } else { 1 };
            let shortcut = if stride == 1 && cin == cout {
                Shortcut::Identity
            } else {
                let conv = b.conv(&format!("{name}.downsample.0"), (cin, cout), 1, stride, same.or(0));
                let norm = b.norm(&format!("{name}.downsample.1"), cout);
                Shortcut::Layers(conv_norm(Sequential::default(), conv, norm))
            };
            let build = if block == Block::Bottleneck { bottleneck } else { basic_block };
            let layer = build(b, &name, (cin, cout), stride, same, shortcut);
            units.push(Unit::of(name, layer));
            cin = cout;
        }
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, cin)
}

/// A network for 32-pixel images: a 3x3 stem, three layers of so many basic blocks with shortcuts that have no parameters
/// (option A), and the mean (He et al., 2015, section 4.2).
pub(super) fn cifar(b: &mut Builder, same: Same, depth: usize, widths: [usize; 3]) -> (Vec<Unit>, usize) {
    let [mut cin, _, features] = widths;
    let (conv, norm) = (b.conv("conv1", (3, cin), 3, 1, same.or(1)), b.norm("bn1", cin));
    let stem = conv_norm(Sequential::default(), conv, norm.act(Act::Relu));
    let mut units = vec![Unit::of("stem", stem)];
    for (layer, cout) in widths.into_iter().enumerate() {
        for block in 0..depth {
            let name = format!("layer{}.{block}", layer + 1);
            let (stride, shortcut) =
                if cin == cout { (1, Shortcut::Identity) } else { (2, Shortcut::Subsample { channels: cout }) };
            let layer = basic_block(b, &name, (cin, cout), stride, same, shortcut);
            units.push(Unit::of(name, layer));
            cin = cout;
        }
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, features)
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::HeadSection;

    use super::super::{ALL, Network};
    use crate::weights::Contract;

    /// By hand: kernels, batch-norms, and a classifier of ten.
    #[test]
    fn a_student_at_half_width_has_a_sixth_of_the_parameters() {
        let contract = Contract::named("torch", 32, None).unwrap();
        let parameters = |name: &str| {
            let backbone = ALL.iter().find(|b| b.name == name).unwrap();
            Network::build(backbone, &contract, &HeadSection::default(), 10, 1).initial.values.len()
        };
        let kernels = 9 * (3 * 8 + 4 * 8 * 8 + 8 * 16 + 3 * 16 * 16 + 16 * 32 + 3 * 32 * 32);
        let norms = 2 * (5 * 8 + 4 * 16 + 4 * 32);
        assert_eq!(parameters("resnet14_half"), kernels + norms + 330);
        assert_eq!(parameters("resnet20"), 269_722);
        assert!(4 * parameters("resnet14_half") < parameters("resnet20"));
    }

    /// Parameters of torchvision's models, as their documentation gives them, and names of their state dicts.
    #[test]
    fn residual_networks_have_torchvisions_tensors() {
        for (name, parameters, last, shape) in [
            ("resnet18", 11_689_512, "layer4.1.conv2.weight", [512, 512, 3, 3]),
            ("resnet34", 21_797_672, "layer4.2.conv2.weight", [512, 512, 3, 3]),
            ("resnet50", 25_557_032, "layer4.2.conv3.weight", [2048, 512, 1, 1]),
            ("resnet101", 44_549_160, "layer3.22.conv3.weight", [1024, 256, 1, 1]),
            ("resnet152", 60_192_808, "layer3.35.conv3.weight", [1024, 256, 1, 1]),
        ] {
            let backbone = ALL.iter().find(|b| b.name == name).unwrap();
            let contract = Contract::named("torch", 224, None).unwrap();
            let net = Network::build(backbone, &contract, &HeadSection::default(), 1000, 1);
            assert_eq!(net.initial.values.len(), parameters, "{name}");
            let found = net.initial.params.iter().find(|p| p.name == last).unwrap_or_else(|| panic!("{name}: {last}"));
            assert_eq!(found.shape, shape, "{name}");
            let strided = net.initial.params.iter().find(|p| p.name == "layer2.0.downsample.0.weight").unwrap();
            assert_eq!(strided.shape[2..], [1, 1], "{name}");
        }
    }
}
