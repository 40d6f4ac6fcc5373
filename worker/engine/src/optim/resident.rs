//! Values and moments that stay on a GPU from step to step, so that nothing of their size goes up or comes down in one.

use std::{ops::Range, sync::Arc};

use tl_proto::spec::OptimizerSection;

use super::{Group, Moments, Optimizer, Rate, shrinks};
use crate::{
    Result,
    gpu::{Array, Device, Fault, Placed, ops},
};

/// What an optimizer reads and writes there: of each number that is trained, in the order of the flat gradient.
pub struct Lying<'a> {
    /// The GPU.
    pub device: &'a Device,
    /// The mean gradient.
    pub mean: &'a Array,
    /// Values.
    pub values: &'a mut Array,
    /// First moments, or momentum.
    pub first: &'a mut Array,
    /// Second moments, where there are some.
    pub second: Option<&'a mut Array>,
}

/// What some groups update, on a GPU. It goes up in [`Resident::new`] and comes down in [`Resident::settle`]; meanwhile
/// nobody else has it.
pub struct Resident {
    groups: Vec<Group>,
    values: Placed,
    first: Array,
    second: Option<Array>,
}

impl Resident {
    /// Sends the groups' values and moments up. From here on the host has no such values: NaN lies in their places, so that
    /// whoever goes on with them is found out by what comes of it. What no group has stays as it is.
    ///
    /// # Errors
    /// There is no group, or the memory is full.
    pub fn new(device: &Arc<Device>, groups: &[Group], values: &mut [f32], moments: &Moments) -> Result<Self> {
        let resident = Self {
            groups: groups.to_vec(),
            values: Placed::new(device.clone(), up(device, groups, values)?),
            first: up(device, groups, &moments.first)?,
            second: if moments.second.is_empty() { None } else { Some(up(device, groups, &moments.second)?) },
        };
        groups.iter().for_each(|group| values[group.values.clone()].fill(f32::NAN));
        Ok(resident)
    }

    /// The values as they are now. Whoever holds a clone of them keeps the next step from being taken.
    pub fn values(&self) -> &Placed {
        &self.values
    }

    /// Sends other numbers up that there are one of for each value, to lie as the values do.
    ///
    /// # Errors
    /// The memory is full.
    pub fn lay(&self, from: &[f32]) -> Result<Array> {
        Ok(up(self.values.device(), &self.groups, from)?)
    }

    /// Brings such numbers down to where they came from.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn bring(&self, from: &Array, to: &mut [f32]) -> Result<()> {
        Ok(down(self.values.device(), &self.groups, from, to)?)
    }

    /// Some of the values, by their places in the flat gradient, for a host that looks at them.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn look(&self, run: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.values.device().download_run(self.values.array(), run)?)
    }

    /// Puts others in their place.
    ///
    /// # Errors
    /// Somebody else holds the values, or the GPU has failed.
    pub fn put(&mut self, run: Range<usize>, values: &[f32]) -> Result<()> {
        Ok(self.values.change(|_, all| all.fill(run, values))?)
    }

    /// The mean of a flat gradient that is a sum over so many samples: its first numbers, those of what is trained.
    ///
    /// # Errors
    /// A gradient of fewer numbers, or the memory is full.
    pub fn mean(&self, sum: &Placed, samples: u64) -> Result<Placed> {
        let len = self.values.array().count();
        let mut mean = sum.made(|device, sum| device.part(sum, 0..len, &[len]))?;
        mean.change(|device, mean| ops::divide(device, mean, samples as f32))?;
        Ok(mean)
    }

    /// One update, with the bits that the optimizer's step has on the host. Of `moments` it moves the counts.
    ///
    /// # Errors
    /// Somebody else holds the values, or the GPU has failed.
    pub fn step(
        &mut self,
        optimizer: &Optimizer,
        section: &OptimizerSection,
        moments: &mut Moments,
        mean: &Placed,
        rate: Rate,
    ) -> Result<()> {
        let Self { groups, values, first, second } = self;
        values.change(|device, values| {
            let there = Lying { device, mean: mean.array(), values, first, second: second.as_mut() };
            (optimizer.placed)(section, moments, there, groups, rate)
        })?;
        Ok(())
    }

    /// Brings everything down to where it came from.
    ///
    /// # Errors
    /// What makes it has failed: then nobody knows it any more.
    pub fn settle(self, values: &mut [f32], moments: &mut Moments) -> Result<()> {
        self.bring(self.values.array(), values)?;
        self.bring(&self.first, &mut moments.first)?;
        if let Some(second) = &self.second {
            self.bring(second, &mut moments.second)?;
        }
        Ok(())
    }
}

/// Numbers of some groups, in the order of the flat gradient.
fn up(device: &Device, groups: &[Group], from: &[f32]) -> Result<Array, Fault> {
    let mut laid = vec![0.0; groups.iter().map(|g| g.gradient.end).max().unwrap_or_default()];
    for group in groups {
        laid[group.gradient.clone()].copy_from_slice(&from[group.values.clone()]);
    }
    device.upload(&laid, &[laid.len()])
}

fn down(device: &Device, groups: &[Group], from: &Array, to: &mut [f32]) -> Result<(), Fault> {
    let laid = device.download(from)?;
    for group in groups {
        to[group.values.clone()].copy_from_slice(&laid[group.gradient.clone()]);
    }
    Ok(())
}

/// As [`clip`](super::clip), of a mean gradient on a GPU; waits for its norm.
///
/// # Errors
/// The GPU has failed.
pub fn clip_placed(mean: &mut Placed, limit: Option<f64>) -> Result<f64> {
    let norm = libm::sqrt(ops::squared_norm(mean.device(), mean.array())?);
    if let Some(factor) = shrinks(norm, limit) {
        mean.change(|device, mean| ops::scale(device, mean, factor))?;
    }
    Ok(norm)
}
