//! Sequences of different lengths in one tensor, and the layers that turn them into features.
//!
//! A *framed* tensor is `[n, 1 + t, c]`: the first row of a sample is a header, whose first number says how many of the
//! `t` rows that follow are real; the others are zero. Layers work on the real rows of all samples packed together, so
//! that padding costs nothing and a sample's bits do not depend on how far its neighbours reach. Frames can be cut out
//! and kept by sample, as cached features are.

#[cfg(feature = "cuda")]
mod placed;

use super::{Array, Gradients, Layer, Pass, Saved, Tape, array, host};
use crate::{Error, Result};

/// Bits of the place of a row in its sample.
const ROW_BITS: u32 = 16;

/// Bits of a draw's number that rows of it keep: what tells draws apart lies in these.
pub const DRAW_BITS: u32 = u64::BITS - ROW_BITS;

/// How the packed rows belong to samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Ragged {
    /// Rows of each sample, at least one.
    pub lengths: Vec<usize>,
    /// Rows that a frame has room for, without its header.
    pub room: usize,
}

impl Ragged {
    /// The real rows of a framed tensor, packed: `[Σ lengths, c]`.
    ///
    /// # Errors
    /// Something that is no frame.
    pub fn unpack(x: &Array) -> Result<(Self, Array)> {
        let (n, rows, c) = x.dims3()?;
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let x = &x.full()?;
            let ragged = Self::of(x)?;
            let packed = ragged.pack_placed(x)?;
            return Ok((ragged, packed.into()));
        }
        let values = host(x)?;
        let headers = values.chunks_exact((rows * c).max(1)).map(|frame| frame[0]);
        let ragged = Self::said(headers, rows.saturating_sub(1))?;
        if ragged.lengths.len() != n {
            return Err(Error::Internal("a sequence has no header".into()));
        }
        let packed = ragged.gather(&values, c);
        let shape = [ragged.rows(), c];
        Ok((ragged, array(packed, &shape)?))
    }

    /// What headers say.
    fn said(headers: impl Iterator<Item = f32>, room: usize) -> Result<Self> {
        let lengths = headers.map(|header| {
            let length = header as usize;
            let whole = length as f32 == header && (1..=room).contains(&length);
            if whole { Ok(length) } else { Err(Error::Internal("a sequence has no header".into())) }
        });
        Ok(Self { lengths: lengths.collect::<Result<_>>()?, room })
    }

    /// Packed rows.
    pub fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// A draw for each packed row, made of that of its sample and its place in it: for layers that take a row for a
    /// sample, so that what they drop does not depend on what else is in the batch. Empty where nothing is dropped.
    pub(crate) fn draws(&self, pass: &Pass<'_>) -> Vec<u64> {
        let draws = pass.dropout.map(|d| d.draws).unwrap_or_default();
        draws.iter().zip(&self.lengths).flat_map(|(d, t)| (0..*t as u64).map(move |row| d << ROW_BITS | row)).collect()
    }

    fn gather(&self, framed: &[f32], c: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows() * c);
        for (frame, length) in framed.chunks_exact((self.room + 1) * c).zip(&self.lengths) {
            out.extend_from_slice(&frame[c..(length + 1) * c]);
        }
        out
    }

    /// The packed rows of a gradient whose shape is that of a frame.
    ///
    /// # Errors
    /// A tensor of another shape.
    pub fn pack(&self, framed: &Array) -> Result<Array> {
        #[cfg(feature = "cuda")]
        if let Array::Device(framed) = framed {
            return self.pack_placed(&framed.full()?).map(Array::from);
        }
        let c = framed.dim(2)?;
        array(self.gather(&host(framed)?, c), &[self.rows(), c])
    }

    /// A framed tensor of packed rows `[Σ lengths, c]`; `header` is false for gradients.
    ///
    /// # Errors
    /// Another number of rows.
    pub fn frame(&self, packed: &Array, header: bool) -> Result<Array> {
        let (rows, c) = packed.dims2()?;
        if rows != self.rows() {
            return Err(Error::Internal(format!("{rows} rows given for sequences of {}", self.rows())));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(packed) = packed {
            return self.frame_placed(&packed.full()?, header).map(Array::from);
        }
        let values = host(packed)?;
        let mut out = vec![0.0; self.lengths.len() * (self.room + 1) * c];
        let mut at = 0;
        for (frame, length) in out.chunks_exact_mut((self.room + 1) * c).zip(&self.lengths) {
            if header {
                frame[0] = *length as f32;
            }
            frame[c..(length + 1) * c].copy_from_slice(&values[at..at + length * c]);
            at += length * c;
        }
        array(out, &[self.lengths.len(), self.room + 1, c])
    }

    /// One slice per sample of packed rows of `width` numbers.
    pub fn split<'a>(&self, mut packed: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let cut = |length: &usize| {
            let (own, rest) = std::mem::take(&mut packed).split_at_mut(length * width);
            packed = rest;
            own
        };
        self.lengths.iter().map(cut).collect()
    }

    /// The first packed row of each sample.
    pub fn starts(&self) -> Vec<usize> {
        let next = |at: &mut usize, length: &usize| {
            *at += length;
            Some(*at - length)
        };
        self.lengths.iter().scan(0, next).collect()
    }

    pub(super) fn save(&self, pass: &Pass<'_>, tape: &mut Tape) {
        if pass.records() {
            tape.push(Saved::Shape(std::iter::once(self.room).chain(self.lengths.iter().copied()).collect()));
        }
    }

    pub(super) fn saved(tape: &mut Tape) -> Result<Self> {
        let shape = tape.pop_shape()?;
        let (room, lengths) = shape.split_first().ok_or_else(|| Error::Internal("an empty tape".into()))?;
        Ok(Self { room: *room, lengths: lengths.to_vec() })
    }
}

/// One vector of features from the rows of a sequence: framed `[n, 1 + t, c]` to `[n, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The mean over real rows (Reimers and Gurevych, 2019).
    Mean,
    /// The first row: that of `[CLS]` (Devlin et al., 2018).
    First,
}

impl Layer for Pool {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let x = &x.full()?;
            let ragged = Ragged::of(x)?;
            ragged.save(pass, tape);
            return self.placed(x, &ragged).map(Array::from);
        }
        let (ragged, packed) = Ragged::unpack(x)?;
        let c = packed.dim(1)?;
        let rows = host(&packed)?;
        let mut out = vec![0.0; ragged.lengths.len() * c];
        for ((out, length), start) in out.chunks_exact_mut(c).zip(&ragged.lengths).zip(ragged.starts()) {
            let own = &rows[start * c..(start + length) * c];
            match self {
                Self::First => out.copy_from_slice(&own[..c]),
                Self::Mean => {
                    own.chunks_exact(c).for_each(|row| out.iter_mut().zip(row).for_each(|(o, v)| *o += v));
                    out.iter_mut().for_each(|o| *o /= *length as f32);
                }
            }
        }
        ragged.save(pass, tape);
        array(out, &[ragged.lengths.len(), c])
    }

    fn backward(
        &self,
        dy: &Array,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let ragged = Ragged::saved(tape)?;
        if !need_dx {
            return Ok(None);
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return Ok(Some(self.placed_backward(&dy.full()?, &ragged)?.into()));
        }
        let c = dy.dim(1)?;
        let g = host(dy)?;
        let mut dx = vec![0.0; ragged.rows() * c];
        for (own, dy) in ragged.split(&mut dx, c).into_iter().zip(g.chunks_exact(c)) {
            let length = (own.len() / c) as f32;
            match self {
                Self::First => own[..c].copy_from_slice(dy),
                Self::Mean => {
                    own.chunks_exact_mut(c).for_each(|row| row.iter_mut().zip(dy).for_each(|(d, g)| *d = g / length));
                }
            }
        }
        Ok(Some(ragged.frame(&array(dx, &[ragged.rows(), c])?, false)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("pool:{self:?};"));
    }
}

#[cfg(test)]
pub(super) mod testing {
    use candle_core::Tensor;

    use super::*;
    use crate::nn::{DropoutDraw, Layout, OnHost, ParamId, Store, tensor, testing};

    /// Lets a layer of frames be tested on plain `[n, t, c]`: it is given sequences of these lengths.
    pub struct Framed<'a>(pub &'a dyn Layer, pub &'a [usize]);

    impl Framed<'_> {
        fn ragged(&self, x: &Array) -> Ragged {
            Ragged { lengths: self.1.to_vec(), room: x.dim(1).unwrap() }
        }

        fn frames(&self, x: &Array) -> Result<Array> {
            let (n, t, c) = x.dims3()?;
            let pad = tensor(vec![0.0; n * c], &[n, 1, c])?;
            let framed = Tensor::cat(&[&pad, x.on_host()?], 1)?.reshape((n, t + 1, c))?.contiguous()?;
            let ragged = self.ragged(x);
            ragged.frame(&ragged.pack(&framed.into())?, true)
        }
    }

    impl Layer for Framed<'_> {
        fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
            self.0.forward(&self.frames(x)?, pass, tape)
        }

        fn backward(
            &self,
            dy: &Array,
            pass: &Pass<'_>,
            tape: &mut Tape,
            grads: &mut Gradients,
            need_dx: bool,
        ) -> Result<Option<Array>> {
            let dx = self.0.backward(dy, pass, tape, grads, need_dx)?;
            Ok(dx.map(|d| testing::part(&d, 1, 1, d.dims()[1] - 1)))
        }

        fn describe(&self, out: &mut String) {
            self.0.describe(out);
        }

        fn params(&self, out: &mut Vec<ParamId>) {
            self.0.params(out);
        }
    }

    /// Gradients under dropout, and that a sample has the same bits alone as beside others whatever is dropped.
    pub fn check_dropped(layer: &dyn Layer, store: &Store, c: usize, draw: DropoutDraw<'_>) {
        let lengths = [3, 1, 5, 4];
        let mut params = Vec::new();
        layer.params(&mut params);
        let layout = Layout::new(store, &params, &[]);
        testing::check_gradients_under(&Framed(layer, &lengths), store, &[4, 5, c], &layout, Some(draw));
        let x = testing::array(&[4, 5, c]);
        let run = |x: &Array, lengths: &[usize], draws: &[u64]| {
            let pass = Pass { dropout: Some(DropoutDraw { draws, ..draw }), ..Pass::eval(store) };
            let y = Framed(layer, lengths).forward(x, &pass, &mut Tape::default()).unwrap();
            host(&y).unwrap().to_vec()
        };
        let all = run(&x, &lengths, draw.draws);
        assert_ne!(all, run(&x, &lengths, &[1, 2, 3, 4]));
        for (i, length) in lengths.into_iter().enumerate() {
            let own = testing::part(&testing::part(&x, 0, i, 1), 1, 0, length);
            let alone = run(&own, &[length], &draw.draws[i..=i]);
            assert_eq!(alone[..], all[i * 6 * c..][..alone.len()]);
        }
    }

    /// That two layers with parameters of their own compute the same to the last digits.
    pub fn same(a: &dyn Layer, a_store: &Store, b: &dyn Layer, b_store: &Store, c: usize) {
        let lengths = [3, 1, 5, 4];
        let x = testing::array(&[4, 5, c]);
        let run = |layer: &dyn Layer, store: &Store| {
            Framed(layer, &lengths).forward(&x, &Pass::eval(store), &mut Tape::default()).unwrap()
        };
        testing::assert_close(&run(a, a_store), &run(b, b_store), 1e-5);
    }

    /// Gradients, and that a sample has the same bits alone, without padding, as beside longer ones.
    pub fn check(layer: &dyn Layer, store: &Store, c: usize) {
        let lengths = [3, 1, 5, 4];
        testing::check_gradients(&Framed(layer, &lengths), store, &[4, 5, c]);
        let run = |x: &Array, lengths: &[usize]| {
            Framed(layer, lengths).forward(x, &Pass::eval(store), &mut Tape::default()).unwrap()
        };
        let x = testing::array(&[4, 5, c]);
        let all = run(&x, &lengths);
        for (i, length) in lengths.into_iter().enumerate() {
            let own = testing::part(&testing::part(&x, 0, i, 1), 1, 0, length);
            let alone = host(&run(&own, &[length])).unwrap().to_vec();
            let beside = host(&testing::part(&all, 0, i, 1)).unwrap().to_vec();
            assert_eq!(alone[..], beside[..alone.len()]);
            assert!(beside[alone.len()..].iter().all(|v| *v == 0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Builder;

    #[test]
    fn gradients_of_pools_are_those_of_finite_differences_and_padding_does_not_show() {
        let store = Builder::new(1).store;
        testing::check(&Pool::Mean, &store, 3);
        testing::check(&Pool::First, &store, 3);
    }

    #[test]
    fn a_tensor_without_headers_is_refused() {
        for first in [0.0, 1.5, 4.0, f32::NAN] {
            let x = array([vec![first], vec![0.0; 7]].concat(), &[1, 4, 2]).unwrap();
            assert!(Ragged::unpack(&x).is_err());
        }
    }
}
