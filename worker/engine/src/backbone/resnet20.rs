//! ResNet-20 for 32x32 images (He et al., 2015, section 4.2), option-A shortcuts.

use super::{Backbone, Same, Unit, conv_norm, resnet::basic_block};
use crate::nn::{Act, Builder, GlobalAvgPool, Sequential, Shortcut};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet20",
    doc: "ResNet-20 for 32-pixel images, 0.27 million parameters, 64 features; CIFAR weights",
    input: 32,
    classifier: "linear",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

fn build(b: &mut Builder, same: Same) -> (Vec<Unit>, usize) {
    let stem =
        conv_norm(Sequential::default(), b.conv("conv1", (3, 16), 3, 1, same.or(1)), b.norm("bn1", 16).act(Act::Relu));
    let mut units = vec![Unit { name: "stem".into(), layer: stem }];
    let mut cin = 16;
    for (layer, cout) in [16, 32, 64].into_iter().enumerate() {
        for block in 0..3 {
            let name = format!("layer{}.{block}", layer + 1);
            let (stride, shortcut) =
                if cin == cout { (1, Shortcut::Identity) } else { (2, Shortcut::Subsample { channels: cout }) };
            let layer = basic_block(b, &name, (cin, cout), stride, same, shortcut);
            units.push(Unit { name, layer });
            cin = cout;
        }
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 64)
}
