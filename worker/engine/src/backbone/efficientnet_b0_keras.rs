//! EfficientNet-B0 as `keras.applications` builds it: "SAME" padding, an eps of 1e-3, and the input is normalised inside the
//! network. Its tensors bear the names of Keras' layers.
//!
//! Keras' first layer divides by 255, which is the preprocessing `unit`; the means and variances that follow are part of
//! the weights. Published weights keep standard deviations where variances should be, so Keras divides by their root
//! once more, and so does this network.

use super::{
    Backbone, Same, Unit,
    efficientnet::{Names, Variant},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "efficientnet_b0_keras",
    doc: "EfficientNet-B0 as in Keras, 5 million parameters, 1280 features; ImageNet weights at 224 pixels, `preprocess = \"unit\"`",
    input: 224,
    classifier: "predictions",
    timm: &[],
    activation: "silu",
    blocks: false,
    build: |b, _| {
        let roots = DEVIATIONS.map(|d| 1.0 / d.sqrt());
        let normalize = b.normalize("normalization", &[0.485, 0.456, 0.406], &DEVIATIONS, &roots);
        KERAS.build(b, vec![Unit::new("normalization", normalize)])
    },
};

/// Standard deviations of ImageNet's channels.
pub(crate) const DEVIATIONS: [f32; 3] = [0.229, 0.224, 0.225];

const KERAS: Variant = Variant {
    stem: ["stem_conv", "stem_bn"],
    block: |stage, index, _| {
        let unit = format!("block{}{}", stage + 1, ["a", "b", "c", "d"][index]);
        let of = |names: [&str; 2]| names.map(|name| format!("{unit}_{name}"));
        Names {
            expand: of(["expand_conv", "expand_bn"]),
            depthwise: of(["dwconv", "bn"]),
            gate: of(["se_reduce", "se_expand"]),
            project: of(["project_conv", "project_bn"]),
            unit,
        }
    },
    top: ["top_conv", "top_bn"],
    eps: Some(1e-3),
    same: Same(true),
};
