//! ResNet-18 (He et al., 2015), with torchvision's names.

use super::{
    Backbone,
    resnet::{Block, imagenet},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet18",
    doc: "ResNet-18, 11 million parameters, 512 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    timm: &["resnet18"],
    activation: "relu",
    blocks: false,
    build: |b, same| imagenet(b, same, Block::Basic, [2, 2, 2, 2]),
};
