//! Numbers in another order, and parts of matrices.

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small, tiles},
};

/// Each matrix of `[batch, rows, columns]` transposed.
///
/// # Errors
/// Another shape, a full memory, or a GPU that has failed.
pub fn transpose(device: &Device, x: &Array) -> Result<Array, Fault> {
    let &[batch, rows, columns] = x.shape() else {
        return Err(Fault::shape(format!("matrices are expected, given {:?}", x.shape())));
    };
    let mut y = device.fresh::<f32>(&[batch, columns, rows])?;
    let grid = tiles(batch, rows, columns)?;
    launch!(device, Layout, "transpose", grid, &mut y.data, &x.data, &small(rows)?, &small(columns)?);
    Ok(y)
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

/// Copies columns of each row of one matrix into another, or adds them: channels side by side, and cut apart.
///
/// # Errors
/// Other rows, and columns that a matrix does not have.
pub fn copy_columns(device: &Device, from: &Array, to: &mut Array, columns: Columns, add: bool) -> Result<(), Fault> {
    let Columns { from: first, to: target, width } = columns;
    let fits = first + width <= from.width() && target + width <= to.width() && width > 0;
    if from.rows() != to.rows() || !fits {
        return Err(Fault::shape(format!("{columns:?} of {:?} for {:?}", from.shape(), to.shape())));
    }
    let n = from.rows() * width;
    let (to_width, from_width) = (small(to.width())?, small(from.width())?);
    launch!(
        device,
        Layout,
        "copy_columns",
        each(n),
        &mut to.data,
        &to_width,
        &small(target)?,
        &from.data,
        &from_width,
        &small(first)?,
        &(n as u64),
        &small(width)?,
        &i32::from(add)
    );
    Ok(())
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
pub fn move_image(
    device: &Device,
    x: &Array,
    (down, right): (i32, i32),
    (oh, ow): (usize, usize),
) -> Result<Array, Fault> {
    let [n, h, w, c] = x.images()?;
    let mut y = device.fresh::<f32>(&[n, oh, ow, c])?;
    let count = y.count();
    launch!(
        device,
        Layout,
        "move_image",
        each(count),
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
