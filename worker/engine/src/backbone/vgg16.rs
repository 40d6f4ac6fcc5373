//! VGG-16 (Simonyan and Zisserman, 2014), with torchvision's names.

use super::{Backbone, vgg::build};

pub(super) const ENTRY: Backbone = Backbone {
    name: "vgg16",
    doc: "VGG-16, 138 million parameters, 4096 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "classifier.6",
    timm: &["vgg16"],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b, [2, 2, 3, 3, 3]),
};
