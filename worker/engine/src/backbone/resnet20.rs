//! ResNet-20 for 32x32 images (He et al., 2015, section 4.2), option-A shortcuts.

use super::{Backbone, resnet::cifar};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet20",
    doc: "ResNet-20 for 32-pixel images, 0.27 million parameters, 64 features; CIFAR weights",
    input: 32,
    classifier: "linear",
    timm: &[],
    activation: "relu",
    blocks: false,
    build: |b, same| cifar(b, same, 3, [16, 32, 64]),
};
