//! EfficientNet-B0 (Tan and Le, 2019), with torchvision's names, padding and normalisation.

use super::{
    Backbone, Same,
    efficientnet::{Names, Variant},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "efficientnet_b0",
    doc: "EfficientNet-B0 as in torchvision, 5 million parameters, 1280 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "classifier.1",
    timm: &["efficientnet_b0", "tf_efficientnet_b0"],
    activation: "silu",
    blocks: false,
    build: |b, same| Variant { same, ..TORCHVISION }.build(b, Vec::new()),
};

const TORCHVISION: Variant = Variant {
    stem: ["features.0.0", "features.0.1"],
    block: |stage, index, expands| {
        let unit = format!("features.{}.{index}", stage + 1);
        // A block that does not expand has one layer less in its list.
        let first = usize::from(expands);
        let at = |i: usize| [0, 1].map(|j| format!("{unit}.block.{i}.{j}"));
        let gate = [1, 2].map(|j| format!("{unit}.block.{}.fc{j}", first + 1));
        Names { expand: at(0), depthwise: at(first), gate, project: at(first + 2), unit }
    },
    top: ["features.8.0", "features.8.1"],
    eps: None,
    same: Same(false),
};
