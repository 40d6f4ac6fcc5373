//! InceptionV3 (Szegedy et al., 2015), with torchvision's names.
//!
//! There is no auxiliary head: fine-tuning has no use for it, and its tensors in a file of weights (`AuxLogits.*`) are not
//! read. torchvision's weights want inputs in [-1, 1]: its `transform_input` undoes the usual normalisation, so that
//! `preprocess = "tf"` is what they were trained with.

use super::{
    Backbone, Unit,
    inception::{Block, Conv, HALVE, IN, square, stem, valid, wide},
};
use crate::nn::{AvgPool, Builder, GlobalAvgPool, Graph, Padding, Value};

pub(super) const ENTRY: Backbone = Backbone {
    name: "inception_v3",
    doc: "InceptionV3 as in torchvision, 22 million parameters without the auxiliary head, 2048 features; ImageNet weights at 299 pixels, `preprocess = \"tf\"`",
    input: 299,
    classifier: "fc",
    timm: &["inception_v3"],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b),
};

fn build(b: &mut Builder) -> (Vec<Unit>, usize) {
    let mut units = stem(b, ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]);
    let mut add = |name: &str, graph: Graph| units.push(Unit::new(name, graph));
    for (name, cin, pooled) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        add(name, a(Block::new(b, name), cin, pooled));
    }
    add("Mixed_6a", reduce_b(Block::new(b, "Mixed_6a")));
    for (name, width) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        add(name, c(Block::new(b, name), width));
    }
    add("Mixed_7a", reduce_d(Block::new(b, "Mixed_7a")));
    for (name, cin) in [("Mixed_7b", 1280), ("Mixed_7c", 2048)] {
        add(name, e(Block::new(b, name), cin));
    }
    units.push(Unit::new("pool", GlobalAvgPool));
    (units, 2048)
}

/// The mean of each pixel's neighbourhood, the border's zeros included, then a 1x1 convolution.
fn pooled(block: &mut Block<'_>, cin: usize, cout: usize) -> Value {
    let mean = AvgPool::Sliding { k: 3, stride: 1, pad: Padding::Symmetric(1), counts_border: true };
    let mean = block.graph.layer(IN, mean);
    block.line(mean, cin, &[("branch_pool", square(cout, 1))])
}

/// torchvision's InceptionA.
fn a(mut block: Block<'_>, cin: usize, pool: usize) -> Graph {
    let one = block.line(IN, cin, &[("branch1x1", square(64, 1))]);
    let five = block.line(IN, cin, &[("branch5x5_1", square(48, 1)), ("branch5x5_2", square(64, 5))]);
    let convs =
        [("branch3x3dbl_1", square(64, 1)), ("branch3x3dbl_2", square(96, 3)), ("branch3x3dbl_3", square(96, 3))];
    let three = block.line(IN, cin, &convs);
    let pool = pooled(&mut block, cin, pool);
    block.graph.concat(&[one, five, three, pool]);
    block.graph
}

/// torchvision's InceptionB, which halves the image.
fn reduce_b(mut block: Block<'_>) -> Graph {
    let one = block.line(IN, 288, &[("branch3x3", valid(384, 2))]);
    let convs =
        [("branch3x3dbl_1", square(64, 1)), ("branch3x3dbl_2", square(96, 3)), ("branch3x3dbl_3", valid(96, 2))];
    let two = block.line(IN, 288, &convs);
    let pool = block.graph.layer(IN, HALVE);
    block.graph.concat(&[one, two, pool]);
    block.graph
}

/// torchvision's InceptionC: 7x7 as 1x7 and 7x1.
fn c(mut block: Block<'_>, width: usize) -> Graph {
    let (row, column) = (|cout| wide(cout, 1, 7), |cout| wide(cout, 7, 1));
    let one = block.line(IN, 768, &[("branch1x1", square(192, 1))]);
    let convs = [("branch7x7_1", square(width, 1)), ("branch7x7_2", row(width)), ("branch7x7_3", column(192))];
    let once = block.line(IN, 768, &convs);
    let convs: [(&str, Conv); 5] = [
        ("branch7x7dbl_1", square(width, 1)),
        ("branch7x7dbl_2", column(width)),
        ("branch7x7dbl_3", row(width)),
        ("branch7x7dbl_4", column(width)),
        ("branch7x7dbl_5", row(192)),
    ];
    let twice = block.line(IN, 768, &convs);
    let pool = pooled(&mut block, 768, 192);
    block.graph.concat(&[one, once, twice, pool]);
    block.graph
}

/// torchvision's InceptionD, which halves the image.
fn reduce_d(mut block: Block<'_>) -> Graph {
    let three = block.line(IN, 768, &[("branch3x3_1", square(192, 1)), ("branch3x3_2", valid(320, 2))]);
    let convs = [
        ("branch7x7x3_1", square(192, 1)),
        ("branch7x7x3_2", wide(192, 1, 7)),
        ("branch7x7x3_3", wide(192, 7, 1)),
        ("branch7x7x3_4", valid(192, 2)),
    ];
    let seven = block.line(IN, 768, &convs);
    let pool = block.graph.layer(IN, HALVE);
    block.graph.concat(&[three, seven, pool]);
    block.graph
}

/// torchvision's InceptionE: branches that fork into 1x3 and 3x1.
fn e(mut block: Block<'_>, cin: usize) -> Graph {
    let one = block.line(IN, cin, &[("branch1x1", square(320, 1))]);
    let three = block.line(IN, cin, &[("branch3x3_1", square(384, 1))]);
    let row = block.line(three, 384, &[("branch3x3_2a", wide(384, 1, 3))]);
    let column = block.line(three, 384, &[("branch3x3_2b", wide(384, 3, 1))]);
    let double = block.line(IN, cin, &[("branch3x3dbl_1", square(448, 1)), ("branch3x3dbl_2", square(384, 3))]);
    let double_row = block.line(double, 384, &[("branch3x3dbl_3a", wide(384, 1, 3))]);
    let double_column = block.line(double, 384, &[("branch3x3dbl_3b", wide(384, 3, 1))]);
    let pool = pooled(&mut block, cin, 192);
    block.graph.concat(&[one, row, column, double_row, double_column, pool]);
    block.graph
}
