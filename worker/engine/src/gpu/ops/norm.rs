//! Batch-norm in its steps, so that the moments of several grains can be joined between them.

use super::{
    Element,
    element::of_type,
    number,
    rows::{self, total},
};
use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{BLOCK, GROUP, columns, each, fours, launch, small},
    },
    nn::Act,
};

/// γ and β, `[c]` each.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// What is multiplied with.
    pub gamma: &'a Array,
    /// What is added.
    pub beta: &'a Array,
}

impl Affine<'_> {
    fn expect(&self, c: usize) -> Result<(), Fault> {
        self.gamma.expect_count(c)?;
        self.beta.expect_count(c)
    }
}

/// What the gradient through the statistics of a batch is made of: sums of `dz`, the gradient before the activation.
pub struct Slopes {
    /// Σ dz and Σ dz·(x − mean) of each channel, `[2c]`.
    pub sums: Array<f64>,
    /// Of how many rows they are; a whole number.
    pub count: f64,
}

/// The moments of a grain: a count, the mean of each channel, its Σ(x − mean)²; `[1 + 2c]`.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn moments<T: Element>(device: &Device, x: &Array<T>) -> Result<Array<f64>, Fault> {
    let (rows, c) = (x.rows(), x.width());
    let mut lines = device.fresh::<f32>(&[rows.div_ceil(BLOCK), 2 * c])?;
    let (grid, width) = (each(lines.count() / 2), small(c)?);
    launch!(device, Norm, of_type!(T, "moments"), grid, &mut lines.data, &x.data, &(rows as u64), &width);
    // In groups of lines, then in groups of groups, until there is one.
    let room = |groups: usize| device.fresh::<f64>(&[1 + groups * 2 * c]);
    let (mut line, mut groups, rows) = (BLOCK as u64, lines.rows().div_ceil(GROUP), rows as u64);
    let mut all = room(groups)?;
    launch!(device, Norm, "join_moments", columns(c, groups)?, &mut all.data, &lines.data, &rows, &line, &width);
    while groups > 1 {
        (line, groups) = (line * GROUP as u64, groups.div_ceil(GROUP));
        let (mut next, grid) = (room(groups)?, columns(c, groups)?);
        launch!(device, Norm, "join_groups", grid, &mut next.data, &all.data.slice(1..), &rows, &line, &width);
        all = next;
    }
    Ok(all)
}

/// From moments: mean, `1/√(var + eps)` and variance of each channel, `[3c]`.
///
/// # Errors
/// As [`moments`].
pub fn statistics(device: &Device, moments: &Array<f64>, eps: f32) -> Result<Array, Fault> {
    let c = (moments.count() - 1) / 2;
    moments.expect_count(1 + 2 * c)?;
    let mut stats = device.fresh::<f32>(&[3 * c])?;
    launch!(device, Norm, "statistics", each(c), &mut stats.data, &moments.data, &eps, &small(c)?);
    Ok(stats)
}

/// The same of running statistics.
///
/// # Errors
/// Another number of channels.
pub fn running_statistics(device: &Device, mean: &Array, var: &Array, eps: f32) -> Result<Array, Fault> {
    let c = mean.count();
    var.expect_count(c)?;
    let mut stats = device.fresh::<f32>(&[3 * c])?;
    launch!(device, Norm, "running_statistics", each(c), &mut stats.data, &mean.data, &var.data, &eps, &small(c)?);
    Ok(stats)
}

/// `act((x − mean) · γ/√(var + eps) + β)`.
///
/// # Errors
/// Another number of channels.
pub fn normalise<T: Element>(
    device: &Device,
    x: &Array<T>,
    stats: &Array,
    affine: Affine<'_>,
    act: Act,
) -> Result<Array<T>, Fault> {
    let c = x.width();
    stats.expect_count(3 * c)?;
    affine.expect(c)?;
    let (mut y, n) = (device.fresh::<T>(x.shape())?, x.count());
    launch!(
        device,
        Norm,
        of_type!(T, "normalise"),
        fours(n),
        &mut y.data,
        &x.data,
        &stats.data,
        &affine.gamma.data,
        &affine.beta.data,
        &(n as u64),
        &small(c)?,
        &number(act)
    );
    Ok(y)
}

/// Sums of the gradient before the activation, of an output's gradient; they may be joined with those of other grains.
///
/// # Errors
/// Other shapes.
pub fn slopes<T: Element>(
    device: &Device,
    dy: &Array<T>,
    x: &Array<T>,
    stats: &Array,
    affine: Affine<'_>,
    act: Act,
) -> Result<Slopes, Fault> {
    dy.expect(x.shape())?;
    let (rows, c) = (x.rows(), x.width());
    stats.expect_count(3 * c)?;
    affine.expect(c)?;
    let mut lines = device.fresh::<f32>(&[rows.div_ceil(BLOCK), 2 * c])?;
    launch!(
        device,
        Norm,
        of_type!(T, "norm_slopes"),
        each(lines.count() / 2),
        &mut lines.data,
        &dy.data,
        &x.data,
        &stats.data,
        &affine.gamma.data,
        &affine.beta.data,
        &(rows as u64),
        &small(c)?,
        &number(act)
    );
    Ok(Slopes { sums: total(device, &lines, 2 * c)?, count: rows as f64 })
}

/// Adds the gradient of γ.
///
/// # Errors
/// Another number of channels.
pub fn scale_gradient(device: &Device, slopes: &Slopes, stats: &Array, dgamma: &mut Array) -> Result<(), Fault> {
    let c = dgamma.count();
    slopes.sums.expect_count(2 * c)?;
    stats.expect_count(3 * c)?;
    let width = small(c)?;
    launch!(device, Norm, "norm_gamma", each(c), &mut dgamma.data, &slopes.sums.data, &stats.data, &width);
    Ok(())
}

/// Adds the gradient of β.
///
/// # Errors
/// Another number of channels.
pub fn shift_gradient(device: &Device, slopes: &Slopes, dbeta: &mut Array) -> Result<(), Fault> {
    slopes.sums.expect_count(2 * dbeta.count())?;
    rows::add(device, dbeta, &slopes.sums)
}

/// Adds what running statistics are updated from, `[2c + 1]`: Σ(x − r) and Σ(x − r)² around the running mean, and the count
/// of the grain's rows. Both statistics are as [`statistics`] and [`running_statistics`] give them.
///
/// # Errors
/// Another number of channels.
pub fn deposit(device: &Device, stats: &Array, running: &Array, rows: usize, slot: &mut Array) -> Result<(), Fault> {
    let c = stats.count() / 3;
    stats.expect_count(3 * c)?;
    running.expect_count(3 * c)?;
    slot.expect_count(2 * c + 1)?;
    let count = rows as f64;
    launch!(device, Norm, "norm_deposit", each(c), &mut slot.data, &stats.data, &running.data, &count, &small(c)?);
    Ok(())
}

/// The input's gradient through the activation, and through the statistics of all rows that `slopes` are of.
///
/// # Errors
/// Other shapes.
pub fn through<T: Element>(
    device: &Device,
    dy: &Array<T>,
    x: &Array<T>,
    slopes: &Slopes,
    stats: &Array,
    affine: Affine<'_>,
    act: Act,
) -> Result<Array<T>, Fault> {
    dy.expect(x.shape())?;
    let (n, c, Slopes { sums, count }) = (x.count(), x.width(), slopes);
    sums.expect_count(2 * c)?;
    stats.expect_count(3 * c)?;
    affine.expect(c)?;
    let (mut terms, width) = (device.fresh::<f32>(&[3 * c])?, small(c)?);
    let (grid, to, gamma) = (each(c), &mut terms.data, &affine.gamma.data);
    launch!(device, Norm, "norm_terms", grid, to, &sums.data, &stats.data, gamma, count, &width);
    let mut dx = device.fresh::<T>(x.shape())?;
    launch!(
        device,
        Norm,
        of_type!(T, "norm_through"),
        fours(n),
        &mut dx.data,
        &dy.data,
        &x.data,
        &terms.data,
        &stats.data,
        &affine.beta.data,
        &(n as u64),
        &width,
        &number(act)
    );
    Ok(dx)
}

/// The same through statistics that do not depend on the input. Without an activation it needs no input.
///
/// # Errors
/// Other shapes, or an input that is missing.
pub fn fixed_back<T: Element>(
    device: &Device,
    dy: &Array<T>,
    x: Option<&Array<T>>,
    stats: &Array,
    affine: Affine<'_>,
    act: Act,
) -> Result<Array<T>, Fault> {
    let (n, c) = (dy.count(), dy.width());
    let x = match (x, act) {
        (Some(x), _) => x,
        // It is not read.
        (None, Act::None) => dy,
        (None, _) => return Err(Fault::shape(format!("{act:?} behind a norm whose input is gone"))),
    };
    x.expect(dy.shape())?;
    stats.expect_count(3 * c)?;
    affine.expect(c)?;
    let mut dx = device.fresh::<T>(dy.shape())?;
    launch!(
        device,
        Norm,
        of_type!(T, "norm_fixed_back"),
        fours(n),
        &mut dx.data,
        &dy.data,
        &x.data,
        &stats.data,
        &affine.gamma.data,
        &affine.beta.data,
        &(n as u64),
        &small(c)?,
        &number(act)
    );
    Ok(dx)
}
