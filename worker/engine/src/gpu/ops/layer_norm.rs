//! Layer normalisation over the last dimension.

use crate::gpu::{
    Array, Device, Fault,
    launch::{launch, lines, small},
};

/// What backward needs.
pub struct Normalised {
    /// Rows before γ and β.
    pub hat: Array,
    /// `1/σ` of each row.
    pub inverse: Array,
}

/// `(x − mean) / √(var + eps) · γ + β`, and what backward needs.
///
/// # Errors
/// Another number of channels, a full memory, or a GPU that has failed.
pub fn layer_norm(
    device: &Device,
    x: &Array,
    gamma: &Array,
    beta: &Array,
    eps: f32,
) -> Result<(Array, Normalised), Fault> {
    let (rows, c) = (x.rows(), x.width());
    gamma.expect_count(c)?;
    beta.expect_count(c)?;
    let (mut y, mut hat) = (device.fresh::<f32>(x.shape())?, device.fresh::<f32>(x.shape())?);
    let mut inverse = device.fresh::<f32>(&[rows])?;
    launch!(
        device,
        LayerNorm,
        "layer_norm",
        lines(rows)?,
        &mut hat.data,
        &mut y.data,
        &mut inverse.data,
        &x.data,
        &gamma.data,
        &beta.data,
        &eps,
        &(rows as u64),
        &small(c)?
    );
    Ok((y, Normalised { hat, inverse }))
}

/// The input's gradient, from what [`layer_norm`] has kept. Those of γ and β are [`super::add_products`] of `dy` and the
/// normalised rows, and [`super::add_sums`].
///
/// # Errors
/// Other shapes.
pub fn layer_norm_back(
    device: &Device,
    dy: &Array,
    (hat, inverse): (&Array, &Array),
    gamma: &Array,
) -> Result<Array, Fault> {
    dy.expect(hat.shape())?;
    let (rows, c) = (dy.rows(), dy.width());
    gamma.expect_count(c)?;
    inverse.expect_count(rows)?;
    let mut dx = device.fresh::<f32>(dy.shape())?;
    launch!(
        device,
        LayerNorm,
        "layer_norm_back",
        lines(rows)?,
        &mut dx.data,
        &dy.data,
        &hat.data,
        &inverse.data,
        &gamma.data,
        &(rows as u64),
        &small(c)?
    );
    Ok(dx)
}
