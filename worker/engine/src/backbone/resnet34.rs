//! ResNet-34 (He et al., 2015), with torchvision's names.

use super::{
    Backbone,
    resnet::{Block, imagenet},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet34",
    doc: "ResNet-34, 22 million parameters, 512 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    timm: &["resnet34"],
    activation: "relu",
    blocks: false,
    build: |b, same| imagenet(b, same, Block::Basic, [3, 4, 6, 3]),
};
