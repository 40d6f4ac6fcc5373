//! Layers that are not in a line: branches that are joined, values that are read more than once.

use std::ops::Range;
#[cfg(feature = "cuda")]
use std::sync::Arc;

use rayon::prelude::*;

use super::{Act, Array, BufferId, Gradients, Layer, ParamId, Pass, Saved, Tape, array, host, sum::add};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Device, Fault, Mixed, Placed, either,
    ops::{self, Element},
};
use crate::{Error, Result};

/// A value inside a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(usize);

enum Op {
    /// What a layer makes of one value.
    Layer(Box<dyn Layer>),
    /// The sum of values of one shape.
    Sum,
    /// The channels of the values, one after the other.
    Concat,
    /// Some of the channels.
    Channels(Range<usize>),
}

struct Node {
    op: Op,
    from: Vec<usize>,
}

/// A directed graph of layers with one input, [`Graph::INPUT`], and one output: the value that was added last. Every other
/// value must be read.
#[derive(Default)]
pub struct Graph {
    nodes: Vec<Node>,
    /// For each value, the last node that reads it.
    last: Vec<usize>,
}

impl Graph {
    /// What the graph is given.
    pub const INPUT: Value = Value(0);

    fn push(&mut self, op: Op, from: Vec<usize>) -> Value {
        for value in &from {
            self.last.resize(self.last.len().max(value + 1), 0);
            self.last[*value] = self.nodes.len();
        }
        self.nodes.push(Node { op, from });
        Value(self.nodes.len())
    }

    /// The output of a layer.
    pub fn layer(&mut self, from: Value, layer: impl Layer + 'static) -> Value {
        self.push(Op::Layer(Box::new(layer)), vec![from.0])
    }

    /// `a + b`
    pub fn sum(&mut self, a: Value, b: Value) -> Value {
        self.push(Op::Sum, vec![a.0, b.0])
    }

    /// Images of one size, their channels side by side.
    pub fn concat(&mut self, values: &[Value]) -> Value {
        self.push(Op::Concat, values.iter().map(|v| v.0).collect())
    }

    /// Some channels of a value.
    pub fn channels(&mut self, from: Value, range: Range<usize>) -> Value {
        self.push(Op::Channels(range), vec![from.0])
    }
}

/// Channels of `x` that lie at `range`.
fn cut(x: &Array, range: Range<usize>) -> Result<Array> {
    let (n, h, w, c) = x.dims4()?;
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let part = either!(x, |x| x.made(|device, x| ops::cut_columns(device, x, range)).map(Mixed::from));
        return Ok(part?.into());
    }
    let (input, width) = (host(x)?, range.len());
    let input = &*input;
    let mut out = vec![0.0; n * h * w * width];
    out.par_chunks_mut(w * width).zip(input.par_chunks(w * c)).for_each(|(out, x)| {
        let pixels = out.chunks_exact_mut(width).zip(x.chunks_exact(c));
        pixels.for_each(|(out, x)| out.copy_from_slice(&x[range.clone()]));
    });
    array(out, &[n, h, w, width])
}

/// The images of `parts` side by side, among `total` channels; the first part begins at channel `first`.
fn join(parts: &[&Array], first: usize, total: usize) -> Result<Array> {
    let (n, h, w, _) = parts[0].dims4()?;
    for part in parts {
        let (pn, ph, pw, _) = part.dims4()?;
        if (pn, ph, pw) != (n, h, w) {
            return Err(Error::Internal(format!("images of {h}x{w} and {ph}x{pw} cannot be joined")));
        }
    }
    #[cfg(feature = "cuda")]
    if let Array::Device(one) = parts[0] {
        return placed_join(one, parts, first, total).map(Array::from);
    }
    let mut out = vec![0.0; n * h * w * total];
    let mut at = first;
    for part in parts {
        let (c, input) = (part.dim(3)?, host(part)?);
        let input = &*input;
        out.par_chunks_mut(w * total).zip(input.par_chunks(w * c)).for_each(|(out, x)| {
            let pixels = out.chunks_exact_mut(total).zip(x.chunks_exact(c));
            pixels.for_each(|(out, x)| out[at..at + c].copy_from_slice(x));
        });
        at += c;
    }
    array(out, &[n, h, w, total])
}

/// The same on the GPU of `one`: in bf16 where all of them lie so, else in f32.
#[cfg(feature = "cuda")]
fn placed_join(one: &Mixed, parts: &[&Array], first: usize, total: usize) -> Result<Mixed> {
    fn joined<T: Element>(
        device: &Arc<Device>,
        parts: &[Placed<T>],
        first: usize,
        total: usize,
    ) -> Result<Mixed, Fault> {
        let parts: Vec<_> = parts.iter().map(Placed::array).collect();
        let all = ops::join_columns(device, &parts, first, total)?;
        Ok(Placed::new(device.clone(), all).into())
    }
    let (device, parts) = (one.device(), parts.iter().map(|part| part.mixed()).collect::<Result<Vec<_>>>()?);
    Ok(if parts.iter().all(|part| part.is_half()) {
        let halves = parts.iter().map(|part| part.half()).collect::<Result<Vec<_>, _>>()?;
        joined(device, &halves, first, total)?
    } else {
        let full = parts.iter().map(|part| part.full()).collect::<Result<Vec<_>, _>>()?;
        joined(device, &full, first, total)?
    })
}

fn missing() -> Error {
    Error::Internal("a value of a graph is not there".into())
}

impl Layer for Graph {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let mut values = vec![None; self.nodes.len() + 1];
        values[0] = Some(x.clone());
        for (i, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<&Array> =
                node.from.iter().map(|v| values[*v].as_ref().ok_or_else(missing)).collect::<Result<_>>()?;
            let y = match &node.op {
                Op::Layer(layer) => layer.forward(inputs[0], pass, tape)?,
                Op::Sum => add(inputs[0], inputs[1], Act::None)?,
                Op::Concat => {
                    let widths: Vec<usize> = inputs.iter().map(|t| t.dims().last().copied().unwrap_or(0)).collect();
                    let y = join(&inputs, 0, widths.iter().sum())?;
                    if pass.records() {
                        tape.push(Saved::Shape(widths));
                    }
                    y
                }
                Op::Channels(range) => {
                    if pass.records() {
                        tape.push(Saved::Shape(inputs[0].dims().to_vec()));
                    }
                    cut(inputs[0], range.clone())?
                }
            };
            // What nobody reads again need not live on.
            for v in &node.from {
                if self.last[*v] == i {
                    values[*v] = None;
                }
            }
            values[i + 1] = Some(y);
        }
        values.pop().flatten().ok_or_else(missing)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let mut of: Vec<Option<Array>> = vec![None; self.nodes.len() + 1];
        of[self.nodes.len()] = Some(dy.clone());
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let g = of[i + 1].take().ok_or_else(missing)?;
            let wanted = |v: usize| v > 0 || need_dx;
            let parts: Vec<Option<Array>> = match &node.op {
                Op::Layer(layer) => vec![layer.backward(&g, pass, tape, grads, wanted(node.from[0]))?],
                Op::Sum => vec![Some(g.clone()), Some(g)],
                Op::Concat => {
                    let mut at = 0;
                    let mut parts = Vec::new();
                    for (v, width) in node.from.iter().zip(tape.pop_shape()?) {
                        parts.push(if wanted(*v) { Some(cut(&g, at..at + width)?) } else { None });
                        at += width;
                    }
                    parts
                }
                Op::Channels(range) => {
                    let shape = tape.pop_shape()?;
                    vec![if wanted(node.from[0]) { Some(join(&[&g], range.start, shape[3])?) } else { None }]
                }
            };
            for (v, part) in node.from.iter().zip(parts) {
                let Some(part) = part.filter(|_| wanted(*v)) else { continue };
                of[*v] = Some(match of[*v].take() {
                    Some(sum) => add(&sum, &part, Act::None)?,
                    None => part,
                });
            }
        }
        Ok(of.swap_remove(0))
    }

    fn leaves(&self) -> usize {
        let count = |node: &Node| match &node.op {
            Op::Layer(layer) => layer.leaves(),
            // Joins are layers of their own, as people count.
            Op::Sum | Op::Concat => 1,
            Op::Channels(_) => 0,
        };
        self.nodes.iter().map(count).sum()
    }

    fn describe(&self, out: &mut String) {
        out.push_str("graph(");
        for node in &self.nodes {
            out.push_str(&format!("{:?}", node.from));
            match &node.op {
                Op::Layer(layer) => layer.describe(out),
                Op::Sum => out.push_str("sum;"),
                Op::Concat => out.push_str("concat;"),
                Op::Channels(range) => out.push_str(&format!("channels:{range:?};")),
            }
        }
        out.push(')');
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.layers().for_each(|l| l.params(out));
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        self.layers().for_each(|l| l.norms(out));
    }
}

impl Graph {
    fn layers(&self) -> impl Iterator<Item = &dyn Layer> {
        self.nodes.iter().filter_map(|n| if let Op::Layer(layer) = &n.op { Some(&**layer) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Act, Activation, Builder, Padding, testing};

    /// A value that is read three times, a slice of channels, a sum and two joins.
    fn graph(b: &mut Builder) -> Graph {
        let mut g = Graph::default();
        let left = g.layer(Graph::INPUT, b.conv("left", (3, 2), 3, 1, Padding::Symmetric(1)));
        let right = g.channels(Graph::INPUT, 1..3);
        let sum = g.sum(left, right);
        let bent = g.layer(sum, Activation(Act::Silu));
        let inner = g.concat(&[bent, sum]);
        let mixed = g.layer(inner, b.conv("mixed", (4, 3), 1, 1, Padding::Symmetric(0)));
        g.concat(&[mixed, Graph::INPUT, left]);
        g
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let g = graph(&mut b);
        assert_eq!(g.leaves(), 6);
        testing::check_gradients(&g, &b.store, &[2, 3, 4, 3]);
    }

    #[test]
    fn channels_are_joined_in_order() {
        let b = Builder::new(1);
        let mut g = Graph::default();
        let (a, c) = (g.channels(Graph::INPUT, 2..3), g.channels(Graph::INPUT, 0..2));
        g.concat(&[a, c]);
        let x = array(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1, 1, 2, 3]).unwrap();
        let y = g.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
        assert_eq!(host(&y).unwrap().to_vec(), [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let b = Builder::new(1);
        let mut g = Graph::default();
        let part = g.channels(Graph::INPUT, 0..1);
        g.sum(part, Graph::INPUT);
        assert!(g.forward(&testing::array(&[1, 2, 2, 3]), &Pass::eval(&b.store), &mut Tape::default()).is_err());
    }
}
