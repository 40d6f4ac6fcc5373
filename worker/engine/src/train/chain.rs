//! A chain of units, forward and backward, as one grain runs it.

use candle_core::Tensor;

use crate::{
    Result,
    backbone::Unit,
    nn::{Gradients, Layer, Pass, Tape},
};

/// What the last unit takes, and what it gives. Without units that is what came in.
///
/// # Errors
/// A batch of another shape.
pub(super) fn forward(units: &[Unit], x: Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<[Tensor; 2]> {
    let Some((last, below)) = units.split_last() else { return Ok([x.clone(), x]) };
    let features = below.iter().try_fold(x, |x, unit| unit.layer.forward(&x, pass, tape))?;
    let out = last.layer.forward(&features, pass, tape)?;
    Ok([features, out])
}

/// Adds the gradients of what the units train, from that of what they give, and of what the last of them takes where the
/// loss looks at that too.
///
/// # Errors
/// A tape that was not written by [`forward`].
pub(super) fn backward(
    units: &[Unit],
    dy: &Tensor,
    inside: Option<&Tensor>,
    pass: &Pass<'_>,
    tape: &mut Tape,
    grads: &mut Gradients<'_>,
) -> Result<()> {
    let Some((last, below)) = units.split_last() else { return Ok(()) };
    let mut dy = last.layer.backward(dy, pass, tape, grads, !below.is_empty())?;
    if let (Some(dy), Some(more)) = (&mut dy, inside) {
        *dy = (&*dy + more)?.contiguous()?;
    }
    for (i, unit) in below.iter().enumerate().rev() {
        if let Some(g) = dy.take() {
            dy = unit.layer.backward(&g, pass, tape, grads, i > 0)?;
        }
    }
    Ok(())
}
