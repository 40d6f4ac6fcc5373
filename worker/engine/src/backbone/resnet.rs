//! The basic block that ResNet-18 and the CIFAR ResNets share (He et al., 2015).

use super::{Same, conv_norm};
use crate::nn::{Builder, Relu, Residual, Sequential, Shortcut};

/// Two 3x3 convolutions and a sum, then a rectifier.
pub(super) fn basic_block(
    b: &mut Builder,
    name: &str,
    (cin, cout): (usize, usize),
    stride: usize,
    same: Same,
    shortcut: Shortcut,
) -> Sequential {
    let body = conv_norm(
        Sequential::default(),
        b.conv(&format!("{name}.conv1"), (cin, cout), 3, stride, same.or(1)),
        b.norm(&format!("{name}.bn1"), cout),
    )
    .with(Relu);
    let body = conv_norm(
        body,
        b.conv(&format!("{name}.conv2"), (cout, cout), 3, 1, same.or(1)),
        b.norm(&format!("{name}.bn2"), cout),
    );
    Sequential::default().with(Residual { body, shortcut }).with(Relu)
}
