//! Softmax of attention's scores `[samples·heads, t, t]`, of which a sample uses as many rows and columns as it is long. In
//! place: a product has given what comes in, and takes what goes out; either type stays what it is.

use super::{Dropped, Element, element::of_type};
use crate::gpu::{
    Array, Device, Fault,
    launch::{launch, quads, small},
};

/// How scores become what a product takes.
pub struct Softmax<'a> {
    /// How long each sample is.
    pub lengths: &'a Array<u32>,
    /// What scores are multiplied with.
    pub scale: f32,
    /// What is dropped of the probabilities.
    pub dropped: Option<&'a Dropped>,
}

impl Softmax<'_> {
    /// Heads, and side of the squares.
    fn square<T>(&self, s: &Array<T>) -> Result<(u32, u32), Fault> {
        let samples = self.lengths.count();
        match *s.shape() {
            [all, t, u] if t == u && all % samples == 0 => Ok((small(all / samples)?, small(t)?)),
            _ => Err(Fault::shape(format!("scores of {:?} for {samples} samples", s.shape()))),
        }
    }

    /// What is dropped, as kernels are told it.
    fn drops(&self, device: &Device) -> Result<Dropped, Fault> {
        let Some(dropped) = self.dropped else { return Dropped::nothing(device) };
        dropped.draws.expect_count(self.lengths.count())?;
        Ok(dropped.clone())
    }
}

/// `exp((s − max)·scale) / Σ` of each row, without what is dropped of that; zero beyond the end of a sample. Gives each row's
/// largest score and inverse sum, `[samples·heads·t, 2]`.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn softmax<T: Element>(device: &Device, s: &mut Array<T>, how: &Softmax<'_>) -> Result<Array, Fault> {
    let ((heads, t), rows, dropped) = (how.square(s)?, s.rows(), how.drops(device)?);
    let (mut notes, [key0, key1]) = (device.fresh::<f32>(&[rows, 2])?, dropped.key);
    launch!(
        device,
        Softmax,
        of_type!(T, "softmax"),
        quads(rows)?,
        &mut s.data,
        &mut notes.data,
        &how.lengths.data,
        &dropped.draws.data,
        &heads,
        &t,
        &how.scale,
        &(rows as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(notes)
}

/// The way back, from scores and what was noted of them, and the slopes `dp` of what [`softmax`] has made of them: the scores
/// become that again, and the slopes become `p·(dp − Σ dp·p)·scale`, where `dp` is without what was dropped.
///
/// # Errors
/// Other shapes.
pub fn softmax_back<T: Element>(
    device: &Device,
    [s, dp]: [&mut Array<T>; 2],
    notes: &Array,
    how: &Softmax<'_>,
) -> Result<(), Fault> {
    let ((heads, t), rows, dropped) = (how.square(s)?, s.rows(), how.drops(device)?);
    dp.expect(s.shape())?;
    notes.expect(&[rows, 2])?;
    let [key0, key1] = dropped.key;
    launch!(
        device,
        Softmax,
        of_type!(T, "softmax_back"),
        quads(rows)?,
        &mut s.data,
        &mut dp.data,
        &notes.data,
        &how.lengths.data,
        &dropped.draws.data,
        &heads,
        &t,
        &how.scale,
        &(rows as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(())
}
