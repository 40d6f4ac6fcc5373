//! Numbers in another order, and parts of matrices.

use std::ops::Range;

use super::{Element, cast::made_of, element::of_type};
use crate::gpu::{
    Array, Device, Fault,
    array::counted,
    launch::{each, fours, launch, small, tiles},
};

/// An array of any shape, taken for matrices `[batch, rows, columns]`: each of them transposed.
///
/// # Errors
/// Another count, a full memory, or a GPU that has failed.
pub fn turn(device: &Device, x: &Array, matrices: [usize; 3]) -> Result<Array, Fault> {
    turn_run(device, x, 0..x.count(), matrices)
}

/// The same of some numbers of an array, which are rounded where the type is bf16.
///
/// # Errors
/// As [`turn`]; none, or some that are not there.
pub fn turn_run<T: Element>(
    device: &Device,
    x: &Array,
    run: Range<usize>,
    [batch, rows, columns]: [usize; 3],
) -> Result<Array<T>, Fault> {
    let mut y = made_of::<T>(device, x, &run, &[batch, columns, rows])?;
    let (grid, name) = (tiles(batch, rows, columns)?, of_type!(T, "transpose"));
    launch!(device, Layout, name, grid, &mut y.data, &x.data.slice(run), &small(rows)?, &small(columns)?);
    Ok(y)
}

/// Adds to an array the matrices `[batch, rows, columns]` of another one, each of them transposed.
///
/// # Errors
/// As [`turn`].
pub fn add_turned(device: &Device, y: &mut Array, x: &Array, [batch, rows, columns]: [usize; 3]) -> Result<(), Fault> {
    let count = counted(&[batch, rows, columns])?;
    x.expect_count(count)?;
    y.expect_count(count)?;
    let grid = tiles(batch, rows, columns)?;
    launch!(device, Layout, "add_transpose", grid, &mut y.data, &x.data, &small(rows)?, &small(columns)?);
    Ok(())
}

/// Columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first one in the source.
    pub from: usize,
    /// The first one in the target.
    pub to: usize,
    /// How many.
    pub width: usize,
}

/// Copies columns of each row of one matrix into another, or adds them, in f32: channels side by side, and cut apart.
///
/// # Errors
/// Other rows, columns that a matrix does not have, and bf16 that is to be added.
pub fn copy_columns<T: Element>(
    device: &Device,
    from: &Array<T>,
    to: &mut Array<T>,
    columns: Columns,
    add: bool,
) -> Result<(), Fault> {
    let Columns { from: first, to: target, width } = columns;
    let fits = first + width <= from.width() && target + width <= to.width() && width > 0;
    if from.rows() != to.rows() || !fits {
        return Err(Fault::shape(format!("{columns:?} of {:?} for {:?}", from.shape(), to.shape())));
    }
    if add && T::HALF {
        return Err(Fault::shape("columns of bf16 were to be added"));
    }
    let name = if add { "add_columns" } else { of_type!(T, "copy_columns") };
    let n = from.rows() * width;
    let (to_width, from_width) = (small(to.width())?, small(from.width())?);
    launch!(
        device,
        Layout,
        name,
        fours(n),
        &mut to.data,
        &to_width,
        &small(target)?,
        &from.data,
        &from_width,
        &small(first)?,
        &(n as u64),
        &small(width)?
    );
    Ok(())
}

/// Columns of each row of a matrix, as one of their own: some of the channels.
///
/// # Errors
/// Columns that it does not have, a full memory, or a GPU that has failed.
pub fn cut_columns<T: Element>(device: &Device, x: &Array<T>, columns: Range<usize>) -> Result<Array<T>, Fault> {
    let (from, width) = (columns.start, columns.len());
    let mut y = device.fresh::<T>(&wide(x, width))?;
    copy_columns(device, x, &mut y, Columns { from, to: 0, width }, false)?;
    Ok(y)
}

/// Matrices of as many rows side by side, in one of `width` columns: the first begins at column `first`, and what none of
/// them covers is zero.
///
/// # Errors
/// No matrix, other rows, more columns, a full memory, or a GPU that has failed.
pub fn join_columns<T: Element>(
    device: &Device,
    parts: &[&Array<T>],
    first: usize,
    width: usize,
) -> Result<Array<T>, Fault> {
    let Some(one) = parts.first() else { return Err(Fault::shape("nothing is to be joined")) };
    let all = first == 0 && parts.iter().map(|part| part.width()).sum::<usize>() == width;
    let shape = wide(one, width);
    let mut y = if all { device.fresh::<T>(&shape)? } else { device.zeros(&shape)? };
    let mut to = first;
    for part in parts {
        copy_columns(device, part, &mut y, Columns { from: 0, to, width: part.width() }, false)?;
        to += part.width();
    }
    Ok(y)
}

/// The shape of an array with another last dimension.
fn wide<T>(x: &Array<T>, width: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

/// Rows of `x` by number, zeros for `None`: `[which, c]`. Frames, packed rows, and last states are such.
///
/// # Errors
/// A row that there is not, a full memory, or a GPU that has failed.
pub fn take_rows(device: &Device, x: &Array, which: &[Option<usize>]) -> Result<Array, Fault> {
    let (rows, c) = (x.rows(), x.width());
    if let Some(row) = which.iter().flatten().find(|row| **row >= rows) {
        return Err(Fault::shape(format!("row {row} of {:?}", x.shape())));
    }
    let numbers = which.iter().map(|row| row.map_or(Ok(u32::MAX), small)).collect::<Result<Vec<_>, _>>()?;
    let numbers = device.upload(&numbers, &[which.len()])?;
    let mut y = device.fresh::<f32>(&[which.len(), c])?;
    let n = y.count();
    launch!(device, Layout, "take_rows", each(n), &mut y.data, &x.data, &numbers.data, &(n as u64), &small(c)?);
    Ok(y)
}

/// Images moved down and right, cut or filled up with zeros to `h` times `w`.
///
/// # Errors
/// Something else than images, a full memory, or a GPU that has failed.
pub fn move_image<T: Element>(
    device: &Device,
    x: &Array<T>,
    (down, right): (i32, i32),
    (oh, ow): (usize, usize),
) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    let mut y = device.fresh::<T>(&[n, oh, ow, c])?;
    let count = y.count();
    launch!(
        device,
        Layout,
        of_type!(T, "move_image"),
        fours(count),
        &mut y.data,
        &x.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(oh)?,
        &small(ow)?,
        &down,
        &right
    );
    Ok(y)
}

/// Every second pixel of each row and column of images, their channels in the middle of `channels`: the others are zero.
///
/// # Errors
/// Fewer channels, something else than images, a full memory, or a GPU that has failed.
pub fn subsample<T: Element>(device: &Device, x: &Array<T>, channels: usize) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    let (oh, ow, before) = (h.div_ceil(2), w.div_ceil(2), in_the_middle(c, channels)?);
    let mut y = device.fresh::<T>(&[n, oh, ow, channels])?;
    let count = y.count();
    launch!(
        device,
        Layout,
        of_type!(T, "subsample"),
        fours(count),
        &mut y.data,
        &x.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(oh)?,
        &small(ow)?,
        &small(channels)?,
        &before
    );
    Ok(y)
}

/// The input's gradient, for images of `h`, `w` and `c`.
///
/// # Errors
/// Other shapes.
pub fn subsample_back<T: Element>(device: &Device, dy: &Array<T>, [h, w, c]: [usize; 3]) -> Result<Array<T>, Fault> {
    let [n, oh, ow, channels] = dy.images()?;
    dy.expect(&[n, h.div_ceil(2), w.div_ceil(2), channels])?;
    let before = in_the_middle(c, channels)?;
    let mut dx = device.fresh::<T>(&[n, h, w, c])?;
    let count = dx.count();
    launch!(
        device,
        Layout,
        of_type!(T, "subsample_back"),
        fours(count),
        &mut dx.data,
        &dy.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(oh)?,
        &small(ow)?,
        &small(channels)?,
        &before
    );
    Ok(dx)
}

/// How many channels lie before `c` in the middle of `channels`.
fn in_the_middle(c: usize, channels: usize) -> Result<u32, Fault> {
    match channels.checked_sub(c) {
        Some(others) => small(others / 2),
        None => Err(Fault::shape(format!("{c} channels among {channels}"))),
    }
}
