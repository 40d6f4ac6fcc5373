//! Dropout inside blocks of sequences: what is dropped of a sample is a function of its draw, and of the place within it.
//!
//! A mask is drawn again in backward instead of being kept: it would take as much memory as what it is laid over.

#[cfg(feature = "cuda")]
use std::ops::Range;

use rayon::prelude::*;

use super::{Array, DropoutDraw, Pass, Ragged, array, host};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Device, Fault, Mixed, Placed, either,
    ops::{self, Dropped},
};
use crate::{Error, Result, num::rng::Stream};

/// Zeroes a number with probability `p` and scales the others by `1/(1−p)` (Srivastava et al., 2014).
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Probability.
    pub p: f32,
    /// Which dropout of the network this is.
    pub site: u32,
}

/// The random numbers of one sample at one mask, from its first element on.
#[derive(Clone)]
pub(super) struct Drops {
    stream: Stream,
    p: f32,
}

impl Drops {
    /// The same from the element `first` on.
    pub(super) fn from(&self, first: usize) -> Self {
        Self { stream: self.stream.clone().starting_at(first as u64), p: self.p }
    }

    /// Multiplies the next numbers of the sample by theirs of the mask.
    pub(super) fn scale(&mut self, values: &mut [f32]) {
        let keep = 1.0 / (1.0 - self.p);
        // A product, so that a NaN stays one.
        values.iter_mut().for_each(|v| *v *= if self.stream.uniform() < self.p { 0.0 } else { keep });
    }
}

impl Mask {
    /// Drops nothing.
    pub const NONE: Self = Self { p: 0.0, site: 0 };

    /// Whether it drops anything in this pass.
    pub(super) fn acts(&self, pass: &Pass<'_>) -> bool {
        self.p > 0.0 && pass.dropout.is_some()
    }

    /// The draws of as many samples; `None` where nothing is dropped.
    fn draw<'a>(&self, pass: &Pass<'a>, samples: usize) -> Result<Option<DropoutDraw<'a>>> {
        let draw = pass.dropout.filter(|_| self.p > 0.0);
        if draw.is_some_and(|draw| draw.draws.len() != samples) {
            return Err(Error::Internal("dropout was given another number of samples than draws".into()));
        }
        Ok(draw)
    }

    /// What is dropped of each of `samples`; `None` where nothing is.
    ///
    /// # Errors
    /// A pass with draws for another number of samples.
    pub(super) fn of(&self, pass: &Pass<'_>, samples: usize) -> Result<Vec<Option<Drops>>> {
        let Some(draw) = self.draw(pass, samples)? else { return Ok((0..samples).map(|_| None).collect()) };
        Ok(draw.draws.iter().map(|id| Some(Drops { stream: draw.rng.stream(*id, self.site), p: self.p })).collect())
    }

    /// Packed rows `[Σ lengths, c]` under the mask: values on the way forward, gradients on the way back.
    ///
    /// # Errors
    /// As [`Mask::of`]; rows that do not fit the lengths.
    pub(super) fn rows(&self, x: Array, ragged: &Ragged, pass: &Pass<'_>) -> Result<Array> {
        if !self.acts(pass) {
            return Ok(x);
        }
        let (rows, c) = x.dims2()?;
        if rows != ragged.rows() {
            return Err(Error::Internal(format!("{rows} rows given for sequences of {}", ragged.rows())));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(x, c, ragged, pass).map(Array::from);
        }
        let mut values = host(&x)?.to_vec();
        let own = ragged.split(&mut values, c).into_iter().zip(self.of(pass, ragged.lengths.len())?);
        own.collect::<Vec<_>>().into_par_iter().for_each(|(own, drops)| {
            drops.into_iter().for_each(|mut drops| drops.scale(own));
        });
        array(values, &[rows, c])
    }
}

#[cfg(feature = "cuda")]
impl Mask {
    /// What is dropped of some of `samples`, as operations of a GPU take it; `None` where nothing is.
    ///
    /// # Errors
    /// As [`Mask::of`]; a full memory.
    pub(super) fn placed_of(
        &self,
        device: &Device,
        pass: &Pass<'_>,
        samples: usize,
        which: Range<usize>,
    ) -> Result<Option<Dropped>> {
        let Some(draw) = self.draw(pass, samples)? else { return Ok(None) };
        let draws = draw.draws.get(which).unwrap_or_default();
        Ok(Some(Dropped::new(device, draw.rng, self.site, self.p, draws)?))
    }

    fn placed(&self, x: Mixed, c: usize, ragged: &Ragged, pass: &Pass<'_>) -> Result<Mixed> {
        let samples = ragged.lengths.len();
        let Some(dropped) = self.placed_of(x.device(), pass, samples, 0..samples)? else { return Ok(x) };
        let elements: Vec<usize> = ragged.lengths.iter().map(|length| length * c).collect();
        Ok(left(x, &dropped, &elements)?.into())
    }
}

/// What is left of samples of so many elements, in f32: where they lie if they lie so and nobody else has them.
#[cfg(feature = "cuda")]
fn left(x: Mixed, dropped: &Dropped, elements: &[usize]) -> Result<Placed, Fault> {
    if matches!(&x, Mixed::Full(full) if !full.numbers().is_shared()) {
        return x.into_full()?.changed(|device, x| ops::dropout(device, x, dropped, elements));
    }
    either!(&x, |x| x.made(|device, x| ops::dropout_from(device, x, dropped, elements)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, testing},
        num::rng::Philox,
    };

    #[test]
    fn what_is_dropped_of_a_sample_depends_on_its_draw_alone_and_the_mean_stays() {
        let store = Builder::new(1).store;
        let mask = Mask { p: 0.25, site: 3 };
        let run = |lengths: &[usize], room: usize, draws: &[u64]| {
            let draw = DropoutDraw { rng: Philox::new(1, "dropout"), draws };
            let pass = Pass { dropout: Some(draw), ..Pass::eval(&store) };
            let ragged = Ragged { lengths: lengths.to_vec(), room };
            let ones = array(vec![1.0; ragged.rows() * 7], &[ragged.rows(), 7]).unwrap();
            mask.rows(ones, &ragged, &pass)
        };
        let all = run(&[30, 200, 40], 200, &[8, 9, 10]).unwrap();
        let alone = run(&[200], 250, &[9]).unwrap();
        testing::assert_close(&alone, &testing::part(&all, 0, 30, 200), 0.0);
        let values = host(&all).unwrap().to_vec();
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        assert!((zeros - 0.25).abs() < 0.04, "{zeros}");
        assert!(values.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
        assert!(run(&[1, 2], 2, &[8]).is_err());
    }
}
