//! Dense 2-d convolution on channels-last images, without unfolding: every output pixel is a sum over the taps of one
//! slice of the input times one slice of the weights ("indirect convolution", Dukhan 2019). Only inputs of few channels,
//! such as a stem's three, are copied together first.

mod backward;
mod geometry;
#[cfg(feature = "cuda")]
mod placed;
mod window;

use geometry::Geometry;
pub use geometry::{Axis, Padding};
use window::Window;

use super::{Array, Gradients, Layer, ParamId, Pass, Tape, Way, adapter::Adapter, array, host, precision::Rounds};
use crate::{
    Result,
    num::gemm::{Packed, View},
};

/// What a convolution is.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Distance between outputs, both ways.
    pub stride: usize,
    /// Above and below, left and right.
    pub pad: (Padding, Padding),
    /// Whether it adds a bias.
    pub bias: bool,
}

/// Convolution, weights `[cout, cin, kh, kw]` as in PyTorch; `[n, h, w, cin]` to `[n, oh, ow, cout]`.
#[derive(Debug)]
pub struct Conv2d {
    pub(super) w: ParamId,
    pub(super) b: Option<ParamId>,
    pub(super) spec: ConvSpec,
    pub(super) adapter: Option<Box<Adapter>>,
}

impl Conv2d {
    fn taps(&self) -> usize {
        self.spec.kernel.0 * self.spec.kernel.1
    }

    fn window(&self, g: Geometry) -> Window {
        Window { g, kernel: self.spec.kernel, channels: self.spec.cin }
    }

    /// Weights as rows `(tap, input channel)` by output channels.
    fn forward_weights(&self, w: &[f32]) -> Packed {
        let (cin, taps) = (self.spec.cin, self.taps());
        let mut packed = Packed::new(taps * cin, self.spec.cout);
        let parts: Vec<_> =
            (0..taps).map(|t| (t * cin, View { data: &w[t..], row: taps, col: cin * taps }, cin)).collect();
        packed.fill(&parts);
        packed
    }

    /// What its own weights make of an input.
    fn base(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let g = Geometry::new(&self.spec, x.dims())?;
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(x, &g, pass, tape).map(Array::from);
        }
        let precision = pass.precision();
        let bias = self.b.map(|b| pass.outside(b));
        let weights = pass.packed(self.w, Way::Forward, |w| self.forward_weights(w));
        let out = self.window(g).times(&precision.operand(&host(x)?), &weights, bias.as_deref());
        tape.push_input(x, pass, self.w);
        array(precision.product(out), &[g.n, g.y.outputs, g.x.outputs, self.spec.cout])
    }

    fn base_backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            let dx = self.placed_backward(dy, pass, tape, grads, need_dx)?;
            return Ok(dx.map(Array::from));
        }
        let (shape, x) = tape.pop_input()?;
        let g = Geometry::new(&self.spec, &shape)?;
        let (precision, dy) = (pass.precision(), host(dy)?);
        let taken = precision.operand(&dy);
        if let (Some(x), Some(dw)) = (x, grads.slot(self.w)) {
            self.weight_gradient(&g, &precision.operand(&host(&x)?), &taken, dw);
        }
        if let Some(db) = self.b.and_then(|b| grads.slot(b)) {
            super::rows::add_sums(precision.summed(&dy, &taken), self.spec.cout, db);
        }
        if !need_dx {
            return Ok(None);
        }
        let dx = self.input_gradient(&g, &taken, pass);
        Ok(Some(array(precision.product(dx), &shape)?))
    }
}

impl Layer for Conv2d {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        match &self.adapter {
            None => self.base(x, pass, tape),
            Some(adapter) => adapter.forward(x, pass, tape, |x, tape| self.base(x, pass, tape)),
        }
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let Some(adapter) = &self.adapter else { return self.base_backward(dy, pass, tape, grads, need_dx) };
        adapter.backward(dy, pass, tape, grads, need_dx, |dy, tape, grads, need_dx| {
            self.base_backward(dy, pass, tape, grads, need_dx)
        })
    }

    fn describe(&self, out: &mut String) {
        let ConvSpec { cout, kernel, stride, pad, bias, .. } = self.spec;
        out.push_str(&format!("conv:{cout}:{kernel:?}:{stride}:{pad:?}:{bias};"));
        self.adapter.iter().for_each(|a| a.describe(out));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.w);
        out.extend(self.b);
        self.adapter.iter().for_each(|a| a.params(out));
    }
}

#[cfg(test)]
mod tests;
