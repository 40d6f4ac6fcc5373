//! Dropout: the masks of `nn::Mask`, `nn::Dropout` and `nn::DropPath`, bit for bit.

use std::sync::Arc;

use super::{Element, Taken, element::of_type};
use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{each, fours, launch, small},
    },
    num::rng::Philox,
};

/// What is dropped: a family of random numbers, the place in the network, a probability, and a draw for each sample.
pub struct Dropped {
    key: [u32; 2],
    site: u32,
    p: f32,
    keep: f32,
    draws: Arc<Array<u64>>,
}

impl Dropped {
    /// For samples of these draws.
    ///
    /// # Errors
    /// No sample, or a full memory.
    pub fn new(device: &Device, rng: Philox, site: u32, p: f32, draws: &[u64]) -> Result<Self, Fault> {
        Ok(Self { key: rng.key(), site, p, keep: 1.0 / (1.0 - p), draws: device.longs(draws)? })
    }
}

/// In place, of samples one after the other, each of as many elements as it has: values on the way forward, gradients on the
/// way back.
///
/// # Errors
/// Other lengths, a full memory, or a GPU that has failed.
pub fn dropout(device: &Device, x: &mut Array, dropped: &Dropped, elements: &[usize]) -> Result<(), Fault> {
    dropped.draws.expect_count(elements.len())?;
    x.expect_count(elements.iter().sum())?;
    let ends: Vec<u64> = elements
        .iter()
        .scan(0, |end, n| {
            *end += *n as u64;
            Some(*end)
        })
        .collect();
    let ends = device.longs(&ends)?;
    let (n, [key0, key1]) = (x.count(), dropped.key);
    launch!(
        device,
        Dropout,
        "dropout",
        fours(n),
        &mut x.data,
        &dropped.draws.data,
        &ends.data,
        &small(elements.len())?,
        &(n as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(())
}

impl Dropped {
    /// Heads and columns of attention's probabilities `[samples·heads, t, t]`.
    fn squares(&self, x: &Array, lengths: &Array<u32>) -> Result<(u32, u32), Fault> {
        let (samples, t, n) = (lengths.count(), x.width(), x.count());
        self.draws.expect_count(samples)?;
        let heads = n / (t * t) / samples;
        x.expect(&[samples * heads, t, t])?;
        Ok((small(heads)?, small(t)?))
    }
}

/// In place, of attention's probabilities `[samples·heads, t, t]`.
///
/// # Errors
/// Other shapes.
pub fn dropout_scores(device: &Device, x: &mut Array, dropped: &Dropped, lengths: &Array<u32>) -> Result<(), Fault> {
    let ((heads, t), n, [key0, key1]) = (dropped.squares(x, lengths)?, x.count(), dropped.key);
    launch!(
        device,
        Dropout,
        "dropout_scores",
        fours(n),
        &mut x.data,
        &dropped.draws.data,
        &lengths.data,
        &heads,
        &t,
        &(n as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(())
}

/// Attention's probabilities as a product takes them, without what is dropped of them.
///
/// # Errors
/// Other shapes.
pub fn shown_scores<'a, T: Element>(
    device: &Device,
    x: &'a Array,
    dropped: Option<&Dropped>,
    lengths: &Array<u32>,
) -> Result<Taken<'a, T>, Fault> {
    let Some(dropped) = dropped else { return T::taken(device, x) };
    let ((heads, t), n, [key0, key1]) = (dropped.squares(x, lengths)?, x.count(), dropped.key);
    let mut y = device.fresh::<T>(x.shape())?;
    launch!(
        device,
        Dropout,
        of_type!(T, "shown_scores"),
        fours(n),
        &mut y.data,
        &x.data,
        &dropped.draws.data,
        &lengths.data,
        &heads,
        &t,
        &(n as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(Taken::Made(y))
}

/// Whole samples: the first dimension.
///
/// # Errors
/// Another number of samples.
pub fn drop_path<T: Element>(device: &Device, x: &Array<T>, dropped: &Dropped) -> Result<Array<T>, Fault> {
    let (n, samples) = (x.count(), dropped.draws.count());
    if x.shape().first() != Some(&samples) {
        return Err(Fault::shape(format!("{samples} draws for {:?}", x.shape())));
    }
    let mut y = device.fresh::<T>(x.shape())?;
    let [key0, key1] = dropped.key;
    launch!(
        device,
        Dropout,
        of_type!(T, "drop_path"),
        each(n),
        &mut y.data,
        &x.data,
        &dropped.draws.data,
        &(n as u64),
        &((n / samples) as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(y)
}
