//! Dropout: the masks of `nn::Mask`, `nn::Dropout` and `nn::DropPath`, bit for bit.

use std::sync::Arc;

use cudarc::driver::LaunchConfig;

use super::{Element, element::of_type};
use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{fours, launch, small, words},
    },
    num::rng::Philox,
};

/// Samples that have blocks of their own, at most; the grid goes on to further ones.
const SAMPLES: u32 = 1 << 12;

/// What is dropped: a family of random numbers, the place in the network, a probability, and a draw for each sample.
#[derive(Clone)]
pub struct Dropped {
    pub(super) key: [u32; 2],
    pub(super) site: u32,
    pub(super) p: f32,
    pub(super) keep: f32,
    pub(super) draws: Arc<Array<u64>>,
}

impl Dropped {
    /// For samples of these draws.
    ///
    /// # Errors
    /// No sample, or a full memory.
    pub fn new(device: &Device, rng: Philox, site: u32, p: f32, draws: &[u64]) -> Result<Self, Fault> {
        Ok(Self { key: rng.key(), site, p, keep: 1.0 / (1.0 - p), draws: device.longs(draws)? })
    }

    /// Of no sample, for kernels that may be told to drop nothing.
    pub(super) fn nothing(device: &Device) -> Result<Self, Fault> {
        Ok(Self { key: [0; 2], site: 0, p: 0.0, keep: 1.0, draws: device.longs(&[0])? })
    }

    /// Where each sample ends, of samples of so many elements that are `n` together.
    fn ends(&self, device: &Device, elements: &[usize], n: usize) -> Result<Arc<Array<u64>>, Fault> {
        self.draws.expect_count(elements.len())?;
        let ends: Vec<u64> = elements
            .iter()
            .scan(0, |end, n| {
                *end += *n as u64;
                Some(*end)
            })
            .collect();
        match ends.last() {
            Some(end) if *end == n as u64 => device.longs(&ends),
            _ => Err(Fault::shape(format!("{n} numbers for samples of {elements:?}"))),
        }
    }
}

/// In place, of samples one after the other, each of as many elements as it has: values on the way forward, gradients on the
/// way back.
///
/// # Errors
/// Other lengths, a full memory, or a GPU that has failed.
pub fn dropout(device: &Device, x: &mut Array, dropped: &Dropped, elements: &[usize]) -> Result<(), Fault> {
    let (n, [key0, key1]) = (x.count(), dropped.key);
    let ends = dropped.ends(device, elements, n)?;
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

/// The same in memory of its own: f32 of either type, and nothing is rounded.
///
/// # Errors
/// As [`dropout`].
pub fn dropout_from<T: Element>(
    device: &Device,
    x: &Array<T>,
    dropped: &Dropped,
    elements: &[usize],
) -> Result<Array, Fault> {
    let (n, [key0, key1]) = (x.count(), dropped.key);
    let ends = dropped.ends(device, elements, n)?;
    let mut y = device.fresh::<f32>(x.shape())?;
    launch!(
        device,
        Dropout,
        of_type!(T, "dropout_from"),
        fours(n),
        &mut y.data,
        &x.data,
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
    Ok(y)
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
    let (size, [key0, key1]) = (n / samples, dropped.key);
    let (grid, samples) = (words::<T>(size), small(samples)?);
    launch!(
        device,
        Dropout,
        of_type!(T, "drop_path"),
        LaunchConfig { grid_dim: (grid.grid_dim.0, samples.min(SAMPLES), 1), ..grid },
        &mut y.data,
        &x.data,
        &dropped.draws.data,
        &samples,
        &(size as u64),
        &key0,
        &key1,
        &dropped.site,
        &dropped.p,
        &dropped.keep
    );
    Ok(y)
}
