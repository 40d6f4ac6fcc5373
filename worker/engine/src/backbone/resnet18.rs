//! ResNet-18 (He et al., 2015), with torchvision's names.

use super::{Backbone, Same, Unit, conv_norm, resnet::basic_block};
use crate::nn::{Builder, GlobalAvgPool, MaxPool, Relu, Sequential, Shortcut};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet18",
    doc: "ResNet-18, 11 million parameters, 512 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    activation: "relu",
    build,
};

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let stem = conv_norm(Sequential::default(), b.conv("conv1", (3, 64), 7, 2, same.or(3)), b.norm("bn1", 64));
    let stem = stem.with(Relu).with(MaxPool { k: 3, stride: 2, pad: 1 });
    let mut units = vec![Unit { name: "stem".into(), layer: stem }];
    let mut cin = 64;
    for (layer, cout) in [64, 128, 256, 512].into_iter().enumerate() {
        for block in 0..2 {
            let name = format!("layer{}.{block}", layer + 1);
            let stride = if block == 0 && layer > 0 { 2 } else { 1 };
            let shortcut = if stride == 1 && cin == cout {
                Shortcut::Identity
            } else {
                let conv = b.conv(&format!("{name}.downsample.0"), (cin, cout), 1, stride, same.or(0));
                let norm = b.norm(&format!("{name}.downsample.1"), cout);
                Shortcut::Layers(conv_norm(Sequential::default(), conv, norm))
            };
            let layer = basic_block(b, &name, (cin, cout), stride, same, shortcut);
            units.push(Unit { name, layer });
            cin = cout;
        }
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 512)
}
