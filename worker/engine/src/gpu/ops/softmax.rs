//! Softmax of attention's scores `[samples·heads, t, t]`, of which a sample uses as many rows and columns as it is long.

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, lines, small},
};

/// Heads and side of the squares.
fn square(s: &Array, lengths: &Array<u32>) -> Result<(u32, u32), Fault> {
    match *s.shape() {
        [all, t, u] if t == u && all % lengths.count() == 0 => Ok((small(all / lengths.count())?, small(t)?)),
        _ => Err(Fault::shape(format!("scores of {:?} for {} samples", s.shape(), lengths.count()))),
    }
}

/// `exp((s − max)·scale) / Σ` of each row, in place; zero beyond the end of a sample. Gives each row's largest score and inverse
/// sum, `[samples·heads·t, 2]`.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn softmax(device: &Device, s: &mut Array, lengths: &Array<u32>, scale: f32) -> Result<Array, Fault> {
    let ((heads, t), rows) = (square(s, lengths)?, s.rows());
    let mut notes = device.fresh::<f32>(&[rows, 2])?;
    launch!(
        device,
        Softmax,
        "softmax",
        lines(rows)?,
        &mut s.data,
        &mut notes.data,
        &lengths.data,
        &heads,
        &t,
        &scale,
        &(rows as u64)
    );
    Ok(notes)
}

/// The same from scores and what was noted.
///
/// # Errors
/// Other shapes.
pub fn softmax_again(
    device: &Device,
    s: &mut Array,
    notes: &Array,
    lengths: &Array<u32>,
    scale: f32,
) -> Result<(), Fault> {
    let ((heads, t), n) = (square(s, lengths)?, s.count());
    notes.expect(&[s.rows(), 2])?;
    launch!(
        device,
        Softmax,
        "softmax_again",
        each(n),
        &mut s.data,
        &notes.data,
        &lengths.data,
        &heads,
        &t,
        &scale,
        &(n as u64)
    );
    Ok(())
}

/// `p·(dp − Σ dp·p)·scale`, in place of `dp`.
///
/// # Errors
/// Other shapes.
pub fn softmax_back(device: &Device, dp: &mut Array, p: &Array, lengths: &Array<u32>, scale: f32) -> Result<(), Fault> {
    let ((heads, t), rows) = (square(dp, lengths)?, dp.rows());
    p.expect(dp.shape())?;
    launch!(
        device,
        Softmax,
        "softmax_back",
        lines(rows)?,
        &mut dp.data,
        &p.data,
        &lengths.data,
        &heads,
        &t,
        &scale,
        &(rows as u64)
    );
    Ok(())
}
