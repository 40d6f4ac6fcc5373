//! The network of few-shot learning (Vinyals et al., 2016; Snell et al., 2017): four blocks of a 3x3 convolution with 64
//! channels, batch-norm, ReLU and a pooling of 2x2. What is left of the image are the features: 64 of 28 pixels, 1600 of 84.
//! The reference's convolutions have biases, which the batch-norms after them take away again; these have none.

use super::{Backbone, Same, Unit, conv_norm};
use crate::nn::{Act, Builder, FlattenChannels, MaxPool, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "conv4_64",
    doc: "four blocks of 64 channels for few-shot learning, 0.1 million parameters; 64 features of 28 pixels, 1600 of 84",
    input: 28,
    classifier: "fc",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

const BLOCKS: usize = 4;
const CHANNELS: usize = 64;

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let (mut cin, mut side) = (3, b.given.side);
    let mut units = Vec::new();
    for i in 0..BLOCKS {
        let name = format!("block{i}");
        let conv = b.conv(&format!("{name}.conv"), (cin, CHANNELS), 3, 1, same.or(1));
        let norm = b.norm(&format!("{name}.norm"), CHANNELS).act(Act::Relu);
        let layer = conv_norm(Sequential::default(), conv, norm).with(MaxPool { k: 2, stride: 2, pad: 0 });
        units.push(Unit::of(name, layer));
        (cin, side) = (CHANNELS, side / 2);
    }
    units.push(Unit::new("pool", FlattenChannels));
    (units, CHANNELS * side * side)
}
