//! What lies between the layers of networks of images in bf16, and what memory a pass over them takes.

use tl_engine::{
    backbone::{Network, find},
    nn::{
        Act, Activation, BufferId, Builder, DropPath, DropoutDraw, Gate, GlobalAvgPool, Gradients, Layer, Layout,
        MaxPool, Padding, ParamId, Pass, Residual, Sequential, Shortcut, Store, Tape,
    },
    num::rng::Philox,
    weights::Contract,
};
use tl_proto::spec::{HeadSection, Precision};

use crate::{
    image_layers::{is_half, there},
    numbers, shared,
};

/// A network of each family whose layers lie in a line, and the side of small images for it.
const NETWORKS: [(&str, u32); 5] =
    [("small_cnn", 10), ("resnet18", 16), ("resnet20", 16), ("mobilenet_v2", 16), ("efficientnet_b0", 16)];

/// The batch-norms of layers, by their means.
fn means<'a>(layers: impl Iterator<Item = &'a Sequential>) -> Vec<BufferId> {
    let mut norms = Vec::new();
    layers.for_each(|layer| layer.norms(&mut norms));
    norms.into_iter().map(|(mean, _)| mean).collect()
}

#[test]
fn between_the_units_of_networks_of_images_nothing_is_wider_than_bf16() {
    if shared().is_none() {
        return;
    }
    let draws = [5, 6];
    let dropout = Some(DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws });
    for (name, side) in NETWORKS {
        let contract = Contract::named("torch", side, Some("symmetric")).unwrap();
        let network = Network::build(find(name).unwrap(), &contract, &HeadSection::default(), 3, 1);
        let (units, store) = (network.units, Store { precision: Precision::Bf16, ..network.initial });
        let params: Vec<ParamId> = (0..store.params.len()).map(ParamId).collect();
        let (means, shape) = (means(units.iter().map(|unit| &unit.layer)), [2, side as usize, side as usize, 3]);
        for means in [&[][..], &means[..]] {
            let layout = Layout::new(&store, &params, means);
            let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            let mut x = there(&numbers(1, shape.iter().product()), &shape);
            for unit in &units {
                x = unit.layer.forward(&x, &pass, &mut tape).unwrap();
                assert!(is_half(&x), "{name}: {} hands on f32", unit.name);
            }
            // As a loss has it.
            let mut dy = there(&numbers(77, x.count()), x.dims());
            for unit in units.iter().rev() {
                dy = unit.layer.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
                assert!(is_half(&dy), "{name}: {} hands back f32", unit.name);
            }
        }
    }
}

/// A convolution without a bias, its batch-norm and an activation.
fn conv(b: &mut Builder, io: (usize, usize), (k, stride): (usize, usize), act: Act) -> Sequential {
    let name = format!("layer{}", b.store.params.len());
    let layers = Sequential::default().with(b.conv(&format!("{name}.conv"), io, k, stride, Padding::Symmetric(k / 2)));
    layers.with(b.norm(&format!("{name}.norm"), io.1).act(act))
}

/// A stem, a pool and blocks with bottlenecks, as of ResNet-50. Windows of several pixels, which lie in memory where gradients of
/// bf16 weights are made, are over few channels there.
fn bottlenecks(b: &mut Builder) -> Sequential {
    let mut layers =
        Sequential::default().with(conv(b, (3, 16), (3, 2), Act::Relu)).with(MaxPool { k: 3, stride: 2, pad: 1 });
    for cin in [16, 32, 32, 32] {
        let convs = [((cin, 8), 1, Act::Relu), ((8, 8), 3, Act::Relu), ((8, 32), 1, Act::None)];
        let mut body = Sequential::default();
        for (io, k, act) in convs {
            body = body.with(conv(b, io, (k, 1), act));
        }
        let shortcut = match cin {
            32 => Shortcut::Identity,
            _ => Shortcut::Layers(conv(b, (cin, 32), (1, 1), Act::None)),
        };
        layers = layers.with(Residual { body, shortcut, act: Act::Relu });
    }
    layers.with(GlobalAvgPool)
}

/// A stem and inverted residual blocks, as of MobileNetV2; or with gates and stochastic depth, as of EfficientNet.
fn inverted(b: &mut Builder, act: Act, gated: bool) -> Sequential {
    let mut layers = conv(b, (3, 8), (3, 2), act);
    for site in 0..3 {
        let name = format!("wide{site}");
        let mut body = conv(b, (8, 48), (1, 1), act)
            .with(b.depthwise(&format!("{name}.conv"), 48, 3, 1, Padding::Symmetric(1)))
            .with(b.norm(&format!("{name}.norm"), 48).act(act));
        if gated {
            let gate = Sequential::default()
                .with(b.linear(&format!("{name}.reduce"), (48, 4)))
                .with(Activation(act))
                .with(b.linear(&format!("{name}.expand"), (4, 48)))
                .with(Activation(Act::Sigmoid));
            body = body.with(Gate { layers: gate });
        }
        body = body.with(conv(b, (48, 8), (1, 1), Act::None));
        if gated {
            body = body.with(DropPath { p: 0.2, site });
        }
        layers = layers.with(Residual { body, shortcut: Shortcut::Identity, act: Act::None });
    }
    layers.with(GlobalAvgPool)
}

#[test]
fn a_pass_in_bf16_takes_little_more_than_half_the_memory_of_one_in_f32() {
    if shared().is_none() {
        return;
    }
    type Make = fn(&mut Builder) -> Sequential;
    let makes: [(&str, Make); 3] = [
        ("bottlenecks", bottlenecks),
        ("inverted blocks", |b| inverted(b, Act::Relu6, false)),
        ("inverted blocks with gates", |b| inverted(b, Act::Silu, true)),
    ];
    let draws = [5, 6, 7, 8];
    let dropout = Some(DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws });
    for (name, make) in makes {
        let mut b = Builder::new(1);
        let layers = make(&mut b);
        let params: Vec<ParamId> = (0..b.store.params.len()).map(ParamId).collect();
        let layout = Layout::new(&b.store, &params, &means(std::iter::once(&layers)));
        let pass_of = |precision: Precision| {
            let (store, shape) = (Store { precision, ..b.store.clone() }, [4, 32, 32, 3]);
            let x = there(&numbers(1, shape.iter().product()), &shape);
            nvlib::fake::most(|| {
                let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
                let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
                let y = layers.forward(&x, &pass, &mut tape).unwrap();
                let dy = there(&numbers(77, y.count()), y.dims());
                assert!(layers.backward(&dy, &pass, &mut tape, &mut grads, false).unwrap().is_none());
            })
        };
        // What is made for whoever comes next, the first one of each has made.
        let [full, half] = [Precision::F32, Precision::Bf16].map(|precision| {
            pass_of(precision);
            pass_of(precision)
        });
        let (Some(full), Some(half)) = (full, half) else {
            eprintln!("left out: a real driver counts what all threads have");
            return;
        };
        assert!(half * 100 < full * 65, "{name}: {half} bytes in bf16, {full} in f32");
    }
}
