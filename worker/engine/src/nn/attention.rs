//! Multi-head self-attention (Vaswani et al., 2017) over packed sequences: every row looks at the real rows of its own.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Act, Gradients, Layer, Linear, Mask, ParamId, Pass, Ragged, Saved, Tape, host, lanes, sum::add, tensor};
use crate::{
    Result,
    num::{
        gemm::{View, gemm},
        math,
        simd::vectorised,
    },
};

/// `out(softmax(q·kᵀ / √d)·v)` by head, for rows `[Σ lengths, c]`; with dropout of the probabilities.
#[derive(Debug)]
pub struct SelfAttention {
    /// Query, key and value; or one layer whose outputs are these three side by side.
    pub(super) projections: Vec<Linear>,
    pub(super) out: Linear,
    pub(super) heads: usize,
    pub(super) depth: usize,
    pub(super) drop: Mask,
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

/// Which of the projections.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// How three parts of `width` columns lie in one matrix each, or side by side in one.
#[derive(Clone, Copy)]
struct Parts {
    width: usize,
    stride: usize,
}

impl Parts {
    /// In which matrix a part is, and where its columns from `first` on begin.
    fn place(self, part: usize, first: usize) -> (usize, usize) {
        let columns = part * self.width + first;
        if self.stride > self.width { (0, columns) } else { (part, first) }
    }

    /// Columns of a part, row by row.
    fn view<'a>(self, from: &[&'a [f32]], part: usize, first: usize) -> View<'a> {
        let (matrix, at) = self.place(part, first);
        View { data: &from[matrix][at..], row: self.stride, col: 1 }
    }

    /// The same transposed.
    fn turned<'a>(self, from: &[&'a [f32]], part: usize, first: usize) -> View<'a> {
        let View { data, row, col } = self.view(from, part, first);
        View { data, row: col, col: row }
    }

    /// Columns of a part, to be written `stride` apart.
    fn write<'a>(self, to: &'a mut [&mut [f32]], part: usize, first: usize) -> &'a mut [f32] {
        let (matrix, at) = self.place(part, first);
        &mut to[matrix][at..]
    }
}

/// One sample's rows of each matrix.
fn rows_of<'a>(all: &[&'a [f32]], start: usize, t: usize, stride: usize) -> Vec<&'a [f32]> {
    all.iter().map(|m| &m[start * stride..(start + t) * stride]).collect()
}

impl SelfAttention {
    fn parts(&self) -> Parts {
        let width = self.heads * self.depth;
        Parts { width, stride: 3 * width / self.projections.len() }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }

    /// # Errors
    /// Rows that do not fit the lengths.
    pub fn forward(&self, x: &Tensor, ragged: &Ragged, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let draws = ragged.draws(pass);
        let by_row = &pass.with_draws(&draws);
        let made = self.projections.iter().map(|l| l.forward(x, by_row, tape)).collect::<Result<Vec<_>>>()?;
        let (parts, d, rows) = (self.parts(), self.depth, ragged.rows());
        let w = parts.width;
        let (mut out, mut notes) = (vec![0.0; rows * w], vec![0.0; rows * self.heads * 2]);
        {
            let guards = made.iter().map(host).collect::<Result<Vec<_>>>()?;
            let all: Vec<&[f32]> = guards.iter().map(|g| &**g).collect();
            let own = ragged.split(&mut out, w).into_iter().zip(ragged.split(&mut notes, self.heads * 2));
            let own = own.zip(self.drop.of(pass, ragged.lengths.len())?);
            let tasks: Vec<_> = own.zip(ragged.starts()).zip(&ragged.lengths).collect();
            tasks.into_par_iter().for_each(|((((out, notes), mut drops), start), &t)| {
                let own = rows_of(&all, start, t, parts.stride);
                let mut s = vec![0.0; t * t];
                for (h, notes) in notes.chunks_exact_mut(2 * t).enumerate() {
                    let first = h * d;
                    gemm(&mut s, t, parts.view(&own, QUERY, first), parts.turned(&own, KEY, first), (t, t, d), false);
                    softmax(&mut s, t, self.scale(), notes);
                    drops.iter_mut().for_each(|drops| drops.scale(&mut s));
                    gemm(&mut out[first..], w, View::rows(&s, t), parts.view(&own, VALUE, first), (t, d, t), false);
                }
            });
        }
        if pass.records() {
            // Probabilities are computed again from these: they would take more memory than all the rest.
            made.into_iter().for_each(|kept| tape.push(Saved::Tensor(kept)));
            tape.push(Saved::Values(notes));
        }
        self.out.forward(&tensor(out, &[rows, w])?, by_row, tape)
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
        let mut made = self.projections.iter().map(|_| tape.pop_tensor()).collect::<Result<Vec<_>>>()?;
        made.reverse();
        let (parts, d, rows) = (self.parts(), self.depth, ragged.rows());
        let (w, stride) = (parts.width, parts.stride);
        let mut slopes: Vec<Vec<f32>> = made.iter().map(|_| vec![0.0; rows * stride]).collect();
        {
            let guards = made.iter().map(host).collect::<Result<Vec<_>>>()?;
            let all: Vec<&[f32]> = guards.iter().map(|g| &**g).collect();
            let (g, notes) = (host(&dout)?, &notes);
            let g = &*g;
            let mut own: Vec<Vec<&mut [f32]>> = ragged.lengths.iter().map(|_| Vec::new()).collect();
            for slope in &mut slopes {
                own.iter_mut().zip(ragged.split(slope, stride)).for_each(|(own, part)| own.push(part));
            }
            let own = own.into_iter().zip(self.drop.of(pass, ragged.lengths.len())?);
            let tasks: Vec<_> = own.zip(ragged.starts()).zip(&ragged.lengths).collect();
            tasks.into_par_iter().for_each(|(((mut slopes, mut drops), start), &t)| {
                let own = rows_of(&all, start, t, stride);
                let g = &g[start * w..(start + t) * w];
                let notes = &notes[start * self.heads * 2..(start + t) * self.heads * 2];
                let (mut p, mut dp, mut mask) = (vec![0.0; t * t], vec![0.0; t * t], Vec::new());
                for (h, notes) in notes.chunks_exact(2 * t).enumerate() {
                    let first = h * d;
                    let g = View { data: &g[first..], row: w, col: 1 };
                    gemm(&mut p, t, parts.view(&own, QUERY, first), parts.turned(&own, KEY, first), (t, t, d), false);
                    again(&mut p, t, self.scale(), notes);
                    gemm(&mut dp, t, g, parts.turned(&own, VALUE, first), (t, t, d), false);
                    // What was dropped of the probabilities had no part in the output.
                    let shown = match &mut drops {
                        None => &p,
                        Some(drops) => {
                            mask.clear();
                            mask.resize(t * t, 1.0);
                            drops.scale(&mut mask);
                            dp.iter_mut().zip(&mask).for_each(|(d, m)| *d *= m);
                            mask.iter_mut().zip(&p).for_each(|(m, p)| *m *= p);
                            &mask
                        }
                    };
                    let dv = parts.write(&mut slopes, VALUE, first);
                    gemm(dv, stride, View::transposed(shown, t), g, (t, d, t), false);
                    through(&mut dp, &p, t, self.scale());
                    let dq = parts.write(&mut slopes, QUERY, first);
                    gemm(dq, stride, View::rows(&dp, t), parts.view(&own, KEY, first), (t, d, t), false);
                    let dk = parts.write(&mut slopes, KEY, first);
                    gemm(dk, stride, View::transposed(&dp, t), parts.view(&own, QUERY, first), (t, d, t), false);
                }
            });
        }
        drop(made);
        let mut dx: Option<Tensor> = None;
        // The tape goes backwards: value, key, query.
        for (linear, slope) in self.projections.iter().zip(slopes).rev() {
            let part = linear.backward(&tensor(slope, &[rows, stride])?, pass, tape, grads, need_dx)?;
            dx = match (dx, part) {
                (Some(a), Some(b)) => Some(add(&a, &b, Act::None)?),
                (None, part) => part,
                (a, None) => a,
            };
        }
        Ok(dx)
    }

    /// What its layers carry.
    pub(super) fn describe(&self, out: &mut String) {
        self.projections.iter().chain([&self.out]).for_each(|linear| linear.describe_part(out));
    }

    pub(super) fn params(&self, out: &mut Vec<ParamId>) {
        self.projections.iter().chain([&self.out]).for_each(|linear| linear.params(out));
    }
}
