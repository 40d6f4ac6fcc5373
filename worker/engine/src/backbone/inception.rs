//! What the Inception networks are made of (Szegedy et al., 2015): convolutions with a batch-norm and a rectifier, in branches
//! that are joined by channels.

use super::Unit;
use crate::nn::{Act, Builder, ConvSpec, Graph, MaxPool, Padding, Sequential, Value};

/// What every branch of a block begins with.
pub(super) const IN: Value = Graph::INPUT;

/// Half the size, by the largest of 3x3.
pub(super) const HALVE: MaxPool = MaxPool { k: 3, stride: 2, pad: 0 };

/// What batch-norms add to a variance in these networks.
const EPS: f32 = 1e-3;

/// A convolution: outputs, kernel (height, width), stride, and zeros on each side.
#[derive(Clone, Copy)]
pub(super) struct Conv {
    pub cout: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    pub pad: (usize, usize),
}

/// `k`x`k` at stride 1, which keeps the size.
pub(super) const fn square(cout: usize, k: usize) -> Conv {
    wide(cout, k, k)
}

/// `kh`x`kw` at stride 1, which keeps the size.
pub(super) const fn wide(cout: usize, kh: usize, kw: usize) -> Conv {
    Conv { cout, kernel: (kh, kw), stride: 1, pad: (kh / 2, kw / 2) }
}

/// 3x3 without zeros around the image.
pub(super) const fn valid(cout: usize, stride: usize) -> Conv {
    Conv { cout, kernel: (3, 3), stride, pad: (0, 0) }
}

/// A convolution `name.conv`, a batch-norm `name.bn` and a rectifier.
pub(super) fn conv(b: &mut Builder, name: &str, cin: usize, conv: Conv) -> Sequential {
    let Conv { cout, kernel, stride, pad } = conv;
    let pad = (Padding::Symmetric(pad.0), Padding::Symmetric(pad.1));
    let spec = ConvSpec { cin, cout, kernel, stride, pad, bias: false };
    Sequential::default()
        .with(b.conv_spec(&format!("{name}.conv"), spec))
        .with(b.norm_eps(&format!("{name}.bn"), cout, EPS).act(Act::Relu))
}

/// The five convolutions that both networks begin with, 192 channels at an eighth of the size.
pub(super) fn stem(b: &mut Builder, names: [&str; 5]) -> Vec<Unit> {
    // Whether the image is halved behind it, and whether it begins a block.
    let convs = [
        (3, valid(32, 2), false, true),
        (32, valid(32, 1), false, false),
        (32, square(64, 3), true, false),
        (64, square(80, 1), false, true),
        (80, valid(192, 1), true, false),
    ];
    let unit = |(name, (cin, spec, halves, begins)): (&str, (usize, Conv, bool, bool))| {
        let layer = conv(b, name, cin, spec);
        let unit = Unit::of(name, if halves { layer.with(HALVE) } else { layer });
        if begins { unit } else { unit.joined() }
    };
    names.into_iter().zip(convs).map(unit).collect()
}

/// A block while it is being built: a graph whose layers' names begin alike.
pub(super) struct Block<'a> {
    pub b: &'a mut Builder,
    pub name: String,
    pub graph: Graph,
}

impl<'a> Block<'a> {
    pub(super) fn new(b: &'a mut Builder, name: &str) -> Self {
        Self { b, name: name.into(), graph: Graph::default() }
    }

    /// Convolutions one after the other, on `cin` channels of `from`.
    pub(super) fn line(&mut self, from: Value, mut cin: usize, convs: &[(&str, Conv)]) -> Value {
        let mut at = from;
        for (name, spec) in convs {
            let layer = conv(self.b, &format!("{}.{name}", self.name), cin, *spec);
            at = self.graph.layer(at, layer);
            cin = spec.cout;
        }
        at
    }
}
