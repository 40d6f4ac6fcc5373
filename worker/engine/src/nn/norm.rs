//! Batch-norm over the channels of a grain, or by running statistics.
//!
//! Forward has no side effect. In training mode backward deposits, per channel, Σ(x−r) and Σ(x−r)² around the running
//! mean r: linear terms that any reduction can add up, from which one update per step is made after it.

use candle_core::Tensor;

use super::{BufferId, Gradients, Layer, ParamId, Pass, Saved, Tape, host, tensor};
use crate::{Error, Result};

/// Batch-norm (Ioffe and Szegedy, 2015); momentum 0.1 and unbiased running variance as in PyTorch.
#[derive(Debug)]
pub struct BatchNorm {
    pub(super) gamma: ParamId,
    pub(super) beta: ParamId,
    pub(super) mean: BufferId,
    pub(super) var: BufferId,
    pub(super) c: usize,
    pub(super) eps: f32,
}

/// Weight of a new step's statistics.
const MOMENTUM: f64 = 0.1;

/// Updates running statistics from the reduced sums of one step: Σ(x−r) and Σ(x−r)² per channel, then the number of
/// elements of a channel.
pub fn update_running(mean: &mut [f32], var: &mut [f32], sums: &[f32]) {
    let (a, q) = sums.split_at(mean.len());
    let n = f64::from(q[mean.len()]);
    if n < 1.0 {
        return;
    }
    for i in 0..mean.len() {
        let shift = f64::from(a[i]) / n;
        let biased = (f64::from(q[i]) / n - shift * shift).max(0.0);
        let unbiased = if n > 1.0 { biased * n / (n - 1.0) } else { biased };
        let new_mean = f64::from(mean[i]) + shift;
        mean[i] = (f64::from(mean[i]) * (1.0 - MOMENTUM) + new_mean * MOMENTUM) as f32;
        var[i] = (f64::from(var[i]) * (1.0 - MOMENTUM) + unbiased * MOMENTUM) as f32;
    }
}

impl BatchNorm {
    /// `(n, channels, elements of one channel of one sample)`.
    fn dims(&self, x: &Tensor) -> Result<(usize, usize, usize)> {
        let d = x.dims();
        if d.len() < 2 || d[1] != self.c {
            return Err(Error::Internal(format!("batch-norm of {} channels was given {d:?}", self.c)));
        }
        Ok((d[0], d[1], d[2..].iter().product()))
    }

    fn is_training(&self, pass: &Pass<'_>) -> bool {
        pass.layout.is_some_and(|l| l.stats(self.mean).is_some())
    }

    /// Mean and 1/√(var+eps) per channel of the grain, in f64.
    fn statistics(&self, x: &[f32], (n, c, len): (usize, usize, usize)) -> Vec<(f32, f32)> {
        let count = (n * len) as f64;
        (0..c)
            .map(|ch| {
                let planes = || (0..n).flat_map(move |i| &x[(i * c + ch) * len..(i * c + ch + 1) * len]);
                let mean = planes().fold(0.0, |a, v| a + f64::from(*v)) / count;
                let var = planes().fold(0.0, |a, v| a + (f64::from(*v) - mean) * (f64::from(*v) - mean)) / count;
                (mean as f32, (1.0 / libm::sqrt(var + f64::from(self.eps))) as f32)
            })
            .collect()
    }
}

impl Layer for BatchNorm {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, c, len) = self.dims(x)?;
        let (gamma, beta) = (pass.store.param(self.gamma), pass.store.param(self.beta));
        let input = host(x)?;
        let training = self.is_training(pass);
        let stats = if training {
            self.statistics(&input, (n, c, len))
        } else {
            let (mean, var) = (pass.store.buffer(self.mean), pass.store.buffer(self.var));
            mean.iter().zip(var).map(|(m, v)| (*m, 1.0 / (v + self.eps).sqrt())).collect()
        };
        let mut out = vec![0.0; input.len()];
        for (plane, (out, x)) in out.chunks_exact_mut(len).zip(input.chunks_exact(len)).enumerate() {
            let (mean, inv) = stats[plane % c];
            let (scale, shift) = (gamma[plane % c] * inv, beta[plane % c]);
            out.iter_mut().zip(x).for_each(|(o, x)| *o = (x - mean) * scale + shift);
        }
        if pass.records() {
            if training || pass.trains(self.gamma) {
                tape.push(Saved::Tensor(x.clone()));
            }
            tape.push(Saved::Values(stats.iter().flat_map(|(m, i)| [*m, *i]).collect()));
        }
        tensor(out, x.dims())
    }

    fn backward(
        &self,
        dy: &Tensor,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (n, c, len) = self.dims(dy)?;
        let stats = tape.pop_values()?;
        let training = self.is_training(pass);
        let x = if training || pass.trains(self.gamma) { Some(tape.pop_tensor()?) } else { None };
        let x = x.as_ref().map(host).transpose()?;
        let gamma = pass.store.param(self.gamma);
        let g = host(dy)?;
        let mut dx = vec![0.0; if need_dx { g.len() } else { 0 }];
        let count = (n * len) as f64;
        if let (true, Some(sums)) = (training, grads.stats(self.mean)) {
            sums[2 * c] += count as f32;
        }
        for ch in 0..c {
            let (mean, inv) = (stats[2 * ch], stats[2 * ch + 1]);
            let planes = (0..n).map(|i| (i * c + ch) * len);
            let (mut sum_dy, mut sum_dy_xhat) = (0.0f64, 0.0f64);
            for at in planes.clone() {
                let dy = &g[at..at + len];
                sum_dy += dy.iter().fold(0.0, |a, v| a + f64::from(*v));
                if let Some(x) = &x {
                    let products = dy.iter().zip(&x[at..at + len]);
                    sum_dy_xhat += products.fold(0.0, |a, (g, x)| a + f64::from(*g) * f64::from((x - mean) * inv));
                }
            }
            if let Some(slot) = grads.slot(self.gamma) {
                slot[ch] += sum_dy_xhat as f32;
            }
            if let Some(slot) = grads.slot(self.beta) {
                slot[ch] += sum_dy as f32;
            }
            if let (true, Some(x), Some(sums)) = (training, &x, grads.stats(self.mean)) {
                let r = f64::from(pass.store.buffer(self.mean)[ch]);
                let (mut a, mut q) = (0.0f64, 0.0f64);
                for at in planes.clone() {
                    for v in &x[at..at + len] {
                        let d = f64::from(*v) - r;
                        a += d;
                        q += d * d;
                    }
                }
                sums[ch] += a as f32;
                sums[c + ch] += q as f32;
            }
            if need_dx {
                let scale = gamma[ch] * inv;
                let (m1, m2) = ((sum_dy / count) as f32, (sum_dy_xhat / count) as f32);
                for at in planes {
                    let (dx, dy) = (&mut dx[at..at + len], &g[at..at + len]);
                    match &x {
                        Some(x) if training => {
                            for ((d, g), x) in dx.iter_mut().zip(dy).zip(&x[at..at + len]) {
                                *d = scale * (g - m1 - (x - mean) * inv * m2);
                            }
                        }
                        _ => dx.iter_mut().zip(dy).for_each(|(d, g)| *d = scale * g),
                    }
                }
            }
        }
        if need_dx { Ok(Some(tensor(dx, dy.dims())?)) } else { Ok(None) }
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("norm:{};", self.eps));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.gamma, self.beta]);
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        out.push((self.mean, self.var));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Layout, testing};

    #[test]
    fn gradients_are_those_of_finite_differences_in_every_mode() {
        for shape in [&[5, 3, 2, 2][..], &[6, 3]] {
            let mut b = Builder::new(1);
            let norm = b.norm("n", 3);
            b.store.values = vec![0.5, 1.5, -0.7, 0.1, 0.2, 0.3];
            b.store.buffer_values = vec![0.3, -0.2, 0.1, 1.5, 0.7, 2.0];
            testing::check_gradients(&norm, &b.store, shape);
            let affine_only = Layout::new(&b.store, &[norm.gamma, norm.beta], &[]);
            testing::check_gradients_of(&norm, &b.store, shape, &affine_only);
            testing::check_gradients_of(&norm, &b.store, shape, &Layout::new(&b.store, &[], &[]));
        }
    }

    #[test]
    fn running_statistics_are_those_of_pytorch() {
        // torch.nn.BatchNorm1d(1) fed [1, 2, 4]: mean 7/3, unbiased variance 7/3; running = 0.1·7/3, 0.9 + 0.1·7/3.
        let (mut mean, mut var) = (vec![0.0], vec![1.0]);
        update_running(&mut mean, &mut var, &[7.0, 21.0, 3.0]);
        assert!((mean[0] - 0.233_333_33).abs() < 1e-6 && (var[0] - 1.133_333_3).abs() < 1e-6);
    }

    #[test]
    fn sums_of_halves_add_up_to_the_sums_of_the_whole() {
        let mut b = Builder::new(1);
        let norm = b.norm("n", 2);
        let layout = Layout::new(&b.store, &[norm.gamma], &[norm.mean]);
        let pass = Pass { store: &b.store, layout: Some(&layout), dropout: None };
        let sums = |x: &Tensor| {
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            norm.forward(x, &pass, &mut tape).unwrap();
            norm.backward(x, &pass, &mut tape, &mut grads, false).unwrap();
            grads.stats(norm.mean).unwrap().to_vec()
        };
        let x = testing::input(&[6, 2, 3, 3]);
        let whole = sums(&x);
        let (a, b) =
            (sums(&x.narrow(0, 0, 2).unwrap().copy().unwrap()), sums(&x.narrow(0, 2, 4).unwrap().copy().unwrap()));
        for i in 0..5 {
            assert!((whole[i] - a[i] - b[i]).abs() < 1e-4, "{i}");
        }
    }
}
