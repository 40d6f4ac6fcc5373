//! Sums by channel over the rows of a matrix.

use super::Element;
use crate::gpu::{
    Array, Device, Fault,
    launch::{BLOCK, GROUP, columns, each, launch, small},
};

/// Adds up lines of `width` numbers, in f64: groups of lines, then groups of groups, until there is one.
pub(super) fn total(device: &Device, lines: &Array, width: usize) -> Result<Array<f64>, Fault> {
    let (count, c) = (lines.count() / width, small(width)?);
    let mut sums = device.fresh::<f64>(&[count.div_ceil(GROUP), width])?;
    let grid = columns(width, sums.rows())?;
    launch!(device, Rows, "total_lines", grid, &mut sums.data, &lines.data, &(count as u64), &c);
    total_groups(device, sums)
}

/// The same of the sums of groups.
pub(super) fn total_groups(device: &Device, mut sums: Array<f64>) -> Result<Array<f64>, Fault> {
    let width = sums.width();
    let c = small(width)?;
    while sums.rows() > 1 {
        let count = sums.rows();
        let mut next = device.fresh::<f64>(&[count.div_ceil(GROUP), width])?;
        let grid = columns(width, next.rows())?;
        launch!(device, Rows, "total_groups", grid, &mut next.data, &sums.data, &(count as u64), &c);
        sums = next;
    }
    sums.reshaped(&[width])
}

/// `to += sums`; of more sums than it has numbers, the first ones.
pub(super) fn add(device: &Device, to: &mut Array, sums: &Array<f64>) -> Result<(), Fault> {
    let n = to.count();
    launch!(device, Rows, "add_totals", each(n), &mut to.data, &sums.data, &(n as u64));
    Ok(())
}

/// `sums[c] += Σ x[row, c]`: the gradient of a bias.
///
/// # Errors
/// Another number of channels, or what makes `x` has failed.
pub fn add_sums<T: Element>(device: &Device, x: &Array<T>, sums: &mut Array) -> Result<(), Fault> {
    let (rows, c) = (x.rows(), x.width());
    sums.expect_count(c)?;
    let mut lines = device.fresh::<f32>(&[rows.div_ceil(BLOCK), c])?;
    let (grid, name) = (each(lines.count()), if T::HALF { "row_sums_bf16" } else { "row_sums" });
    launch!(device, Rows, name, grid, &mut lines.data, &x.data, &(rows as u64), &small(c)?);
    add(device, sums, &total(device, &lines, c)?)
}

/// `sums[c] += Σ x[row, c] · y[row, c]`: the gradient of a scale.
///
/// # Errors
/// Other shapes.
pub fn add_products(device: &Device, x: &Array, y: &Array, sums: &mut Array) -> Result<(), Fault> {
    y.expect(x.shape())?;
    let (rows, c) = (x.rows(), x.width());
    sums.expect_count(c)?;
    let mut lines = device.fresh::<f32>(&[rows.div_ceil(BLOCK), c])?;
    let grid = each(lines.count());
    launch!(device, Rows, "row_products", grid, &mut lines.data, &x.data, &y.data, &(rows as u64), &small(c)?);
    add(device, sums, &total(device, &lines, c)?)
}
