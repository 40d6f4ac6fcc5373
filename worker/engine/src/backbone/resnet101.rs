//! ResNet-101 (He et al., 2015), with torchvision's names.

use super::{
    Backbone,
    resnet::{Block, imagenet},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet101",
    doc: "ResNet-101, 44 million parameters, 2048 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    timm: &["resnet101"],
    activation: "relu",
    blocks: false,
    build: |b, same| imagenet(b, same, Block::Bottleneck, [3, 4, 23, 3]),
};
