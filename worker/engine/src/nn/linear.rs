//! The fully connected layer.

use candle_core::Tensor;

use super::{Gradients, Layer, ParamId, Pass, Saved, Tape, host, tensor};
use crate::{
    Result,
    num::gemm::{self, View},
};

/// `y = x·wᵀ + b` for `x: [n, input]`.
#[derive(Debug)]
pub struct Linear {
    pub(super) w: ParamId,
    pub(super) b: ParamId,
    pub(super) input: usize,
    pub(super) output: usize,
}

impl Layer for Linear {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, _) = x.dims2()?;
        let bias = pass.store.param(self.b);
        let mut out = gemm::linear(&host(x)?, pass.store.param(self.w), (n, self.output, self.input));
        out.chunks_exact_mut(self.output).for_each(|row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b));
        if pass.records() {
            tape.push(Saved::Tensor(x.clone()));
        }
        tensor(out, &[n, self.output])
    }

    fn backward(
        &self,
        dy: &Tensor,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let x = tape.pop_tensor()?;
        let (n, _) = x.dims2()?;
        let (x, g) = (host(&x)?, host(dy)?);
        if let Some(dw) = grads.slot(self.w) {
            let (dy, x) = (View::transposed(&g, self.output), View::rows(&x, self.input));
            gemm::gemm(dw, dy, x, (self.output, self.input, n), true);
        }
        if let Some(db) = grads.slot(self.b) {
            g.chunks_exact(self.output).for_each(|row| db.iter_mut().zip(row).for_each(|(d, g)| *d += g));
        }
        if !need_dx {
            return Ok(None);
        }
        let mut dx = vec![0.0; n * self.input];
        let (dy, w) = (View::rows(&g, self.output), View::rows(pass.store.param(self.w), self.input));
        gemm::gemm(&mut dx, dy, w, (n, self.input, self.output), false);
        Ok(Some(tensor(dx, &[n, self.input])?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("linear:{};", self.output));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.w, self.b]);
    }
}

#[cfg(test)]
mod tests {
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let linear = b.linear("l", (7, 4));
        testing::check_gradients(&linear, &b.store, &[5, 7]);
    }
}
