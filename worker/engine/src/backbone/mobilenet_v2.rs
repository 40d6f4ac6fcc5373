//! MobileNetV2 1.0 (Sandler et al., 2018), with torchvision's names; padding symmetric or "SAME".

use super::{Backbone, Same, Unit, conv_norm};
use crate::nn::{Act, Builder, GlobalAvgPool, Residual, Sequential, Shortcut};

pub(super) const ENTRY: Backbone = Backbone {
    name: "mobilenet_v2",
    doc: "MobileNetV2 1.0, 2.2 million parameters, 1280 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "classifier.1",
    timm: &["mobilenetv2_100"],
    activation: "relu6",
    blocks: false,
    build,
};

/// Expansion, channels, repeats, first stride: table 2 of the paper.
const BLOCKS: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let stem = conv_norm(
        Sequential::default(),
        b.conv("features.0.0", (3, 32), 3, 2, same.or(1)),
        b.norm("features.0.1", 32).act(Act::Relu6),
    );
    let mut units = vec![Unit::of("features.0", stem)];
    let mut cin = 32;
    for (expand, cout, repeats, first) in BLOCKS {
        for i in 0..repeats {
            let stride = if i == 0 { first } else { 1 };
            let name = format!("features.{}", units.len());
            let body = block(b, &name, (cin, cout), expand, stride, same);
            units.push(if stride == 1 && cin == cout {
                Unit::new(name, Residual { body, shortcut: Shortcut::Identity, act: Act::None })
            } else {
                Unit::of(name, body)
            });
            cin = cout;
        }
    }
    let last = conv_norm(
        Sequential::default(),
        b.conv("features.18.0", (320, 1280), 1, 1, same.or(0)),
        b.norm("features.18.1", 1280).act(Act::Relu6),
    );
    units.push(Unit::of("features.18", last).joined());
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 1280)
}

fn block(b: &mut Builder, name: &str, io: (usize, usize), expand: usize, stride: usize, same: Same) -> Sequential {
    let (cin, cout) = io;
    let hidden = cin * expand;
    let mut body = Sequential::default();
    let mut at = 0;
    if expand > 1 {
        let conv = b.conv(&format!("{name}.conv.0.0"), (cin, hidden), 1, 1, same.or(0));
        body = conv_norm(body, conv, b.norm(&format!("{name}.conv.0.1"), hidden).act(Act::Relu6));
        at = 1;
    }
    let depthwise = b.depthwise(&format!("{name}.conv.{at}.0"), hidden, 3, stride, same.or(1));
    body = conv_norm(body, depthwise, b.norm(&format!("{name}.conv.{at}.1"), hidden).act(Act::Relu6));
    let project = b.conv(&format!("{name}.conv.{}", at + 1), (hidden, cout), 1, 1, same.or(0));
    conv_norm(body, project, b.norm(&format!("{name}.conv.{}", at + 2), cout))
}
