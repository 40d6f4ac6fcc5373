//! Updates of runs of flat buffers, and the norm of a gradient.

use std::ops::Range;

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, squares},
};

/// What is the same for all numbers of a group in a step of AdamW; `optim` says how each is made.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Weight of the first moment so far, and of the new gradient.
    pub first: (f32, f32),
    /// Weight of the second moment so far, and of the new square.
    pub second: (f32, f32),
    /// What keeps a quotient finite.
    pub eps: f32,
    /// What decay leaves of a value.
    pub keep: f32,
    /// The rate, corrected for the first moment's beginning.
    pub rate: f32,
    /// The root of the second moment's correction.
    pub root: f32,
}

/// The same of gradient descent with momentum.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// What is kept of the momentum so far.
    pub momentum: f32,
    /// The rate.
    pub lr: f32,
    /// What decay adds to the gradient.
    pub decay: f32,
}

/// How many numbers a step takes of each buffer and of the mean gradient.
fn taken(buffers: &[&Array], mean: &Array, run: &Range<usize>, gradient: &Range<usize>) -> Result<usize, Fault> {
    buffers.iter().try_for_each(|buffer| buffer.expect_run(run))?;
    mean.expect_run(gradient)?;
    if gradient.len() != run.len() {
        return Err(Fault::shape(format!("{gradient:?} for {run:?}")));
    }
    Ok(run.len())
}

/// Updates `values`, `first` and `second` in `run` by the mean gradient in `gradient`.
///
/// # Errors
/// Runs of different lengths or outside of a buffer, or a GPU that has failed.
pub fn adamw(
    device: &Device,
    [values, first, second]: [&mut Array; 3],
    mean: &Array,
    (run, gradient): (Range<usize>, Range<usize>),
    f: AdamW,
) -> Result<(), Fault> {
    let n = taken(&[&*values, &*first, &*second], mean, &run, &gradient)?;
    launch!(
        device,
        Optimizer,
        "adamw",
        each(n),
        &mut values.data.slice_mut(run.clone()),
        &mean.data.slice(gradient),
        &mut first.data.slice_mut(run.clone()),
        &mut second.data.slice_mut(run),
        &(n as u64),
        &f.first.0,
        &f.first.1,
        &f.second.0,
        &f.second.1,
        &f.eps,
        &f.keep,
        &f.rate,
        &f.root
    );
    Ok(())
}

/// Updates `values` and `first` in `run` by the mean gradient in `gradient`.
///
/// # Errors
/// As [`adamw`].
pub fn sgd(
    device: &Device,
    [values, first]: [&mut Array; 2],
    mean: &Array,
    (run, gradient): (Range<usize>, Range<usize>),
    f: Sgd,
) -> Result<(), Fault> {
    let n = taken(&[&*values, &*first], mean, &run, &gradient)?;
    launch!(
        device,
        Optimizer,
        "sgd",
        each(n),
        &mut values.data.slice_mut(run.clone()),
        &mean.data.slice(gradient),
        &mut first.data.slice_mut(run),
        &(n as u64),
        &f.momentum,
        &f.lr,
        &f.decay
    );
    Ok(())
}

/// Elements whose squares are added up by themselves.
const SQUARED: usize = 4096;

/// The squared norm, in the order of `num::squared_norm`; waits for it.
///
/// # Errors
/// The memory is full, or the GPU has failed.
pub fn squared_norm(device: &Device, x: &Array) -> Result<f64, Fault> {
    let (n, blocks) = (x.count(), x.count().div_ceil(SQUARED));
    let mut sums = device.fresh::<f64>(&[blocks])?;
    launch!(device, Optimizer, "squares", squares(blocks)?, &mut sums.data, &x.data, &(n as u64));
    Ok(crate::num::fold_pairs(device.download(&sums)?))
}
