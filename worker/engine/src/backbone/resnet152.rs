//! ResNet-152 (He et al., 2015), with torchvision's names.

use super::{
    Backbone,
    resnet::{Block, imagenet},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet152",
    doc: "ResNet-152, 60 million parameters, 2048 features; ImageNet weights at 224 pixels",
    input: 224,
    classifier: "fc",
    timm: &["resnet152"],
    activation: "relu",
    blocks: false,
    build: |b, same| imagenet(b, same, Block::Bottleneck, [3, 8, 36, 3]),
};
