//! The convolutions of [`lenet`](super::lenet) alone: features are where something was seen, and the head is the first layer
//! that mixes places. Domains are told apart there in DANN's own network for digits (Ganin et al., 2016, figure 4a).

use super::{Backbone, Same, Unit, lenet};
use crate::nn::{Builder, FlattenChannels};

pub(super) const ENTRY: Backbone = Backbone {
    name: "lenet_conv",
    doc: "two convolutions for digits of 28 pixels, 27 thousand parameters, 800 features, no batch-norm",
    input: 28,
    classifier: "fc",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, features) = lenet::convolutions(b);
    if let Some(last) = units.last_mut() {
        last.layer = std::mem::take(&mut last.layer).with(FlattenChannels);
    }
    (units, features)
}
