//! Rounding to bf16.

use half::bf16;

use crate::gpu::{
    Array, Device, Fault,
    launch::{fours, launch},
};

/// The nearest numbers that bf16 has, kept in f32.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn round_bf16(device: &Device, x: &Array) -> Result<Array, Fault> {
    let (mut y, n) = (device.fresh::<f32>(x.shape())?, x.count());
    launch!(device, Cast, "round_bf16", fours(n), &mut y.data, &x.data, &(n as u64));
    Ok(y)
}

/// The same in half the memory, as products take them.
///
/// # Errors
/// As [`round_bf16`].
pub fn to_bf16(device: &Device, x: &Array) -> Result<Array<bf16>, Fault> {
    let (mut y, n) = (device.fresh::<bf16>(x.shape())?, x.count());
    launch!(device, Cast, "to_bf16", fours(n), &mut y.data, &x.data, &(n as u64));
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
