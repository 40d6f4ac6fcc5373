//! VGG-19 (Simonyan and Zisserman, 2014), with torchvision's names.

use super::{Backbone, vgg::build};

pub(super) const ENTRY: Backbone = Backbone {
    name: "vgg19",
    doc: "VGG-19, 144 million parameters, 4096 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "classifier.6",
    timm: &["vgg19"],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b, [2, 2, 4, 4, 4]),
};
