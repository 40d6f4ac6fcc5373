//! The sum of two arrays and the activation after it, in one pass.

use rayon::prelude::*;

use super::{
    Act, Array,
    act::{TASK, apply},
    array, host,
};
#[cfg(feature = "cuda")]
use crate::gpu::ops;
use crate::{Error, Result, num::fresh::Fresh};

/// `act(a + b)`
pub(super) fn add(a: &Array, b: &Array, act: Act) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(a), Array::Device(b)) = (a, b) {
        return Ok(a.made(|device, a| ops::add_activate(device, act, a, b.array()))?.into());
    }
    array(sum(a, b, act)?, a.dims())
}

/// The elements of `act(a + b)`.
pub(super) fn sum(a: &Array, b: &Array, act: Act) -> Result<Vec<f32>> {
    if a.dims() != b.dims() {
        return Err(Error::Internal(format!("values of {:?} and {:?} cannot be added", a.dims(), b.dims())));
    }
    let (left, right) = (host(a)?, host(b)?);
    let (left, right) = (&*left, &*right);
    let mut out = Fresh::new(left.len());
    out.parts(TASK).zip(left.par_chunks(TASK)).zip(right.par_chunks(TASK)).for_each(|((out, a), b)| {
        out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o = a + b);
        apply(act, out);
    });
    Ok(out.done())
}
