//! LeNet for digits (LeCun et al., 1998), of the widths of Caffe's `lenet.prototxt`, with a ReLU after each convolution,
//! where Caffe's has none, as studies of domain adaptation use it: two 5x5 convolutions with poolings, and a dense layer.
//! It has no batch-norm, whose statistics would be those of one domain.

use super::{Backbone, Same, Unit};
use crate::nn::{Builder, ConvSpec, FlattenChannels, MaxPool, Padding, Relu, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "lenet",
    doc: "two convolutions and a dense layer for digits of 28 pixels, 0.4 million parameters, 500 features, no batch-norm",
    input: 28,
    classifier: "fc2",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

const KERNEL: usize = 5;
const FEATURES: usize = 500;

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, maps) = convolutions(b);
    let dense = b.linear("fc1", (maps, FEATURES));
    units.push(Unit::of("fc1", Sequential::default().with(FlattenChannels).with(dense).with(Relu)));
    (units, FEATURES)
}

/// The two convolutions with their poolings, and how many numbers come out of the second.
pub(super) fn convolutions(b: &mut Builder) -> (Vec<Unit>, usize) {
    let pad = (Padding::Symmetric(0), Padding::Symmetric(0));
    let (mut cin, mut side) = (3, b.given.side);
    let mut units = Vec::new();
    for (name, cout) in [("conv1", 20), ("conv2", 50)] {
        let spec = ConvSpec { cin, cout, kernel: (KERNEL, KERNEL), stride: 1, pad, bias: true };
        let layer = Sequential::default().with(b.conv_spec(name, spec)).with(Relu);
        units.push(Unit::of(name, layer.with(MaxPool { k: 2, stride: 2, pad: 0 })));
        (cin, side) = (cout, side.saturating_sub(KERNEL - 1) / 2);
    }
    (units, cin * side * side)
}
