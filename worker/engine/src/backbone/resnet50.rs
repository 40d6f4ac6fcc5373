//! ResNet-50 (He et al., 2015), with torchvision's names.

use super::{
    Backbone,
    resnet::{Block, imagenet},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet50",
    doc: "ResNet-50, 25 million parameters, 2048 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    timm: &["resnet50"],
    activation: "relu",
    blocks: false,
    build: |b, same| imagenet(b, same, Block::Bottleneck, [3, 4, 6, 3]),
};
