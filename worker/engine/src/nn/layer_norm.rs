//! Layer normalisation (Ba et al., 2016), on its own or of a sum.

use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::sum::add;
use super::{Act, Array, Gradients, Layer, ParamId, Pass, Saved, Tape, array, host, lanes, rows, sum::sum};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, Placed, ops};
use crate::{
    Error, Result,
    num::{fresh::Fresh, simd::vectorised},
};

/// `y = (x − mean) / √(var + ε) · γ + β` over the last dimension; the variance is the biased one.
#[derive(Debug)]
pub struct LayerNorm {
    pub(super) gamma: ParamId,
    pub(super) beta: ParamId,
    pub(super) c: usize,
    pub(super) eps: f32,
}

/// Rows of one task.
const TASK: usize = 32;

vectorised! {
    /// Turns rows into normalised ones, and writes their `1/σ` and the result.
    fn normalise(x: &mut [f32], y: &mut [f32], inverse: &mut [f32], gamma: &[f32], beta: &[f32], eps: f32) {
        let c = gamma.len();
        for ((x, y), inverse) in x.chunks_exact_mut(c).zip(y.chunks_exact_mut(c)).zip(inverse) {
            let mean = lanes::sum(x) / c as f32;
            let scale = 1.0 / (lanes::squares(x, mean) / c as f32 + eps).sqrt();
            *inverse = scale;
            for (((x, y), g), b) in x.iter_mut().zip(y).zip(gamma).zip(beta) {
                *x = (*x - mean) * scale;
                *y = *x * g + b;
            }
        }
    }

    /// `dx = (g − mean g − x̂·mean(g·x̂)) / σ` with `g = dy·γ`.
    fn slopes(dx: &mut [f32], dy: &[f32], hat: &[f32], inverse: &[f32], gamma: &[f32]) {
        let c = gamma.len();
        let lines = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(hat.chunks_exact(c)).zip(inverse);
        for (((dx, dy), hat), inverse) in lines {
            dx.iter_mut().zip(dy).zip(gamma).for_each(|((d, g), gamma)| *d = g * gamma);
            let mean = lanes::sum(dx) / c as f32;
            let along = lanes::dot(dx, hat) / c as f32;
            dx.iter_mut().zip(hat).for_each(|(d, h)| *d = (*d - mean - h * along) * inverse);
        }
    }
}

impl LayerNorm {
    fn run(&self, mut x: Vec<f32>, shape: &[usize], pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let c = self.c;
        if shape.last() != Some(&c) {
            return Err(Error::Internal(format!("{c} channels expected, given {shape:?}")));
        }
        let (gamma, beta) = (pass.store.param(self.gamma), pass.store.param(self.beta));
        let (mut y, mut inverse) = (Fresh::new(x.len()), vec![0.0; x.len() / c]);
        x.par_chunks_mut(TASK * c)
            .zip(y.parts(TASK * c))
            .zip(inverse.par_chunks_mut(TASK))
            .for_each(|((x, y), inverse)| normalise(x, y, inverse, gamma, beta, self.eps));
        if pass.records() {
            tape.push(Saved::Values(x));
            tape.push(Saved::Values(inverse));
        }
        array(y.done(), shape)
    }

    /// The normalised sum of two tensors; its gradient is that of both.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn of_sum(&self, a: &Array, b: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        #[cfg(feature = "cuda")]
        if let Array::Device(_) = a {
            return self.placed(&add(a, b, Act::None)?.placed()?, pass, tape).map(Array::from);
        }
        self.run(sum(a, b, Act::None)?, a.dims(), pass, tape)
    }
}

#[cfg(feature = "cuda")]
impl LayerNorm {
    fn placed(&self, x: &Placed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Placed> {
        let [gamma, beta] = [self.gamma, self.beta].map(|id| pass.placed_exact(id, &[self.c], x.device()));
        let (y, kept) = ops::layer_norm(x.device(), x.array(), gamma?.array(), beta?.array(), self.eps)?;
        if pass.records() {
            tape.push(Saved::Array(x.beside(kept.hat).into()));
            tape.push(Saved::Array(x.beside(kept.inverse).into()));
        }
        Ok(x.beside(y))
    }

    fn placed_backward(
        &self,
        dy: &Mixed,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Placed>> {
        let (inverse, hat) = (tape.pop_array()?.placed()?, tape.pop_array()?.placed()?);
        let (inverse, hat) = (inverse.array(), hat.array());
        let (dy, c) = (dy.full()?, [self.c]);
        grads.add_placed(self.beta, &c, dy.device(), |device, db| ops::add_sums(device, dy.array(), db))?;
        grads.add_placed(self.gamma, &c, dy.device(), |device, dg| ops::add_products(device, dy.array(), hat, dg))?;
        if !need_dx {
            return Ok(None);
        }
        let gamma = pass.placed_exact(self.gamma, &c, dy.device())?;
        let dx = dy.made(|device, dy| ops::layer_norm_back(device, dy, (hat, inverse), gamma.array()))?;
        Ok(Some(dx))
    }
}

impl Layer for LayerNorm {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(&x.full()?, pass, tape).map(Array::from);
        }
        self.run(host(x)?.to_vec(), x.dims(), pass, tape)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return Ok(self.placed_backward(dy, pass, tape, grads, need_dx)?.map(Array::from));
        }
        let (inverse, hat) = (tape.pop_values()?, tape.pop_values()?);
        let (c, g) = (self.c, host(dy)?);
        let g = &*g;
        if let Some(db) = grads.slot(self.beta) {
            rows::add_sums(g, c, db);
        }
        if let Some(dg) = grads.slot(self.gamma) {
            rows::add_products(g, &hat, c, dg);
        }
        if !need_dx {
            return Ok(None);
        }
        let gamma = pass.store.param(self.gamma);
        let mut dx = Fresh::new(g.len());
        dx.parts(TASK * c)
            .zip(g.par_chunks(TASK * c))
            .zip(hat.par_chunks(TASK * c))
            .zip(inverse.par_chunks(TASK))
            .for_each(|(((dx, g), hat), inverse)| slopes(dx, g, hat, inverse, gamma));
        Ok(Some(array(dx.done(), dy.dims())?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("layernorm:{};", self.eps));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.gamma, self.beta]);
    }
}

#[cfg(test)]
mod tests {
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let norm = b.layer_norm("n", 19, 1e-5);
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 5) as f32 / 4.0 - 0.5);
        testing::check_gradients(&norm, &b.store, &[70, 19]);
        testing::check_gradients(&norm, &b.store, &[2, 3, 19]);
    }
}
