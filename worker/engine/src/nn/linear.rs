//! The fully connected layer.

use rayon::prelude::*;

use super::{
    Array, Gradients, Layer, ParamId, Pass, Tape, Way, adapter::Adapter, array, host, precision::Rounds, rows,
};
#[cfg(feature = "cuda")]
use crate::gpu::Mixed;
use crate::{
    Error, Result,
    num::gemm::{self, Packed, View},
};

/// `y = x·wᵀ + b` for `x: […, input]`.
#[derive(Debug)]
pub struct Linear {
    pub(super) w: ParamId,
    pub(super) b: Option<ParamId>,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) adapter: Option<Box<Adapter>>,
}

impl Linear {
    /// What its own weights make of an input.
    fn base(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(width) if *width == self.input => *width = self.output,
            _ => return Err(Error::Internal(format!("{} inputs expected, given {:?}", self.input, x.dims()))),
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(x, &shape, pass, tape).map(Array::from);
        }
        let precision = pass.precision();
        let input = host(x)?;
        let n = input.len() / self.input;
        let turned = |w: &[f32]| Packed::of(View::transposed(w, self.input), self.input, self.output);
        let w = pass.packed(self.w, Way::Forward, turned);
        let mut out = gemm::rows_product(&precision.operand(&input)[..n * self.input], &w, self.output);
        if let Some(bias) = self.b.map(|b| pass.outside(b)) {
            out.par_chunks_mut(self.output * 64)
                .for_each(|rows| rows.chunks_exact_mut(self.output).for_each(|row| add(row, &bias)));
        }
        tape.push_input(x, pass, self.w);
        array(precision.product(out), &shape)
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
        let (precision, dy) = (pass.precision(), host(dy)?);
        let g = precision.operand(&dy);
        let n = g.len() / self.output;
        if let (Some(x), Some(dw)) = (x, grads.slot(self.w)) {
            gemm::outer(dw, &g, &precision.operand(&host(&x)?), (n, self.output, self.input));
        }
        if let Some(db) = self.b.and_then(|b| grads.slot(b)) {
            rows::add_sums(precision.summed(&dy, &g), self.output, db);
        }
        if !need_dx {
            return Ok(None);
        }
        let as_it_lies = |w: &[f32]| Packed::of(View::rows(w, self.input), self.output, self.input);
        let w = pass.packed(self.w, Way::Back, as_it_lies);
        let dx = gemm::rows_product(&g, &w, self.input);
        Ok(Some(array(precision.product(dx), &shape)?))
    }
}

#[cfg(feature = "cuda")]
impl Linear {
    /// What its own weights make of an input that lies on a GPU.
    fn placed(&self, x: &Mixed, shape: &[usize], pass: &Pass<'_>, tape: &mut Tape) -> Result<Mixed> {
        let w = pass.operand_of(self.w, &[self.output, self.input], x.device())?;
        let bias = self.b.map(|b| pass.placed(b, &[self.output], x.device())).transpose()?;
        let taken = pass.operand(x)?;
        let y = taken.linear(&w, bias.as_ref())?.reshaped(shape)?;
        tape.push_operand(taken, x.shape(), pass, self.w);
        Ok(y)
    }

    fn placed_backward(
        &self,
        dy: &Mixed,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Mixed>> {
        let ((shape, x), slopes) = (tape.pop_operand()?, pass.operand(dy)?);
        let weights = [self.output, self.input];
        if let Some(x) = x {
            grads.add_placed(self.w, &weights, dy.device(), |_, dw| slopes.linear_weights(&x, dw))?;
        }
        if let Some(b) = self.b {
            grads.add_placed(b, &[self.output], dy.device(), |_, db| slopes.add_sums(db))?;
        }
        if !need_dx {
            return Ok(None);
        }
        let w = pass.operand_of(self.w, &weights, dy.device())?;
        Ok(Some(slopes.linear_input(&w)?.reshaped(&shape)?))
    }
}

impl Layer for Linear {
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
        out.push_str(&format!("linear:{};", self.output));
        self.describe_part(out);
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.w);
        out.extend(self.b);
        self.adapter.iter().for_each(|a| a.params(out));
    }
}

impl Linear {
    /// What it carries; its widths follow from those around it.
    pub(super) fn describe_part(&self, out: &mut String) {
        self.adapter.iter().for_each(|a| a.describe(out));
    }
}

fn add(row: &mut [f32], bias: &[f32]) {
    row.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
}

#[cfg(test)]
mod tests {
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let linear = b.linear("l", (7, 4));
        testing::check_gradients(&linear, &b.store, &[5, 7]);
        testing::check_gradients(&linear, &b.store, &[2, 3, 7]);
    }
}
