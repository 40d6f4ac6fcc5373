//! NASNet-A (4 @ 1056), "mobile" (Zoph et al., 2017), as `keras.applications` builds it, with the names of Keras' layers; its
//! weights want inputs in [-1, 1], `preprocess = "tf"`.
//!
//! A cell reads the two outputs before it. What passes from one unit to the next is therefore a cell's output and, beside
//! it by channels, the output before that, already brought to the same size: the layers which do that for a cell
//! (`adjust_*`) belong to the unit in front of it.

use super::{Backbone, Unit, conv_norm};
use crate::nn::{
    Act, AvgPool, BatchNorm, Border, Builder, GlobalAvgPool, Graph, MaxPool, Padding, Relu, Sequential, Value,
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "nasnet_mobile",
    doc: "NASNet-A mobile as in Keras, 5 million parameters, 1056 features; ImageNet weights at 224 pixels, `preprocess = \"tf\"`",
    input: 224,
    classifier: "predictions",
    timm: &[],
    activation: "relu",
    blocks: false,
    build: |b, _| build(b),
};

/// Filters of the cells at full width: a 24th of the last cell's outputs, twice halved.
const FILTERS: usize = 44;

/// Normal cells between two reductions.
const CELLS: usize = 4;

const NONE: Padding = Padding::Symmetric(0);

/// A cell: the end of its layers' names, filters, and whether it halves the image.
struct Cell {
    id: String,
    filters: usize,
    halves: bool,
}

impl Cell {
    /// Channels of its output: the values that it joins, each of so many filters.
    fn outputs(&self) -> usize {
        self.filters * if self.halves { 4 } else { 6 }
    }

    fn name(&self) -> String {
        let kind = if self.halves { "reduction" } else { "normal" };
        format!("{kind}_{}", self.id)
    }
}

fn cells() -> Vec<Cell> {
    let cell = |id: String, filters, halves| Cell { id, filters, halves };
    let mut cells = vec![cell("stem_1".into(), FILTERS / 4, true), cell("stem_2".into(), FILTERS / 2, true)];
    for stage in 0..3 {
        let filters = FILTERS << stage;
        if stage > 0 {
            // Keras counts reductions by the normal cells before them.
            cells.push(cell(format!("reduce_{}", stage * CELLS), filters, true));
        }
        // And it skips a number after the first stage.
        cells
            .extend((0..CELLS).map(|i| cell((stage * CELLS + usize::from(stage > 0) + i).to_string(), filters, false)));
    }
    cells
}

fn build(b: &mut Builder) -> (Vec<Unit>, usize) {
    let stem = conv_norm(Sequential::default(), b.conv("stem_conv1", (3, 32), 3, 2, NONE), norm(b, "stem_bn1", 32));
    let mut units = vec![Unit::of("stem", stem)];
    let cells = cells();
    let mut cin = 32;
    for (i, cell) in cells.iter().enumerate() {
        let mut g = Graph::default();
        // The first cell reads the stem twice.
        let (x, before) = if i == 0 {
            (Graph::INPUT, (Graph::INPUT, cin))
        } else {
            let (x, p) = (g.channels(Graph::INPUT, 0..cin), g.channels(Graph::INPUT, cin..cin + cell.filters));
            (x, (p, cell.filters))
        };
        let mut own = Wiring { b: &mut *b, g, id: &cell.id, filters: cell.filters };
        let y = own.cell(cell.halves, (x, cin), before);
        let mut g = own.g;
        if let Some(next) = cells.get(i + 1) {
            let mut adjust = Wiring { b: &mut *b, g, id: &next.id, filters: next.filters };
            let adjusted = adjust.adjusted(cell.halves, (x, cin));
            g = adjust.g;
            g.concat(&[y, adjusted]);
        }
        // As timm divides NASNet-A large: what halves belongs to the stem, and later on to the cell behind it.
        let behind = i > 2 && cells[i - 1].halves;
        let unit = Unit::new(cell.name(), g);
        units.push(if i < 2 || behind { unit.joined() } else { unit });
        cin = cell.outputs();
    }
    units.push(Unit::of("pool", Sequential::default().with(Relu).with(GlobalAvgPool)));
    (units, cin)
}

fn norm(b: &mut Builder, name: &str, c: usize) -> BatchNorm {
    b.norm_eps(name, c, 1e-3)
}

/// A value and its channels.
type Wide = (Value, usize);

/// What the layers of one cell have in common.
struct Wiring<'a> {
    b: &'a mut Builder,
    g: Graph,
    id: &'a str,
    filters: usize,
}

impl Wiring<'_> {
    /// The output before the last, `x`, brought to the size and the filters of the cell that reads it.
    fn adjusted(&mut self, halves: bool, (x, c): Wide) -> Value {
        let (id, f) = (self.id, self.filters);
        let x = self.g.layer(x, Relu);
        let all = if halves {
            // Every second pixel, and every second pixel of the image moved by one, so that none is left out.
            let second = AvgPool::Sliding { k: 1, stride: 2, pad: NONE, counts_border: true };
            let even = Sequential::default().with(second).with(self.b.conv(
                &format!("adjust_conv_1_{id}"),
                (c, f / 2),
                1,
                1,
                NONE,
            ));
            let odd = Sequential::default().with(Border::Shift).with(second).with(self.b.conv(
                &format!("adjust_conv_2_{id}"),
                (c, f / 2),
                1,
                1,
                NONE,
            ));
            let (even, odd) = (self.g.layer(x, even), self.g.layer(x, odd));
            self.g.concat(&[even, odd])
        } else {
            let project = self.b.conv(&format!("adjust_conv_projection_{id}"), (c, f), 1, 1, NONE);
            self.g.layer(x, project)
        };
        self.g.layer(all, norm(self.b, &format!("adjust_bn_{id}"), f))
    }

    /// Twice a depthwise and a 1x1 convolution with a batch-norm, on a value that is rectified already.
    fn separable(&mut self, name: &str, (x, c): Wide, k: usize, stride: usize) -> Value {
        let (id, f) = (self.id, self.filters);
        let mut layers = Sequential::default();
        for (n, cin, stride, act) in [(1, c, stride, Act::Relu), (2, f, 1, Act::None)] {
            let conv = format!("separable_conv_{n}_{name}_{id}");
            let depthwise = self.b.depthwise(&format!("{conv}.depthwise"), cin, k, stride, Padding::Same);
            let pointwise = self.b.conv(&format!("{conv}.pointwise"), (cin, f), 1, 1, NONE);
            let norm = norm(self.b, &format!("separable_conv_{n}_bn_{name}_{id}"), f).act(act);
            layers = conv_norm(layers.with(depthwise), pointwise, norm);
        }
        self.g.layer(x, layers)
    }

    fn average(&mut self, x: Value) -> Value {
        self.g.layer(x, AvgPool::Sliding { k: 3, stride: 1, pad: Padding::Same, counts_border: false })
    }

    /// The cell of figure 4 of the paper, on the last output `x` and the one before it.
    fn cell(&mut self, halves: bool, (x, c): Wide, p: Wide) -> Value {
        let (id, f) = (self.id, self.filters);
        let kind = if halves { "reduction" } else { "normal" };
        let project = self.b.conv(&format!("{kind}_conv_1_{id}"), (c, f), 1, 1, NONE);
        let norm = norm(self.b, &format!("{kind}_bn_1_{id}"), f);
        let h = self.g.layer(x, conv_norm(Sequential::default().with(Relu), project, norm));
        // Every separable convolution begins with a rectifier: those of one value share it.
        let bent = ((self.g.layer(h, Relu), f), (self.g.layer(p.0, Relu), p.1));
        if halves { self.reduction(h, bent) } else { self.normal((h, p.0), bent) }
    }

    fn normal(&mut self, (h, p): (Value, Value), (bent_h, bent_p): (Wide, Wide)) -> Value {
        let (a, b) = (self.separable("normal_left1", bent_h, 5, 1), self.separable("normal_right1", bent_p, 3, 1));
        let x1 = self.g.sum(a, b);
        let (a, b) = (self.separable("normal_left2", bent_p, 5, 1), self.separable("normal_right2", bent_p, 3, 1));
        let x2 = self.g.sum(a, b);
        let a = self.average(h);
        let x3 = self.g.sum(a, p);
        // The paper's cell adds the same mean twice.
        let a = self.average(p);
        let x4 = self.g.sum(a, a);
        let a = self.separable("normal_left5", bent_h, 3, 1);
        let x5 = self.g.sum(a, h);
        self.g.concat(&[p, x1, x2, x3, x4, x5])
    }

    fn reduction(&mut self, h: Value, (bent_h, bent_p): (Wide, Wide)) -> Value {
        // Keras pools over a border of zeros, which count here.
        let padded = self.g.layer(h, Border::Same { k: 3, stride: 2 });
        let (a, b) =
            (self.separable("reduction_left1", bent_h, 5, 2), self.separable("reduction_right1", bent_p, 7, 2));
        let x1 = self.g.sum(a, b);
        let largest = self.g.layer(padded, MaxPool { k: 3, stride: 2, pad: 0 });
        let b = self.separable("reduction_right2", bent_p, 7, 2);
        let x2 = self.g.sum(largest, b);
        let a = self.g.layer(padded, AvgPool::Sliding { k: 3, stride: 2, pad: NONE, counts_border: true });
        let b = self.separable("reduction_right3", bent_p, 5, 2);
        let x3 = self.g.sum(a, b);
        let a = self.average(x1);
        let x4 = self.g.sum(x2, a);
        let bent = (self.g.layer(x1, Relu), self.filters);
        let a = self.separable("reduction_left4", bent, 3, 1);
        let x5 = self.g.sum(a, largest);
        self.g.concat(&[x2, x3, x4, x5])
    }
}
