//! Flat gradients, in one memory or another.

#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::{borrow::Cow, ops::Range};

use super::Gradients;
#[cfg(feature = "cuda")]
use crate::gpu::{Device, Placed, ops};
use crate::{Result, num::fresh::zeros};

/// The gradient of a grain, or the sum of several, in the order of a [`Layout`](super::Layout); further numbers may
/// follow. It lies where backward made it until somebody asks for it: the sum of two has the same bits in any memory.
#[derive(Debug)]
pub enum Flat {
    /// In the memory of the host.
    Host(Vec<f32>),
    /// In that of a GPU.
    #[cfg(feature = "cuda")]
    Device(Placed),
}

impl Flat {
    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        match self {
            Self::Host(numbers) => numbers.len(),
            #[cfg(feature = "cuda")]
            Self::Device(placed) => placed.array().count(),
        }
    }

    /// Whether it lies in the memory of the host.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Host(_) => true,
            #[cfg(feature = "cuda")]
            Self::Device(_) => false,
        }
    }

    /// The sum of two: on a GPU if either lies there.
    ///
    /// # Errors
    /// On a GPU, other counts, or its memory is full.
    pub fn plus(self, other: Self) -> Result<Self> {
        Ok(match (self, other) {
            (Self::Host(mut left), Self::Host(right)) => {
                left.iter_mut().zip(&right).for_each(|(l, r)| *l += r);
                Self::Host(left)
            }
            #[cfg(feature = "cuda")]
            (Self::Device(mut left), Self::Device(right)) => {
                left.change(|device, left| ops::add_into(device, left, right.array()))?;
                Self::Device(left)
            }
            // Which of them is on the left shows in no bit.
            #[cfg(feature = "cuda")]
            (Self::Device(mut there), Self::Host(here)) | (Self::Host(here), Self::Device(mut there)) => {
                there.change(|device, there| {
                    let sent = device.upload(&here, &[here.len()])?;
                    ops::add_into(device, there, &sent)
                })?;
                Self::Device(there)
            }
        })
    }

    /// The square of each number where it lies, on top of what there may be already.
    ///
    /// # Errors
    /// On a GPU, other counts, or its memory is full.
    pub fn squared(&self, onto: Option<Self>) -> Result<Self> {
        Ok(match self {
            Self::Host(numbers) => {
                let mut sums = onto.map_or_else(|| Ok(zeros(numbers.len())), Self::into_host)?;
                sums.iter_mut().zip(numbers).for_each(|(sum, v)| *sum += v * v);
                Self::Host(sums)
            }
            #[cfg(feature = "cuda")]
            Self::Device(numbers) => {
                let mut sums = match onto {
                    Some(onto) => onto.placed(numbers.device())?,
                    None => numbers.made(|device, numbers| device.zeros(numbers.shape()))?,
                };
                sums.change(|device, sums| ops::add_squares(device, sums, numbers.array()))?;
                Self::Device(sums)
            }
        })
    }

    /// Some of the numbers, for the host; waits until they are made.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn run(&self, run: Range<usize>) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Host(numbers) => Ok(Cow::Borrowed(&numbers[run])),
            #[cfg(feature = "cuda")]
            Self::Device(_) if run.is_empty() => Ok(Cow::Borrowed(&[])),
            #[cfg(feature = "cuda")]
            Self::Device(placed) => Ok(Cow::Owned(placed.device().download_run(placed.array(), run)?)),
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// As [`Flat::run`].
    pub fn to_host(&self) -> Result<Cow<'_, [f32]>> {
        self.run(0..self.count())
    }

    /// The same, which gives up what lies elsewhere.
    ///
    /// # Errors
    /// As [`Flat::run`].
    pub fn into_host(self) -> Result<Vec<f32>> {
        match self {
            Self::Host(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Self::Device(placed) => Ok(placed.download()?),
        }
    }

    /// All of them, to be changed in the memory of the host, where they lie from now on.
    ///
    /// # Errors
    /// As [`Flat::run`].
    pub fn here(&mut self) -> Result<&mut Vec<f32>> {
        #[cfg(feature = "cuda")]
        if let Self::Device(placed) = self {
            *self = Self::Host(placed.download()?);
        }
        match self {
            Self::Host(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Self::Device(_) => Err(crate::Error::Internal("a flat gradient did not come down".into())),
        }
    }

    /// All of them on a GPU.
    ///
    /// # Errors
    /// Its memory is full.
    #[cfg(feature = "cuda")]
    pub fn placed(&self, device: &Arc<Device>) -> Result<Placed> {
        match self {
            Self::Host(numbers) => Ok(Placed::new(device.clone(), device.upload(numbers, &[numbers.len()])?)),
            Self::Device(placed) => Ok(placed.clone()),
        }
    }
}

impl Gradients<'_> {
    /// The flat gradient, and which parameters backward has reached. It lies on a GPU if anything has gathered there. Where a
    /// [`Taker`](super::Taker) has it, nothing is left of it.
    ///
    /// # Errors
    /// The memory of a GPU is full; those of the taker.
    pub fn finish(mut self) -> Result<(Flat, Vec<bool>)> {
        if self.early.is_some() {
            self.hand_rest()?;
            return Ok((Flat::Host(Vec::new()), self.touched));
        }
        #[cfg(feature = "cuda")]
        if let Some(placed) = self.gathered()? {
            return Ok((Flat::Device(placed), self.touched));
        }
        if self.flat.is_empty() {
            self.flat = zeros(self.layout.total_len());
        }
        Ok((Flat::Host(self.flat), self.touched))
    }
}
