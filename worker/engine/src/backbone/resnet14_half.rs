//! ResNet-14 for 32x32 images at half the width of ResNet-20: a student with a sixth of its parameters.

use super::{Backbone, resnet::cifar};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet14_half",
    doc: "ResNet-14 at half width for 32-pixel images, 0.04 million parameters, 32 features; a student of ResNet-20",
    input: 32,
    classifier: "linear",
    timm: &[],
    activation: "relu",
    blocks: false,
    build: |b, same| cifar(b, same, 2, [8, 16, 32]),
};
