//! Rounding to bf16.

use std::ops::Range;

use half::bf16;

use super::Element;
use crate::gpu::{
    Array, Device, Fault,
    array::counted,
    launch::{fours, launch},
};

/// The nearest numbers that bf16 has, kept in f32.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn round_bf16(device: &Device, x: &Array) -> Result<Array, Fault> {
    round_bf16_run(device, x, 0..x.count(), x.shape())
}

/// The same of some numbers of an array, in a shape of as many.
///
/// # Errors
/// As [`round_bf16`]; none, some that are not there, or a shape of another count; so for all of a run.
pub fn round_bf16_run(device: &Device, x: &Array, run: Range<usize>, shape: &[usize]) -> Result<Array, Fault> {
    let (mut y, n) = (made_of::<f32>(device, x, &run, shape)?, run.len());
    launch!(device, Cast, "round_bf16", fours(n), &mut y.data, &x.data.slice(run), &(n as u64));
    Ok(y)
}

/// The nearest numbers that bf16 has in half the memory, as products take them.
///
/// # Errors
/// As [`round_bf16`].
pub fn to_bf16(device: &Device, x: &Array) -> Result<Array<bf16>, Fault> {
    to_bf16_run(device, x, 0..x.count(), x.shape())
}

/// The same of some numbers of an array, in a shape of as many.
///
/// # Errors
/// As [`round_bf16_run`].
pub fn to_bf16_run(device: &Device, x: &Array, run: Range<usize>, shape: &[usize]) -> Result<Array<bf16>, Fault> {
    let (mut y, n) = (made_of::<bf16>(device, x, &run, shape)?, run.len());
    launch!(device, Cast, "to_bf16", fours(n), &mut y.data, &x.data.slice(run), &(n as u64));
    Ok(y)
}

/// And back.
///
/// # Errors
/// As [`round_bf16`].
pub fn from_bf16(device: &Device, x: &Array<bf16>) -> Result<Array, Fault> {
    let (mut y, n) = (device.fresh::<f32>(x.shape())?, x.count());
    launch!(device, Cast, "from_bf16", fours(n), &mut y.data, &x.data, &(n as u64));
    Ok(y)
}

/// Memory for as many numbers as there are in a run, all of which are to be written.
pub(super) fn made_of<T: Element>(
    device: &Device,
    x: &Array,
    run: &Range<usize>,
    shape: &[usize],
) -> Result<Array<T>, Fault> {
    x.expect_run(run)?;
    if counted(shape)? != run.len() {
        return Err(Fault::shape(format!("{run:?} for an array of {shape:?}")));
    }
    device.fresh::<T>(shape)
}
