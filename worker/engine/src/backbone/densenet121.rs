//! DenseNet-121 (Huang et al., 2017), with torchvision's names. Keras' is the same network with another
//! `batch_norm_eps`, 1.001e-5.

use super::{Backbone, Same, Unit, conv_norm};
use crate::nn::{Act, AvgPool, Builder, GlobalAvgPool, Graph, MaxPool, Padding, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "densenet121",
    doc: "DenseNet-121, 8 million parameters, 1024 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "classifier",
    timm: &["densenet121"],
    activation: "relu",
    blocks: false,
    build,
};

/// Channels that each layer adds.
const GROWTH: usize = 32;

/// Layers of the four blocks.
const DEPTHS: [usize; 4] = [6, 12, 24, 16];

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let conv = b.conv("features.conv0", (3, 64), 7, 2, same.or(3));
    let stem = conv_norm(Sequential::default(), conv, b.norm("features.norm0", 64).act(Act::Relu));
    let stem = stem.with(MaxPool { k: 3, stride: 2, pad: 1 });
    let mut units = vec![Unit::of("stem", stem)];
    let mut c = 64;
    for (block, depth) in DEPTHS.into_iter().enumerate() {
        for layer in 0..depth {
            let name = format!("features.denseblock{}.denselayer{}", block + 1, layer + 1);
            let layer = dense_layer(b, &name, c, same);
            units.push(Unit::new(name, layer));
            c += GROWTH;
        }
        if block + 1 < DEPTHS.len() {
            let name = format!("features.transition{}", block + 1);
            let layer = Sequential::default()
                .with(b.norm(&format!("{name}.norm"), c).act(Act::Relu))
                .with(b.conv(&format!("{name}.conv"), (c, c / 2), 1, 1, same.or(0)))
                .with(AvgPool::Sliding { k: 2, stride: 2, pad: Padding::Symmetric(0), counts_border: true });
            units.push(Unit::of(name, layer).joined());
            c /= 2;
        }
    }
    units.push(Unit::new("features.norm5", b.norm("features.norm5", c).act(Act::Relu)).joined());
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, c)
}

/// The input, and beside it what two convolutions make of it.
fn dense_layer(b: &mut Builder, name: &str, c: usize, same: Same) -> Graph {
    let width = 4 * GROWTH;
    let body = Sequential::default()
        .with(b.norm(&format!("{name}.norm1"), c).act(Act::Relu))
        .with(b.conv(&format!("{name}.conv1"), (c, width), 1, 1, same.or(0)))
        .with(b.norm(&format!("{name}.norm2"), width).act(Act::Relu))
        .with(b.conv(&format!("{name}.conv2"), (width, GROWTH), 3, 1, same.or(1)));
    let mut g = Graph::default();
    let new = g.layer(Graph::INPUT, body);
    g.concat(&[Graph::INPUT, new]);
    g
}
