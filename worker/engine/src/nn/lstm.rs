//! Long short-term memory (Hochreiter and Schmidhuber, 1997) with PyTorch's tensors, over framed sequences.

#[cfg(feature = "cuda")]
mod placed;

use rayon::prelude::*;
use tl_proto::spec::Precision;

use super::{Array, Gradients, Layer, ParamId, Pass, Ragged, Saved, Tape, Way, array, host, precision::Rounds, rows};
use crate::{
    Error, Result,
    num::{
        gemm::{self, Packed, View},
        math,
        simd::vectorised,
    },
};

/// Gates in the order input, forget, cell, output; state and memory begin at zero.
#[derive(Debug)]
pub struct Lstm {
    pub(super) wi: ParamId,
    pub(super) wh: ParamId,
    pub(super) bi: ParamId,
    pub(super) bh: ParamId,
    pub(super) input: usize,
    pub(super) hidden: usize,
    /// Whether only the state after the last real row is given: `[n, hidden]` instead of a frame.
    pub last: bool,
}

vectorised! {
    /// One time step of one sample: `gates` (4h) become activated ones, `c` and `h` the new memory and state.
    pub(super) fn step(gates: &mut [f32], c: &mut [f32], h: &mut [f32]) {
        let w = c.len();
        let (i, rest) = gates.split_at_mut(w);
        let (f, rest) = rest.split_at_mut(w);
        let (g, o) = rest.split_at_mut(w);
        for j in 0..w {
            i[j] = math::sigmoid(i[j]);
            f[j] = math::sigmoid(f[j]);
            g[j] = math::tanh(g[j]);
            o[j] = math::sigmoid(o[j]);
            c[j] = f[j] * c[j] + i[j] * g[j];
            h[j] = o[j] * math::tanh(c[j]);
        }
    }

    /// The same backwards: `gates` become slopes of what the gates were given, `dc` that of the memory before.
    pub(super) fn back(gates: &mut [f32], c: &[f32], before: &[f32], dh: &[f32], dc: &mut [f32]) {
        let w = c.len();
        let (i, rest) = gates.split_at_mut(w);
        let (f, rest) = rest.split_at_mut(w);
        let (g, o) = rest.split_at_mut(w);
        for j in 0..w {
            let t = math::tanh(c[j]);
            let d = dc[j] + dh[j] * o[j] * (1.0 - t * t);
            let (vi, vf, vg, vo) = (i[j], f[j], g[j], o[j]);
            i[j] = d * vg * vi * (1.0 - vi);
            f[j] = d * before[j] * vf * (1.0 - vf);
            g[j] = d * vi * (1.0 - vg * vg);
            o[j] = dh[j] * t * vo * (1.0 - vo);
            dc[j] = d * vf;
        }
    }
}

/// `now += state · recurrent`, for rows of `n` numbers. What is rounded is the product alone, before it is added.
fn add_product(now: &mut [f32], state: &[f32], recurrent: &Packed, n: usize, precision: Precision) {
    if precision.is_f32() {
        return gemm::rows_times(now, state, recurrent, n, true);
    }
    let product = precision.product(gemm::rows_product(&precision.operand(state), recurrent, n));
    now.iter_mut().zip(&product).for_each(|(v, p)| *v += p);
}

/// Packed rows by time: at each step the samples that still go on, longest first, so that those are the first ones.
struct Times {
    starts: Vec<usize>,
    lengths: Vec<usize>,
}

impl Times {
    fn of(ragged: &Ragged) -> Self {
        let starts = ragged.starts();
        let mut order: Vec<usize> = (0..starts.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(ragged.lengths[*i]), *i));
        Self {
            starts: order.iter().map(|i| starts[*i]).collect(),
            lengths: order.iter().map(|i| ragged.lengths[*i]).collect(),
        }
    }

    fn steps(&self) -> usize {
        self.lengths.first().copied().unwrap_or(0)
    }

    /// Packed rows of the samples that have a row at `time`.
    fn rows(&self, time: usize) -> Vec<usize> {
        let going = self.lengths.iter().take_while(|l| **l > time);
        going.zip(&self.starts).map(|(_, start)| start + time).collect()
    }
}

impl Lstm {
    /// Rows of the state before each row; zeros before the first.
    fn before(ragged: &Ragged, states: &[f32], w: usize) -> Vec<f32> {
        let mut out = vec![0.0; states.len()];
        for (own, start) in ragged.split(&mut out, w).into_iter().zip(ragged.starts()) {
            let kept = own.len() - w;
            own[w..].copy_from_slice(&states[start * w..start * w + kept]);
        }
        out
    }
}

impl Layer for Lstm {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        if x.dim(2)? != self.input {
            return Err(Error::Internal(format!("{} inputs expected, given {:?}", self.input, x.dims())));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(&x.full()?, pass, tape).map(Array::from);
        }
        let (ragged, packed) = Ragged::unpack(x)?;
        let (total, w) = (ragged.rows(), self.hidden);
        let precision = pass.precision();
        let turned = |k: usize| move |m: &[f32]| Packed::of(View::transposed(m, k), k, 4 * w);
        let weights = pass.packed(self.wi, Way::Forward, turned(self.input));
        let mut gates = gemm::rows_product(&precision.operand(&host(&packed)?), &weights, 4 * w);
        let (bi, bh) = (pass.outside(self.bi), pass.outside(self.bh));
        let bias: Vec<f32> = bi.iter().zip(bh.iter()).map(|(a, b)| a + b).collect();
        gates.par_chunks_mut(4 * w).for_each(|row| row.iter_mut().zip(&bias).for_each(|(g, b)| *g += b));
        precision.round(&mut gates);
        let recurrent = pass.packed(self.wh, Way::Forward, turned(w));
        let times = Times::of(&ragged);
        let n = ragged.lengths.len();
        let (mut state, mut memory) = (vec![0.0; n * w], vec![0.0; n * w]);
        let (mut states, mut memories) = (vec![0.0; total * w], vec![0.0; total * w]);
        let mut now = vec![0.0; n * 4 * w];
        for time in 0..times.steps() {
            let rows = times.rows(time);
            let m = rows.len();
            let now = &mut now[..m * 4 * w];
            for (now, row) in now.chunks_exact_mut(4 * w).zip(&rows) {
                now.copy_from_slice(&gates[row * 4 * w..(row + 1) * 4 * w]);
            }
            add_product(now, &state[..m * w], &recurrent, 4 * w, precision);
            let all = now.chunks_exact_mut(4 * w).zip(memory.chunks_exact_mut(w)).zip(state.chunks_exact_mut(w));
            for (((now, memory), state), row) in all.zip(&rows) {
                step(now, memory, state);
                gates[row * 4 * w..(row + 1) * 4 * w].copy_from_slice(now);
                memories[row * w..(row + 1) * w].copy_from_slice(memory);
                states[row * w..(row + 1) * w].copy_from_slice(state);
            }
        }
        let out = if self.last {
            let ends = ragged.starts().into_iter().zip(&ragged.lengths).map(|(s, l)| s + l - 1);
            array(ends.flat_map(|end| states[end * w..(end + 1) * w].iter().copied()).collect(), &[n, w])?
        } else {
            ragged.frame(&array(states.clone(), &[total, w])?, true)?
        };
        if pass.records() {
            tape.push(Saved::Array(packed));
            tape.push(Saved::Values(gates));
            tape.push(Saved::Values(memories));
            tape.push(Saved::Values(states));
        }
        ragged.save(pass, tape);
        Ok(out)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let ragged = Ragged::saved(tape)?;
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return Ok(self.placed_backward(&dy.full()?, &ragged, pass, tape, grads, need_dx)?.map(Array::from));
        }
        let (states, memories, mut gates) = (tape.pop_values()?, tape.pop_values()?, tape.pop_values()?);
        let packed = tape.pop_array()?;
        let (total, n, w) = (ragged.rows(), ragged.lengths.len(), self.hidden);
        let mut outer = vec![0.0; total * w];
        if self.last {
            let g = host(dy)?;
            for ((own, length), g) in
                ragged.split(&mut outer, w).into_iter().zip(&ragged.lengths).zip(g.chunks_exact(w))
            {
                own[(length - 1) * w..].copy_from_slice(g);
            }
        } else {
            outer.copy_from_slice(&host(&ragged.pack(dy)?)?);
        }
        let precision = pass.precision();
        let as_it_lies = |k: usize| move |m: &[f32]| Packed::of(View::rows(m, k), 4 * w, k);
        let recurrent = pass.packed(self.wh, Way::Back, as_it_lies(w));
        let times = Times::of(&ragged);
        let (before, earlier) = (Self::before(&ragged, &states, w), Self::before(&ragged, &memories, w));
        let (mut dh, mut dc) = (vec![0.0; n * w], vec![0.0; n * w]);
        let mut now = vec![0.0; n * 4 * w];
        for time in (0..times.steps()).rev() {
            let rows = times.rows(time);
            let m = rows.len();
            for (i, row) in rows.iter().enumerate() {
                let (part, dh) = (row * w..(row + 1) * w, &mut dh[i * w..(i + 1) * w]);
                dh.iter_mut().zip(&outer[part.clone()]).for_each(|(d, g)| *d += g);
                let own = &mut gates[row * 4 * w..(row + 1) * 4 * w];
                back(own, &memories[part.clone()], &earlier[part], dh, &mut dc[i * w..(i + 1) * w]);
                let taken = &mut now[i * 4 * w..(i + 1) * 4 * w];
                taken.copy_from_slice(own);
                precision.take(taken);
            }
            gemm::rows_times(&mut dh[..m * w], &now[..m * 4 * w], &recurrent, w, false);
            precision.round(&mut dh[..m * w]);
        }
        let (x, slopes) = (host(&packed)?, precision.operand(&gates));
        if let Some(dw) = grads.slot(self.wi) {
            gemm::outer(dw, &slopes, &precision.operand(&x), (total, 4 * w, self.input));
        }
        if let Some(dw) = grads.slot(self.wh) {
            gemm::outer(dw, &slopes, &precision.operand(&before), (total, 4 * w, w));
        }
        for bias in [self.bi, self.bh] {
            if let Some(db) = grads.slot(bias) {
                rows::add_sums(precision.summed(&gates, &slopes), 4 * w, db);
            }
        }
        if !need_dx {
            return Ok(None);
        }
        let weights = pass.packed(self.wi, Way::Back, as_it_lies(self.input));
        let dx = precision.product(gemm::rows_product(&slopes, &weights, self.input));
        Ok(Some(ragged.frame(&array(dx, &[total, self.input])?, false)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("lstm:{}:{};", self.hidden, self.last));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.wi, self.wh, self.bi, self.bh]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, sequence::testing};

    #[test]
    fn gradients_through_time_are_those_of_finite_differences_and_padding_does_not_show() {
        for last in [false, true] {
            let mut b = Builder::new(5);
            let layer = b.lstm("l", 3, 5, last);
            if last {
                crate::nn::testing::check_gradients(&testing::Framed(&layer, &[3, 1, 5, 4]), &b.store, &[4, 5, 3]);
            } else {
                testing::check(&layer, &b.store, 3);
            }
        }
    }

    #[test]
    fn the_last_state_is_that_of_the_last_real_row() {
        let mut b = Builder::new(5);
        let mut layer = b.lstm("l", 3, 5, false);
        let lengths = [2, 4];
        let x = crate::nn::testing::array(&[2, 4, 3]);
        let run = |layer: &Lstm| {
            testing::Framed(layer, &lengths).forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap()
        };
        let all = host(&run(&layer)).unwrap().to_vec();
        layer.last = true;
        let last = host(&run(&layer)).unwrap().to_vec();
        assert_eq!(last[..5], all[2 * 5..3 * 5]);
        assert_eq!(last[5..], all[(5 + 4) * 5..]);
    }
}
