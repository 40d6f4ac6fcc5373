//! The sum of two arrays and the activation after it, in one pass.

use rayon::prelude::*;

use super::{
    Act, Array, Pass,
    act::{TASK, apply},
    array, host,
    precision::Rounds,
};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, both, either, ops};
use crate::{Error, Result, num::fresh::Fresh};

/// `act(a + b)`, in f32 whatever products compute with.
pub(super) fn add(a: &Array, b: &Array, act: Act) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(a), Array::Device(b)) = (a, b) {
        let y = either!(a, |a| either!(b, |b| a.made(|device, a| ops::add_mixed(device, act, a, b.array()))))?;
        return Ok(y.into());
    }
    array(sum(a, b, act)?, a.dims())
}

/// The same as layers of images hand it on.
pub(super) fn add_handed(a: &Array, b: &Array, act: Act, pass: &Pass<'_>) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(a), Array::Device(b)) = (a, b) {
        let y = both!(a, b, |a, b| a.made(|device, a| ops::add_activate(device, act, a, b.array())).map(Mixed::from))?;
        return pass.handed(y).map(Array::from);
    }
    array(pass.precision().product(sum(a, b, act)?), a.dims())
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
