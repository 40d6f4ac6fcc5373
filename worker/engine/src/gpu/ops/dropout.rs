//! Dropout: the masks of `nn::Mask`, `nn::Dropout` and `nn::DropPath`, bit for bit.

use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{each, launch, small},
    },
    num::rng::Philox,
};

/// What is dropped: a family of random numbers, the place in the network, a probability, and a draw for each sample.
pub struct Dropped {
    key: [u32; 2],
    site: u32,
    p: f32,
    keep: f32,
    draws: Array<u64>,
}

impl Dropped {
    /// For samples of these draws.
    ///
    /// # Errors
    /// No sample, or a full memory.
    pub fn new(device: &Device, rng: Philox, site: u32, p: f32, draws: &[u64]) -> Result<Self, Fault> {
        Ok(Self { key: rng.key(), site, p, keep: 1.0 / (1.0 - p), draws: device.upload(draws, &[draws.len()])? })
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
    let ends = device.upload(&ends, &[ends.len()])?;
    let (n, [key0, key1]) = (x.count(), dropped.key);
    launch!(
        device,
        Dropout,
        "dropout",
        each(n),
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

/// In place, of attention's probabilities `[samples·heads, t, t]`.
///
/// # Errors
/// Other shapes.
pub fn dropout_scores(device: &Device, x: &mut Array, dropped: &Dropped, lengths: &Array<u32>) -> Result<(), Fault> {
    let (samples, t, n) = (lengths.count(), x.width(), x.count());
    dropped.draws.expect_count(samples)?;
    let heads = n / (t * t) / samples;
    x.expect(&[samples * heads, t, t])?;
    let [key0, key1] = dropped.key;
    launch!(
        device,
        Dropout,
        "dropout_scores",
        each(n),
        &mut x.data,
        &dropped.draws.data,
        &lengths.data,
        &small(heads)?,
        &small(t)?,
        &(n as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(())
}

/// Whole samples: the first dimension.
///
/// # Errors
/// Another number of samples.
pub fn drop_path(device: &Device, x: &Array, dropped: &Dropped) -> Result<Array, Fault> {
    let (n, samples) = (x.count(), dropped.draws.count());
    if x.shape().first() != Some(&samples) {
        return Err(Fault::shape(format!("{samples} draws for {:?}", x.shape())));
    }
    let mut y = device.fresh::<f32>(x.shape())?;
    let [key0, key1] = dropped.key;
    launch!(
        device,
        Dropout,
        "drop_path",
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
