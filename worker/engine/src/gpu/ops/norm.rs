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
        launch::{BLOCK, GROUP, columns, each, launch, rows_of, small},
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

/// The mean of each channel of blocks of rows, then its Σ(x − mean)².
fn lines<T: Element>(device: &Device, x: &Array<T>) -> Result<Array, Fault> {
    let (rows, c) = (x.rows(), x.width());
    let mut lines = device.fresh::<f32>(&[rows.div_ceil(BLOCK), 2 * c])?;
    let grid = each(lines.count() / 2);
    launch!(device, Norm, of_type!(T, "moments"), grid, &mut lines.data, &x.data, &(rows as u64), &small(c)?);
    Ok(lines)
}

/// The moments of groups of lines of so many rows in all, then of groups of groups, until there are `enough`; behind the count
/// of the first one. And the rows of a group.
fn joined(device: &Device, lines: &Array, rows: u64, enough: usize) -> Result<(Array<f64>, u64), Fault> {
    let (c, mut groups, mut line) = (lines.width() / 2, lines.rows().div_ceil(GROUP), BLOCK as u64);
    let (width, room) = (small(c)?, |groups: usize| device.fresh::<f64>(&[1 + groups * 2 * c]));
    let mut all = room(groups)?;
    launch!(device, Norm, "join_moments", columns(c, groups)?, &mut all.data, &lines.data, &rows, &line, &width);
    line *= GROUP as u64;
    while groups > enough {
        groups = groups.div_ceil(GROUP);
        let (mut next, grid) = (room(groups)?, columns(c, groups)?);
        launch!(device, Norm, "join_groups", grid, &mut next.data, &all.data.slice(1..), &rows, &line, &width);
        (all, line) = (next, line * GROUP as u64);
    }
    Ok((all, line))
}

/// The moments of a grain: a count, the mean of each channel, its Σ(x − mean)²; `[1 + 2c]`.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn moments<T: Element>(device: &Device, x: &Array<T>) -> Result<Array<f64>, Fault> {
    Ok(joined(device, &lines(device, x)?, x.rows() as u64, 1)?.0)
}

/// [`statistics`] of the [`moments`] of a grain that nothing is joined with.
///
/// # Errors
/// As [`moments`].
pub fn own_statistics<T: Element>(device: &Device, x: &Array<T>, eps: f32) -> Result<Array, Fault> {
    let (lines, rows, c) = (lines(device, x)?, x.rows() as u64, x.width());
    let (mut stats, grid, width) = (device.fresh::<f32>(&[3 * c])?, columns(c, 1)?, small(c)?);
    let to = &mut stats.data;
    if lines.rows() <= GROUP {
        launch!(device, Norm, "join_statistics", grid, to, &lines.data, &rows, &(BLOCK as u64), &eps, &width);
    } else {
        let (all, line) = joined(device, &lines, rows, GROUP)?;
        let groups = all.data.slice(1..);
        launch!(device, Norm, "join_group_statistics", grid, to, &groups, &rows, &line, &eps, &width);
    }
    Ok(stats)
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
        rows_of::<T>(n, c),
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

/// The kernel of slopes in one type and an input in another; those in bf16 of an input in f32 are to be widened first.
fn of_types<D: Element, T: Element>([full, half, mixed]: [&'static str; 3]) -> Result<&'static str, Fault> {
    match (D::HALF, T::HALF) {
        (false, false) => Ok(full),
        (true, true) => Ok(half),
        (false, true) => Ok(mixed),
        (true, false) => Err(Fault::shape("slopes in bf16 of what lies in f32")),
    }
}

/// Threads from which on each may have two channels of bf16: fewer would not keep a GPU busy.
const PAIRS: usize = 1 << 16;

/// Sums of the gradient before the activation, of an output's gradient; they may be joined with those of other grains.
///
/// # Errors
/// Other shapes; slopes in bf16 of what lies in f32.
pub fn slopes<D: Element, T: Element>(
    device: &Device,
    dy: &Array<D>,
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
    let sums = lines.count() / 2;
    let pairs = D::HALF && T::HALF && c % 2 == 0 && sums / 2 >= PAIRS;
    let (half, threads) = if pairs { ("norm_slopes_pairs", sums / 2) } else { ("norm_slopes_bf16", sums) };
    let name = of_types::<D, T>(["norm_slopes", half, "norm_slopes_mixed"])?;
    launch!(
        device,
        Norm,
        name,
        each(threads),
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
/// of the grain's rows. The statistics are as [`statistics`] gives them; the means lie among `buffers` from `first` on.
///
/// # Errors
/// Another number of channels.
pub fn deposit(
    device: &Device,
    stats: &Array,
    (buffers, first): (&Array, usize),
    rows: usize,
    slot: &mut Array,
) -> Result<(), Fault> {
    let c = stats.count() / 3;
    stats.expect_count(3 * c)?;
    slot.expect_count(2 * c + 1)?;
    let run = first..first.saturating_add(c);
    buffers.expect_run(&run)?;
    let (mean, count) = (buffers.data.slice(run), rows as f64);
    launch!(device, Norm, "norm_deposit", each(c), &mut slot.data, &stats.data, &mean, &count, &small(c)?);
    Ok(())
}

/// The input's gradient through the activation, and through the statistics of all rows that `slopes` are of. It lies as the
/// input does.
///
/// # Errors
/// As [`slopes`].
pub fn through<D: Element, T: Element>(
    device: &Device,
    dy: &Array<D>,
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
    let name = of_types::<D, T>(["norm_through", "norm_through_bf16", "norm_through_mixed"])?;
    let (mut terms, width) = (device.fresh::<f32>(&[3 * c])?, small(c)?);
    let (grid, to, gamma) = (each(c), &mut terms.data, &affine.gamma.data);
    launch!(device, Norm, "norm_terms", grid, to, &sums.data, &stats.data, gamma, count, &width);
    let mut dx = device.fresh::<T>(x.shape())?;
    launch!(
        device,
        Norm,
        name,
        rows_of::<D>(n, c),
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

/// The same through statistics that do not depend on the input. Without an activation the input only says what to make.
///
/// # Errors
/// As [`slopes`].
pub fn fixed_back<D: Element, T: Element>(
    device: &Device,
    dy: &Array<D>,
    x: &Array<T>,
    stats: &Array,
    affine: Affine<'_>,
    act: Act,
) -> Result<Array<T>, Fault> {
    let (n, c) = (dy.count(), dy.width());
    x.expect(dy.shape())?;
    stats.expect_count(3 * c)?;
    affine.expect(c)?;
    let name = of_types::<D, T>(["norm_fixed_back", "norm_fixed_back_bf16", "norm_fixed_back_mixed"])?;
    let mut dx = device.fresh::<T>(dy.shape())?;
    launch!(
        device,
        Norm,
        name,
        rows_of::<D>(n, c),
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
