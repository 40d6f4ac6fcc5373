//! A small network for small images: four strided blocks, quick on a CPU.

use super::{Backbone, Same, Unit, conv_norm};
use crate::nn::{Act, Builder, GlobalAvgPool, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "small_cnn",
    doc: "a small network for images of about 32 pixels, 0.1 million parameters, 128 features",
    input: 32,
    classifier: "fc",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let mut cin = 3;
    let mut units = Vec::new();
    for (i, (cout, stride)) in [(16, 1), (32, 2), (64, 2), (128, 2)].into_iter().enumerate() {
        let name = format!("block{i}");
        let conv = b.conv(&format!("{name}.conv"), (cin, cout), 3, stride, same.or(1));
        let layer = conv_norm(Sequential::default(), conv, b.norm(&format!("{name}.norm"), cout).act(Act::Relu));
        units.push(Unit::of(name, layer));
        cin = cout;
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 128)
}
