//! What both variants of EfficientNet-B0 are made of (Tan and Le, 2019): inverted residual blocks with squeeze-and-excitation
//! and stochastic depth. They differ in names, padding, the eps of batch-norms and what lies before the first layer.

use super::{SITE, Same, Unit, conv_norm};
use crate::nn::{
    Act, Activation, BatchNorm, Builder, ConvSpec, DropPath, Gate, GlobalAvgPool, Padding, Residual, Sequential,
    Shortcut,
};

/// Expansion, kernel, first stride, channels, repeats: table 1 of the paper.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
];

/// Blocks of all stages.
const BLOCKS: usize = 16;

/// How likely the last block is left out of a training pass; the first one never is, and those between lie on a line.
const DROP: f32 = 0.2;

/// Names of a block's layers: two each for a convolution and its batch-norm, or for both steps of a gate.
pub(super) struct Names {
    pub unit: String,
    pub expand: [String; 2],
    pub depthwise: [String; 2],
    pub gate: [String; 2],
    pub project: [String; 2],
}

/// One of the two variants.
pub(super) struct Variant {
    /// Convolution and batch-norm of the stem.
    pub stem: [&'static str; 2],
    /// Names of block (stage, index in the stage, whether it expands), both counted from 0.
    pub block: fn(usize, usize, bool) -> Names,
    /// Convolution and batch-norm of the top.
    pub top: [&'static str; 2],
    /// What batch-norms add to a variance, where it is the network's own.
    pub eps: Option<f32>,
    /// How strided layers pad.
    pub same: Same,
}

impl Variant {
    fn norm(&self, b: &mut Builder, name: &str, c: usize, act: Act) -> BatchNorm {
        let norm = match self.eps {
            Some(eps) => b.norm_eps(name, c, eps),
            None => b.norm(name, c),
        };
        norm.act(act)
    }

    /// A convolution and its batch-norm.
    fn conv(
        &self,
        b: &mut Builder,
        names: [&str; 2],
        io: (usize, usize),
        (k, stride): (usize, usize),
        act: Act,
    ) -> Sequential {
        let conv = b.conv(names[0], io, k, stride, self.same.or(k / 2));
        conv_norm(Sequential::default(), conv, self.norm(b, names[1], io.1, act))
    }

    /// Appends the network to `units`.
    pub(super) fn build(&self, b: &mut Builder, mut units: Vec<Unit>) -> (Vec<Unit>, usize) {
        let stem = self.conv(b, self.stem, (3, 32), (3, 2), Act::Silu);
        units.push(Unit::of(self.stem[0], stem));
        let (mut cin, mut number) = (32, 0);
        for (stage, (expand, k, first, cout, repeats)) in STAGES.into_iter().enumerate() {
            for index in 0..repeats {
                let names = (self.block)(stage, index, expand > 1);
                let stride = if index == 0 { first } else { 1 };
                let body = self.block(b, &names, (cin, cout), expand, (k, stride));
                let layer = if stride == 1 && cin == cout {
                    let p = DROP * number as f32 / BLOCKS as f32;
                    let body = body.with(DropPath { p, site: SITE + number });
                    Sequential::default().with(Residual { body, shortcut: Shortcut::Identity, act: Act::None })
                } else {
                    body
                };
                units.push(Unit::of(names.unit, layer));
                (cin, number) = (cout, number + 1);
            }
        }
        let top = self.conv(b, self.top, (cin, 1280), (1, 1), Act::Silu);
        units.push(Unit::of(self.top[0], top).joined());
        units.push(Unit::new("pool", GlobalAvgPool));
        (units, 1280)
    }

    fn block(
        &self,
        b: &mut Builder,
        names: &Names,
        (cin, cout): (usize, usize),
        expand: usize,
        (k, stride): (usize, usize),
    ) -> Sequential {
        let hidden = cin * expand;
        let mut body = Sequential::default();
        if expand > 1 {
            body = body.with(self.conv(b, pair(&names.expand), (cin, hidden), (1, 1), Act::Silu));
        }
        let depthwise = b.depthwise(&names.depthwise[0], hidden, k, stride, self.same.or(k / 2));
        body = conv_norm(body, depthwise, self.norm(b, &names.depthwise[1], hidden, Act::Silu));
        // A quarter of the block's input, not of what it was expanded to.
        let gate = gate(b, &names.gate, hidden, cin / 4);
        body.with(gate).with(self.conv(b, pair(&names.project), (hidden, cout), (1, 1), Act::None))
    }
}

fn pair(names: &[String; 2]) -> [&str; 2] {
    [&names[0], &names[1]]
}

fn gate(b: &mut Builder, names: &[String; 2], c: usize, squeezed: usize) -> Gate {
    let none = (Padding::Symmetric(0), Padding::Symmetric(0));
    let mut conv = |name: &str, cin: usize, cout: usize| {
        b.conv_spec(name, ConvSpec { cin, cout, kernel: (1, 1), stride: 1, pad: none, bias: true })
    };
    let layers = Sequential::default()
        .with(conv(&names[0], c, squeezed))
        .with(Activation(Act::Silu))
        .with(conv(&names[1], squeezed, c))
        .with(Activation(Act::Sigmoid));
    Gate { layers }
}
