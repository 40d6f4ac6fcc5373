//! ResNet-50 as `keras.applications` builds it: the stride of a block is in its first 1x1 convolution (He et al., 2015, as
//! published), convolutions have biases, batch-norms an eps of 1.001e-5. Its tensors bear the names of Keras' layers.

use super::{Backbone, Unit, conv_norm};
use crate::nn::{Act, Builder, ConvSpec, GlobalAvgPool, MaxPool, Padding, Residual, Sequential, Shortcut};

pub(super) const ENTRY: Backbone = Backbone {
    name: "resnet50_keras",
    doc: "ResNet-50 as in Keras, 25 million parameters, 2048 features; ImageNet weights at 224 pixels, blue first",
    input: 224,
    classifier: "predictions",
    timm: &[],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b),
};

const EPS: f32 = 1.001e-5;

/// Blocks of the four stages.
const DEPTHS: [usize; 4] = [3, 4, 6, 3];

fn build(b: &mut Builder) -> (Vec<Unit>, usize) {
    let stem = conv(b, "conv1", (3, 64), (7, 2), Act::Relu).with(MaxPool { k: 3, stride: 2, pad: 1 });
    let mut units = vec![Unit::of("stem", stem)];
    let mut cin = 64;
    for (stage, depth) in DEPTHS.into_iter().enumerate() {
        let width = 64 << stage;
        for index in 1..=depth {
            let name = format!("conv{}_block{index}", stage + 2);
            let stride = if index == 1 && stage > 0 { 2 } else { 1 };
            let shortcut = if index == 1 {
                Shortcut::Layers(conv(b, &format!("{name}_0"), (cin, 4 * width), (1, stride), Act::None))
            } else {
                Shortcut::Identity
            };
            let body = Sequential::default()
                .with(conv(b, &format!("{name}_1"), (cin, width), (1, stride), Act::Relu))
                .with(conv(b, &format!("{name}_2"), (width, width), (3, 1), Act::Relu))
                .with(conv(b, &format!("{name}_3"), (width, 4 * width), (1, 1), Act::None));
            units.push(Unit::new(name, Residual { body, shortcut, act: Act::Relu }));
            cin = 4 * width;
        }
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, cin)
}

/// A convolution with a bias, and its batch-norm. Where it has a stride, Keras pads by layers of zeros, both sides alike.
fn conv(b: &mut Builder, name: &str, (cin, cout): (usize, usize), (k, stride): (usize, usize), act: Act) -> Sequential {
    let pad = Padding::Symmetric(k / 2);
    let spec = ConvSpec { cin, cout, kernel: (k, k), stride, pad: (pad, pad), bias: true };
    let conv = b.conv_spec(&format!("{name}_conv"), spec);
    conv_norm(Sequential::default(), conv, b.norm_eps(&format!("{name}_bn"), cout, EPS).act(act))
}
