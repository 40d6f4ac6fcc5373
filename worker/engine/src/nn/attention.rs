//! Multi-head self-attention (Vaswani et al., 2017) over packed sequences: every row looks at the real rows of its own.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Act, Gradients, Layer, Linear, ParamId, Pass, Ragged, Saved, Tape, host, lanes, sum::add, tensor};
use crate::{
    Result,
    num::{
        gemm::{View, gemm},
        math,
        simd::vectorised,
    },
};

/// `out(softmax(q·kᵀ / √d)·v)` by head, for rows `[Σ lengths, c]`.
#[derive(Debug)]
pub struct SelfAttention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) out: Linear,
    pub(super) heads: usize,
    pub(super) depth: usize,
}

vectorised! {
    /// `p = exp((s − max)·scale)`, and each row's largest score and inverse sum; rows are then scaled by it.
    fn softmax(s: &mut [f32], t: usize, scale: f32, notes: &mut [f32]) {
        for (row, note) in s.chunks_exact_mut(t).zip(notes.chunks_exact_mut(2)) {
            let mut most = row[0];
            row.iter().for_each(|v| most = if *v > most { *v } else { most });
            row.iter_mut().for_each(|v| *v = math::exp((*v - most) * scale));
            let inverse = 1.0 / lanes::sum(row);
            row.iter_mut().for_each(|v| *v *= inverse);
            note.copy_from_slice(&[most, inverse]);
        }
    }

    /// The same from scores and what was noted.
    fn again(s: &mut [f32], t: usize, scale: f32, notes: &[f32]) {
        for (row, note) in s.chunks_exact_mut(t).zip(notes.chunks_exact(2)) {
            let (most, inverse) = (note[0], note[1]);
            row.iter_mut().for_each(|v| *v = math::exp((*v - most) * scale) * inverse);
        }
    }

    /// `ds = p·(dp − Σ dp·p)·scale`, in place of `dp`.
    fn through(dp: &mut [f32], p: &[f32], t: usize, scale: f32) {
        for (dp, p) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
            let along = lanes::dot(dp, p);
            dp.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along) * scale);
        }
    }
}

/// Columns of one head of one sample: `t` rows, `width` apart.
fn head(rows: &[f32], first: usize, width: usize) -> View<'_> {
    View { data: &rows[first..], row: width, col: 1 }
}

fn head_transposed(rows: &[f32], first: usize, width: usize) -> View<'_> {
    View { data: &rows[first..], row: 1, col: width }
}

impl SelfAttention {
    fn width(&self) -> usize {
        self.heads * self.depth
    }

    fn scale(&self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }

    /// # Errors
    /// Rows that do not fit the lengths.
    pub fn forward(&self, x: &Tensor, ragged: &Ragged, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let q = self.query.forward(x, pass, tape)?;
        let k = self.key.forward(x, pass, tape)?;
        let v = self.value.forward(x, pass, tape)?;
        let (w, d, rows) = (self.width(), self.depth, ragged.rows());
        let (mut out, mut notes) = (vec![0.0; rows * w], vec![0.0; rows * self.heads * 2]);
        {
            let (q, k, v) = (host(&q)?, host(&k)?, host(&v)?);
            let (q, k, v) = (&*q, &*k, &*v);
            let own = ragged.split(&mut out, w).into_iter().zip(ragged.split(&mut notes, self.heads * 2));
            let tasks: Vec<_> = own.zip(ragged.starts()).zip(&ragged.lengths).collect();
            tasks.into_par_iter().for_each(|(((out, notes), start), &t)| {
                let part = start * w..(start + t) * w;
                let (q, k, v) = (&q[part.clone()], &k[part.clone()], &v[part]);
                let mut s = vec![0.0; t * t];
                for (h, notes) in notes.chunks_exact_mut(2 * t).enumerate() {
                    gemm(&mut s, t, head(q, h * d, w), head_transposed(k, h * d, w), (t, t, d), false);
                    softmax(&mut s, t, self.scale(), notes);
                    gemm(&mut out[h * d..], w, View::rows(&s, t), head(v, h * d, w), (t, d, t), false);
                }
            });
        }
        if pass.records() {
            // Probabilities are computed again from these: they would take more memory than all the rest.
            for kept in [q, k, v] {
                tape.push(Saved::Tensor(kept));
            }
            tape.push(Saved::Values(notes));
        }
        self.out.forward(&tensor(out, &[rows, w])?, pass, tape)
    }

    /// # Errors
    /// A tape that was not written by [`SelfAttention::forward`].
    pub fn backward(
        &self,
        dy: &Tensor,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let dout = self.out.backward(dy, pass, tape, grads, true)?;
        let dout = dout.ok_or_else(|| crate::Error::Internal("a linear layer gave no gradient".into()))?;
        let notes = tape.pop_values()?;
        let (v, k, q) = (tape.pop_tensor()?, tape.pop_tensor()?, tape.pop_tensor()?);
        let (w, d, rows) = (self.width(), self.depth, ragged.rows());
        let mut slopes = [vec![0.0; rows * w], vec![0.0; rows * w], vec![0.0; rows * w]];
        {
            let (q, k, v, g) = (host(&q)?, host(&k)?, host(&v)?, host(&dout)?);
            let (q, k, v, g, notes) = (&*q, &*k, &*v, &*g, &notes);
            let [dq, dk, dv] = &mut slopes;
            let own = ragged.split(dq, w).into_iter().zip(ragged.split(dk, w)).zip(ragged.split(dv, w));
            let tasks: Vec<_> = own.zip(ragged.starts()).zip(&ragged.lengths).collect();
            tasks.into_par_iter().for_each(|((((dq, dk), dv), start), &t)| {
                let part = start * w..(start + t) * w;
                let (q, k, v, g) = (&q[part.clone()], &k[part.clone()], &v[part.clone()], &g[part]);
                let notes = &notes[start * self.heads * 2..(start + t) * self.heads * 2];
                let (mut p, mut dp) = (vec![0.0; t * t], vec![0.0; t * t]);
                for (h, notes) in notes.chunks_exact(2 * t).enumerate() {
                    let first = h * d;
                    gemm(&mut p, t, head(q, first, w), head_transposed(k, first, w), (t, t, d), false);
                    again(&mut p, t, self.scale(), notes);
                    gemm(&mut dv[first..], w, View::transposed(&p, t), head(g, first, w), (t, d, t), false);
                    gemm(&mut dp, t, head(g, first, w), head_transposed(v, first, w), (t, t, d), false);
                    through(&mut dp, &p, t, self.scale());
                    gemm(&mut dq[first..], w, View::rows(&dp, t), head(k, first, w), (t, d, t), false);
                    gemm(&mut dk[first..], w, View::transposed(&dp, t), head(q, first, w), (t, d, t), false);
                }
            });
        }
        drop((q, k, v));
        let mut dx: Option<Tensor> = None;
        // The tape goes backwards: value, key, query.
        for (linear, slope) in [&self.query, &self.key, &self.value].into_iter().zip(slopes).rev() {
            let part = linear.backward(&tensor(slope, &[rows, w])?, pass, tape, grads, need_dx)?;
            dx = match (dx, part) {
                (Some(a), Some(b)) => Some(add(&a, &b, Act::None)?),
                (None, part) => part,
                (a, None) => a,
            };
        }
        Ok(dx)
    }

    pub(super) fn params(&self, out: &mut Vec<ParamId>) {
        for linear in [&self.query, &self.key, &self.value, &self.out] {
            linear.params(out);
        }
    }
}
