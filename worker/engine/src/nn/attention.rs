//! Multi-head self-attention (Vaswani et al., 2017) over packed sequences: every row looks at the real rows of its own.

#[cfg(feature = "cuda")]
mod placed;

use rayon::prelude::*;

use super::{
    Act, Array, Gradients, Layer, Linear, Mask, ParamId, Pass, Ragged, Saved, Tape, array, host, lanes, mask::Drops,
    precision::Rounds, sum::add,
};
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
    pub(super) fn softmax(s: &mut [f32], t: usize, scale: f32, notes: &mut [f32]) {
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
    pub(super) fn through(dp: &mut [f32], p: &[f32], t: usize, scale: f32) {
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
}

/// What heads have computed apart, `[head][row][depth]` of each sample one after the other, into the columns from `first`
/// on of rows that are `stride` apart.
fn side_by_side(heads: &[f32], depth: usize, ragged: &Ragged, out: &mut [f32], stride: usize, first: usize) {
    let width = heads.len() / ragged.rows().max(1);
    let tasks: Vec<_> = ragged.split(out, stride).into_iter().zip(ragged.starts()).zip(&ragged.lengths).collect();
    tasks.into_par_iter().for_each(|((out, start), &t)| {
        for (h, head) in heads[start * width..(start + t) * width].chunks_exact(t * depth).enumerate() {
            let rows = out.chunks_exact_mut(stride).zip(head.chunks_exact(depth));
            rows.for_each(|(row, own)| row[first + h * depth..][..depth].copy_from_slice(own));
        }
    });
}

/// One head of one sample.
struct Task {
    head: usize,
    /// First row of the sample, and its rows.
    start: usize,
    t: usize,
    drops: Option<Drops>,
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

    /// Every head of every sample: they are computed apart, so that few samples keep many threads busy too. Each has at
    /// most three matrices of scores in memory while it is computed, and waits for no other thread: it would take up another
    /// one meanwhile.
    fn tasks(&self, ragged: &Ragged, pass: &Pass<'_>) -> Result<Vec<Task>> {
        let drops = self.drop.of(pass, ragged.lengths.len())?;
        let samples = ragged.starts().into_iter().zip(&ragged.lengths).zip(drops);
        let heads = |((start, &t), drops): ((usize, &usize), Option<Drops>)| {
            // A sample has one sequence of random numbers, which goes on from head to head.
            (0..self.heads).map(move |head| {
                let drops = drops.as_ref().map(|d| d.from(head * t * t));
                Task { head, start, t, drops }
            })
        };
        Ok(samples.flat_map(heads).collect())
    }

    /// A slice for each of [`SelfAttention::tasks`] of `width` numbers a row.
    fn cut<'a>(&self, mut all: &'a mut [f32], ragged: &Ragged, width: usize) -> Vec<&'a mut [f32]> {
        let heads = ragged.lengths.iter().flat_map(|t| std::iter::repeat_n(t * width, self.heads));
        let cut = |len| {
            let (own, rest) = std::mem::take(&mut all).split_at_mut(len);
            all = rest;
            own
        };
        heads.map(cut).collect()
    }

    /// # Errors
    /// Rows that do not fit the lengths.
    pub fn forward(&self, x: &Array, ragged: &Ragged, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let draws = ragged.draws(pass);
        let by_row = &pass.with_draws(&draws);
        let made = self.projections.iter().map(|l| l.forward(x, by_row, tape)).collect::<Result<Vec<_>>>()?;
        let seen = self.look(made, ragged, pass, tape)?;
        self.out.forward(&seen, by_row, tape)
    }

    /// What the heads give of queries, keys and values, side by side.
    fn look(&self, made: Vec<Array>, ragged: &Ragged, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        #[cfg(feature = "cuda")]
        if let Some(Array::Device(first)) = made.first() {
            let device = first.device().clone();
            return self.placed_look(&device, made, ragged, pass, tape).map(Array::from);
        }
        let (parts, d, rows) = (self.parts(), self.depth, ragged.rows());
        let w = parts.width;
        let (mut heads, mut notes) = (vec![0.0; rows * w], vec![0.0; rows * self.heads * 2]);
        let precision = pass.precision();
        {
            let guards = made.iter().map(host).collect::<Result<Vec<_>>>()?;
            let operands: Vec<_> = guards.iter().map(|g| precision.operand(g)).collect();
            let all: Vec<&[f32]> = operands.iter().map(|o| &**o).collect();
            let own = self.cut(&mut heads, ragged, d).into_iter().zip(self.cut(&mut notes, ragged, 2));
            let tasks: Vec<_> = self.tasks(ragged, pass)?.into_iter().zip(own).collect();
            tasks.into_par_iter().for_each(|(Task { head, start, t, mut drops }, (out, notes))| {
                let (own, first) = (rows_of(&all, start, t, parts.stride), head * d);
                let mut s = vec![0.0; t * t];
                gemm(&mut s, t, parts.view(&own, QUERY, first), parts.turned(&own, KEY, first), (t, t, d), false);
                precision.round_here(&mut s);
                softmax(&mut s, t, self.scale(), notes);
                drops.iter_mut().for_each(|drops| drops.scale(&mut s));
                precision.take_here(&mut s);
                gemm(out, d, View::rows(&s, t), parts.view(&own, VALUE, first), (t, d, t), false);
            });
        }
        let mut out = vec![0.0; rows * w];
        side_by_side(&heads, d, ragged, &mut out, w, 0);
        drop(heads);
        if pass.records() {
            // Probabilities are computed again from these: they would take more memory than all the rest.
            made.into_iter().for_each(|kept| tape.push(Saved::Array(kept)));
            tape.push(Saved::Values(notes));
        }
        array(precision.product(out), &[rows, w])
    }

    /// # Errors
    /// A tape that was not written by [`SelfAttention::forward`].
    pub fn backward(
        &self,
        dy: &Array,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let draws = ragged.draws(pass);
        let by_row = &pass.with_draws(&draws);
        let dout = self.out.backward(dy, by_row, tape, grads, true)?;
        let dout = dout.ok_or_else(|| crate::Error::Internal("a linear layer gave no gradient".into()))?;
        let slopes = self.slopes(&dout, ragged, pass, tape)?;
        let mut dx: Option<Array> = None;
        // The tape goes backwards: value, key, query.
        for (linear, slope) in self.projections.iter().zip(slopes).rev() {
            let part = linear.backward(&slope, by_row, tape, grads, need_dx)?;
            dx = match (dx, part) {
                (Some(a), Some(b)) => Some(add(&a, &b, Act::None)?),
                (None, part) => part,
                (a, None) => a,
            };
        }
        Ok(dx)
    }

    /// The gradients of what the projections gave.
    fn slopes(&self, dout: &Array, ragged: &Ragged, pass: &Pass<'_>, tape: &mut Tape) -> Result<Vec<Array>> {
        #[cfg(feature = "cuda")]
        if let Array::Device(dout) = dout {
            return self.placed_slopes(dout, ragged, pass, tape);
        }
        let notes = tape.pop_values()?;
        let mut made = self.projections.iter().map(|_| tape.pop_array()).collect::<Result<Vec<_>>>()?;
        made.reverse();
        let (parts, d, rows) = (self.parts(), self.depth, ragged.rows());
        let (w, stride) = (parts.width, parts.stride);
        let precision = pass.precision();
        let mut heads: [Vec<f32>; 3] = std::array::from_fn(|_| vec![0.0; rows * w]);
        {
            let guards = made.iter().map(host).collect::<Result<Vec<_>>>()?;
            let operands: Vec<_> = guards.iter().map(|g| precision.operand(g)).collect();
            let all: Vec<&[f32]> = operands.iter().map(|o| &**o).collect();
            let (g, notes) = (host(dout)?, &notes);
            let g = precision.operand(&g);
            let g = &*g;
            let [query, key, value] = heads.each_mut().map(|part| self.cut(part, ragged, d));
            let own = query.into_iter().zip(key).zip(value);
            let tasks: Vec<_> = self.tasks(ragged, pass)?.into_iter().zip(own).collect();
            tasks.into_par_iter().for_each(|(Task { head, start, t, drops }, ((dq, dk), dv))| {
                let (own, first) = (rows_of(&all, start, t, stride), head * d);
                let g = View { data: &g[start * w..(start + t) * w][first..], row: w, col: 1 };
                let notes = &notes[(start * self.heads + head * t) * 2..][..2 * t];
                let (mut p, mut dp, mut shown) = (vec![0.0; t * t], vec![0.0; t * t], Vec::new());
                gemm(&mut p, t, parts.view(&own, QUERY, first), parts.turned(&own, KEY, first), (t, t, d), false);
                precision.round_here(&mut p);
                again(&mut p, t, self.scale(), notes);
                gemm(&mut dp, t, g, parts.turned(&own, VALUE, first), (t, t, d), false);
                precision.round_here(&mut dp);
                // What was dropped of the probabilities had no part in the output.
                if let Some(mut drops) = drops {
                    shown.resize(t * t, 1.0);
                    drops.scale(&mut shown);
                    dp.iter_mut().zip(&shown).for_each(|(d, m)| *d *= m);
                    shown.iter_mut().zip(&p).for_each(|(m, p)| *m *= p);
                } else if !precision.is_f32() {
                    shown.extend(&p);
                }
                precision.take_here(&mut shown);
                let shown = if shown.is_empty() { &p } else { &shown };
                gemm(dv, d, View::transposed(shown, t), g, (t, d, t), false);
                through(&mut dp, &p, t, self.scale());
                precision.take_here(&mut dp);
                gemm(dq, d, View::rows(&dp, t), parts.view(&own, KEY, first), (t, d, t), false);
                gemm(dk, d, View::transposed(&dp, t), parts.view(&own, QUERY, first), (t, d, t), false);
            });
        }
        let mut slopes: Vec<Vec<f32>> = made.iter().map(|_| vec![0.0; rows * stride]).collect();
        for (part, heads) in heads.into_iter().enumerate() {
            let (matrix, first) = parts.place(part, 0);
            side_by_side(&heads, d, ragged, &mut slopes[matrix], stride, first);
        }
        slopes.into_iter().map(|slope| array(precision.product(slope), &[rows, stride])).collect()
    }

    /// What its layers carry.
    pub(super) fn describe(&self, out: &mut String) {
        self.projections.iter().chain([&self.out]).for_each(|linear| linear.describe_part(out));
    }

    pub(super) fn params(&self, out: &mut Vec<ParamId>) {
        self.projections.iter().chain([&self.out]).for_each(|linear| linear.params(out));
    }
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::Precision;

    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, Layout, testing},
        num::{pool, rng::Philox},
    };

    #[test]
    fn bits_do_not_depend_on_threads_nor_on_other_samples() {
        let drop = Mask { p: 0.3, site: 4 };
        let precisions = [Precision::F32, Precision::Tf32, Precision::Bf16];
        for (fused, precision) in [false, true].into_iter().flat_map(|fused| precisions.map(|p| (fused, p))) {
            let mut b = Builder::new(3);
            let layer = match fused {
                true => b.attention_fused(["qkv", "o"], 6, (3, 4), drop),
                false => b.attention(["q", "k", "v", "o"], 6, (3, 4), drop),
            };
            b.store.values.iter_mut().for_each(|v| *v *= 3.0);
            b.store.precision = precision;
            let mut params = Vec::new();
            layer.params(&mut params);
            let layout = Layout::new(&b.store, &params, &[]);
            let lengths = [5, 150, 1, 33];
            let x = testing::array(&[189, 6]);
            let run = |samples: std::ops::Range<usize>, threads| {
                let draws: Vec<u64> = samples.clone().map(|i| 11 + i as u64).collect();
                let dropout = Some(DropoutDraw { rng: Philox::new(5, "dropout"), draws: &draws });
                let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&b.store) };
                let ragged = Ragged { lengths: lengths[samples.clone()].to_vec(), room: 150 };
                let first = lengths[..samples.start].iter().sum::<usize>();
                let x = testing::part(&x, 0, first, ragged.rows());
                pool::build(threads).install(|| {
                    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
                    let y = layer.forward(&x, &ragged, &pass, &mut tape).unwrap();
                    let dx = layer.backward(&x, &ragged, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
                    [host(&y).unwrap().to_vec(), host(&dx).unwrap().to_vec(), grads.flat]
                })
            };
            let whole = run(0..4, 1);
            assert!(run(0..4, 2) == whole && run(0..4, 3) == whole, "fused: {fused}, {precision}");
            let alone = run(1..2, 2);
            for (alone, all) in alone[..2].iter().zip(&whole) {
                assert!(alone[..] == all[5 * 6..155 * 6], "fused: {fused}, {precision}");
            }
        }
    }
}
