//! Attention on the GPU that its rows lie on: heads apart, `[samples·heads, t, depth]`, and one product for all of them, or for
//! those of as many samples as their scores have room for.

use std::{ops::Range, sync::Arc};

use half::bf16;
use tl_proto::spec::Precision;

use super::{KEY, QUERY, SelfAttention, VALUE};
use crate::{
    Result,
    gpu::{
        self, Device, Fault, Mixed, Placed, either,
        ops::{self, Dropped, Element, Heads, Math, Matrix, Softmax},
    },
    nn::{Array, Pass, Ragged, Saved, Tape},
};

/// A batch of matrices.
type Matrices<T = f32> = gpu::Array<T>;

/// Every head of some samples of one batch.
struct Apart<'a> {
    math: Math<'a>,
    heads: Heads,
    /// Heads of all these samples.
    all: usize,
    /// What is dropped of their probabilities.
    dropped: Option<Dropped>,
}

impl Apart<'_> {
    /// Heads, from the columns of a matrix that begin with `first`.
    fn split<T: Element>(&self, of: &Mixed, first: usize) -> Result<Matrices<T>> {
        Ok(either!(of, |of| ops::split_heads(self.math.device, of.array(), &self.heads, first))?)
    }

    /// Products of `m` rows and `n` columns, of `k` numbers each.
    fn times<T: Element>(
        &self,
        left: Matrix<'_, T>,
        right: Matrix<'_, T>,
        (m, n, k): (usize, usize, usize),
    ) -> Result<Matrices<T>, Fault> {
        ops::multiplied(self.math, (left, right), (self.all, m, n, k), &[self.all, m, n])
    }

    /// Products of all rows of two heads.
    fn scores<T: Element>(&self, left: &Matrices<T>, right: &Matrices<T>, depth: usize) -> Result<Matrices<T>, Fault> {
        let t = self.heads.longest();
        self.times(Matrix::of(left), Matrix::of(right).turned(), (t, t, depth))
    }

    fn softmax(&self, scale: f32) -> Softmax<'_> {
        Softmax { lengths: self.heads.lengths(), scale, dropped: self.dropped.as_ref() }
    }
}

/// Runs of samples whose scores take so much room at most, or of one sample. What they are is part of the result.
fn runs(lengths: &[usize], heads: usize, room: usize) -> Vec<Range<usize>> {
    let (mut runs, mut longest) = (Vec::<Range<usize>>::new(), 0);
    for (sample, length) in lengths.iter().enumerate() {
        let t = longest.max(*length);
        match runs.last_mut() {
            Some(run) if (run.len() + 1) * heads * t * t * size_of::<f32>() <= room => {
                (run.end, longest) = (sample + 1, t);
            }
            _ => {
                runs.push(sample..sample + 1);
                longest = *length;
            }
        }
    }
    runs
}

impl SelfAttention {
    fn runs(&self, device: &Device, ragged: &Ragged) -> Vec<Range<usize>> {
        runs(&ragged.lengths, self.heads, device.room())
    }

    fn apart<'a>(
        &self,
        device: &'a Device,
        ragged: &Ragged,
        which: Range<usize>,
        pass: &Pass<'_>,
    ) -> Result<Apart<'a>> {
        let shape = (self.heads, self.depth);
        Ok(Apart {
            math: Math { device, tf32: pass.precision() == Precision::Tf32 },
            heads: Heads::some(device, &ragged.lengths, which.clone(), shape)?,
            all: which.len() * self.heads,
            dropped: self.drop.placed_of(device, pass, ragged.lengths.len(), which)?,
        })
    }

    /// Queries, keys and values.
    fn split<T: Element>(&self, made: &[Array], apart: &Apart<'_>) -> Result<[Matrices<T>; 3]> {
        let part = |which: usize| {
            let (matrix, first) = self.parts().place(which, 0);
            apart.split(made[matrix].mixed()?, first)
        };
        Ok([part(QUERY)?, part(KEY)?, part(VALUE)?])
    }

    pub(super) fn placed_look(
        &self,
        device: &Arc<Device>,
        made: Vec<Array>,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
    ) -> Result<Mixed> {
        let (out, notes) = match pass.precision() {
            Precision::F32 | Precision::Tf32 => self.look_apart::<f32>(device, &made, ragged, pass)?,
            Precision::Bf16 => self.look_apart::<bf16>(device, &made, ragged, pass)?,
        };
        if pass.records() {
            // As on the host, probabilities are computed again.
            made.into_iter().for_each(|kept| tape.push(Saved::Array(kept)));
            notes.into_iter().for_each(|notes| tape.push(Saved::Array(Placed::new(device.clone(), notes).into())));
        }
        Ok(out)
    }

    /// What heads pick, side by side, and what the softmax has noted of each run of samples.
    fn look_apart<T: Element>(
        &self,
        device: &Arc<Device>,
        made: &[Array],
        ragged: &Ragged,
        pass: &Pass<'_>,
    ) -> Result<(Mixed, Vec<Matrices>)> {
        // Runs have every sample, and heads every column.
        let (mut out, mut all) = (device.fresh(&[ragged.rows(), self.parts().width])?, Vec::new());
        for which in self.runs(device, ragged) {
            let apart = self.apart(device, ragged, which, pass)?;
            let (d, t) = (self.depth, apart.heads.longest());
            let [query, key, value] = self.split::<T>(made, &apart)?;
            let mut shown = apart.scores(&query, &key, d)?;
            all.push(ops::softmax(device, &mut shown, &apart.softmax(self.scale()))?);
            let heads = apart.times(Matrix::of(&shown), Matrix::of(&value), (t, d, t))?;
            ops::join_heads(device, &heads, &apart.heads, &mut out, 0)?;
        }
        Ok((Placed::new(device.clone(), out).into(), all))
    }

    pub(super) fn placed_slopes(
        &self,
        dout: &Mixed,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
    ) -> Result<Vec<Array>> {
        let mut notes =
            self.runs(dout.device(), ragged).iter().map(|_| tape.pop_array()).collect::<Result<Vec<_>>>()?;
        notes.reverse();
        let mut made = self.projections.iter().map(|_| tape.pop_array()).collect::<Result<Vec<_>>>()?;
        made.reverse();
        match pass.precision() {
            Precision::F32 | Precision::Tf32 => self.slopes_apart::<f32>(dout, &made, &notes, ragged, pass),
            Precision::Bf16 => self.slopes_apart::<bf16>(dout, &made, &notes, ragged, pass),
        }
    }

    /// The slopes of what the projections gave.
    fn slopes_apart<T: Element>(
        &self,
        dout: &Mixed,
        made: &[Array],
        notes: &[Array],
        ragged: &Ragged,
        pass: &Pass<'_>,
    ) -> Result<Vec<Array>> {
        let (device, parts) = (dout.device(), self.parts());
        let shape = [ragged.rows(), parts.stride];
        // Written as what heads pick is: three parts, side by side or apart.
        let mut slopes = made.iter().map(|_| device.fresh(&shape)).collect::<Result<Vec<Matrices<T>>, Fault>>()?;
        for (which, notes) in self.runs(device, ragged).into_iter().zip(notes) {
            let apart = self.apart(device, ragged, which, pass)?;
            let (d, t) = (self.depth, apart.heads.longest());
            let [query, key, value] = self.split::<T>(made, &apart)?;
            let g = apart.split::<T>(dout, 0)?;
            let (mut shown, mut ds) = (apart.scores(&query, &key, d)?, apart.scores(&g, &value, d)?);
            let (notes, how) = (notes.placed()?, apart.softmax(self.scale()));
            ops::softmax_back(device, [&mut shown, &mut ds], notes.array(), &how)?;
            let dvalue = apart.times(Matrix::of(&shown).turned(), Matrix::of(&g), (t, d, t))?;
            drop(shown);
            let dquery = apart.times(Matrix::of(&ds), Matrix::of(&key), (t, d, t))?;
            let dkey = apart.times(Matrix::of(&ds).turned(), Matrix::of(&query), (t, d, t))?;
            for (part, heads) in [dquery, dkey, dvalue].iter().enumerate() {
                let (matrix, first) = parts.place(part, 0);
                ops::join_heads(device, heads, &apart.heads, &mut slopes[matrix], first)?;
            }
        }
        Ok(slopes.into_iter().map(|slope| Array::from(Placed::new(device.clone(), slope))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_together_while_the_square_of_the_longest_has_room_for_all() {
        // Two heads of five columns take 200 bytes.
        assert_eq!(runs(&[5, 5, 5], 2, 600).len(), 1);
        assert_eq!(runs(&[5, 5, 5], 2, 599), [0..2, 2..3]);
        // A short one gets the room of a long one, before it or behind it; and one alone has what it needs.
        assert_eq!(runs(&[1, 5, 1, 50, 1, 5], 2, 400), [0..2, 2..3, 3..4, 4..6]);
        assert!(runs(&[], 2, 400).is_empty());
    }
}
