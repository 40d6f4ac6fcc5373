//! InceptionResNetV2 (Szegedy et al., 2016), with timm's names; timm's weights want inputs in [-1, 1], `preprocess = "tf"`.

use super::{
    Backbone, Unit,
    inception::{Block, Conv, HALVE, IN, conv, square, stem, valid, wide},
};
use crate::nn::{Act, Activation, AvgPool, Builder, ConvSpec, GlobalAvgPool, Graph, Padding, Scale, Value};

pub(super) const ENTRY: Backbone = Backbone {
    name: "inception_resnet_v2",
    doc: "InceptionResNetV2 as in timm, 54 million parameters, 1536 features; ImageNet weights at 299 pixels, `preprocess = \"tf\"`",
    input: 299,
    classifier: "classif",
    timm: &["inception_resnet_v2"],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b),
};

fn build(b: &mut Builder) -> (Vec<Unit>, usize) {
    let mut units = stem(b, ["conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a"]);
    units.push(Unit::new("mixed_5b", mixed_5b(Block::new(b, "mixed_5b"))));
    repeat(b, &mut units, "repeat", 10, BLOCK_35);
    units.push(Unit::new("mixed_6a", mixed_6a(Block::new(b, "mixed_6a"))));
    repeat(b, &mut units, "repeat_1", 20, BLOCK_17);
    units.push(Unit::new("mixed_7a", mixed_7a(Block::new(b, "mixed_7a"))));
    repeat(b, &mut units, "repeat_2", 9, BLOCK_8);
    // The last one is not scaled, and no rectifier follows it.
    let last = ResidualBlock { scale: 1.0, act: Act::None, ..BLOCK_8 };
    units.push(Unit::new("block8", last.build(Block::new(b, "block8"))));
    units.push(Unit::of("conv2d_7b", conv(b, "conv2d_7b", 2080, square(1536, 1))).joined());
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 1536)
}

fn repeat(b: &mut Builder, units: &mut Vec<Unit>, list: &str, times: usize, block: ResidualBlock) {
    for i in 0..times {
        let name = format!("{list}.{i}");
        let graph = block.build(Block::new(b, &name));
        units.push(Unit::new(name, graph));
    }
}

/// Joins branches whose convolutions are numbered: `branch0` if there is one convolution, else `branch1.0`, `branch1.1`, …
fn branches(block: &mut Block<'_>, cin: usize, lists: &[&[Conv]]) -> Vec<Value> {
    let mut joined = Vec::new();
    for (i, convs) in lists.iter().enumerate() {
        let name = |j: usize| if convs.len() == 1 { format!("branch{i}") } else { format!("branch{i}.{j}") };
        let names: Vec<String> = (0..convs.len()).map(name).collect();
        let named: Vec<(&str, Conv)> = names.iter().map(String::as_str).zip(convs.iter().copied()).collect();
        joined.push(block.line(IN, cin, &named));
    }
    joined
}

/// `act(x + scale · project(branches(x)))`
#[derive(Clone, Copy)]
struct ResidualBlock {
    channels: usize,
    branches: &'static [&'static [Conv]],
    scale: f32,
    act: Act,
}

const BLOCK_35: ResidualBlock = ResidualBlock {
    channels: 320,
    branches: &[&[square(32, 1)], &[square(32, 1), square(32, 3)], &[square(32, 1), square(48, 3), square(64, 3)]],
    scale: 0.17,
    act: Act::Relu,
};

const BLOCK_17: ResidualBlock = ResidualBlock {
    channels: 1088,
    branches: &[&[square(192, 1)], &[square(128, 1), wide(160, 1, 7), wide(192, 7, 1)]],
    scale: 0.1,
    act: Act::Relu,
};

const BLOCK_8: ResidualBlock = ResidualBlock {
    channels: 2080,
    branches: &[&[square(192, 1)], &[square(192, 1), wide(224, 1, 3), wide(256, 3, 1)]],
    scale: 0.2,
    act: Act::Relu,
};

impl ResidualBlock {
    fn build(&self, mut block: Block<'_>) -> Graph {
        let joined = branches(&mut block, self.channels, self.branches);
        let cin = self.branches.iter().filter_map(|convs| convs.last()).map(|c| c.cout).sum();
        let none = (Padding::Symmetric(0), Padding::Symmetric(0));
        let spec = ConvSpec { cin, cout: self.channels, kernel: (1, 1), stride: 1, pad: none, bias: true };
        let project = block.b.conv_spec(&format!("{}.conv2d", block.name), spec);
        let mut g = block.graph;
        let wide = g.concat(&joined);
        let mut long = g.layer(wide, project);
        if self.scale != 1.0 {
            long = g.layer(long, Scale(self.scale));
        }
        let sum = g.sum(long, IN);
        if self.act != Act::None {
            g.layer(sum, Activation(self.act));
        }
        g
    }
}

fn mixed_5b(mut block: Block<'_>) -> Graph {
    let lists: [&[Conv]; 3] =
        [&[square(96, 1)], &[square(48, 1), square(64, 5)], &[square(64, 1), square(96, 3), square(96, 3)]];
    let mut joined = branches(&mut block, 192, &lists);
    // timm does not count the border here; torchvision's InceptionV3 does.
    let mean = AvgPool::Sliding { k: 3, stride: 1, pad: Padding::Symmetric(1), counts_border: false };
    let mean = block.graph.layer(IN, mean);
    joined.push(block.line(mean, 192, &[("branch3.1", square(64, 1))]));
    block.graph.concat(&joined);
    block.graph
}

fn mixed_6a(mut block: Block<'_>) -> Graph {
    let mut joined = branches(&mut block, 320, &[&[valid(384, 2)], &[square(256, 1), square(256, 3), valid(384, 2)]]);
    joined.push(block.graph.layer(IN, HALVE));
    block.graph.concat(&joined);
    block.graph
}

fn mixed_7a(mut block: Block<'_>) -> Graph {
    let lists: [&[Conv]; 3] = [
        &[square(256, 1), valid(384, 2)],
        &[square(256, 1), valid(288, 2)],
        &[square(256, 1), square(288, 3), valid(320, 2)],
    ];
    let mut joined = branches(&mut block, 1088, &lists);
    joined.push(block.graph.layer(IN, HALVE));
    block.graph.concat(&joined);
    block.graph
}
