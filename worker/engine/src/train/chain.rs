//! A chain of units, forward and backward. Here tensors become what layers take, where these compute, and what layers give
//! becomes tensors again.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    Result,
    backbone::Unit,
    nn::{Array, Gradients, Layer, Pass, Tape},
};

/// What came out of a chain.
pub(super) struct Outputs {
    /// What the last unit takes.
    pub features: Tensor,
    /// What it gives.
    pub out: Tensor,
    /// What the units gave that the objective looks at, in its order.
    pub inside: Vec<Tensor>,
}

/// What the loss wants of a chain: gradients.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Of what the last unit gives.
    pub out: &'a Tensor,
    /// Of what it takes, where the loss looks at that too.
    pub features: Option<&'a Tensor>,
    /// Of what units below it give, by their places.
    pub inside: &'a [(usize, &'a Tensor)],
}

impl<'a> Wanted<'a> {
    /// Where the loss looks at what the last unit gives, and at nothing else.
    pub fn of(out: &'a Tensor) -> Self {
        Self { out, features: None, inside: &[] }
    }
}

/// Runs the units; `looks` are places of those below the last whose outputs are wanted. Without units, what came in comes
/// out.
///
/// # Errors
/// A batch of another shape.
pub(super) fn forward(units: &[Unit], x: Tensor, looks: &[usize], pass: &Pass<'_>, tape: &mut Tape) -> Result<Outputs> {
    let Some((last, below)) = units.split_last() else {
        return Ok(Outputs { features: x.clone(), out: x, inside: Vec::new() });
    };
    let (mut features, mut inside) = (Array::at(x, &pass.store.place)?, BTreeMap::new());
    for (at, unit) in below.iter().enumerate() {
        features = unit.layer.forward(&features, pass, tape)?;
        if looks.contains(&at) {
            inside.insert(at, features.clone());
        }
    }
    let out = last.layer.forward(&features, pass, tape)?.to_tensor()?;
    let inside = looks.iter().filter_map(|at| inside.get(at)).map(Array::to_tensor).collect::<Result<_>>()?;
    Ok(Outputs { features: features.to_tensor()?, out, inside })
}

/// What comes out of the units alone.
///
/// # Errors
/// A batch of another shape.
pub(super) fn through(units: &[Unit], x: Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
    if units.is_empty() {
        return Ok(x);
    }
    along(units, Array::at(x, &pass.store.place)?, pass, tape)
}

/// The same of what is there already.
///
/// # Errors
/// A batch of another shape, or in another place.
pub(super) fn along(units: &[Unit], x: Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
    units.iter().try_fold(x, |x, unit| unit.layer.forward(&x, pass, tape))?.to_tensor()
}

/// Adds the gradients of what the units train, where each unit computes; gives that of what came in if `need_dx`.
///
/// # Errors
/// A tape that was not written by [`forward`] or [`through`].
pub(super) fn backward(
    units: &[Unit],
    wanted: Wanted<'_>,
    pass: &Pass<'_>,
    tape: &mut Tape,
    grads: &mut Gradients<'_>,
    need_dx: bool,
) -> Result<Option<Tensor>> {
    let Some((last, below)) = units.split_last() else { return Ok(need_dx.then(|| wanted.out.clone())) };
    let at = |wanted: &Tensor| Array::at(wanted.contiguous()?, &pass.store.place);
    let mut dy = last.layer.backward(&at(wanted.out)?, pass, tape, grads, need_dx || !below.is_empty())?;
    grads.passed(|| last.params())?;
    if let (Some(dy), Some(more)) = (&mut dy, wanted.features) {
        *dy = dy.plus(&at(more)?)?;
    }
    for (i, unit) in below.iter().enumerate().rev() {
        if let Some(mut g) = dy.take() {
            // What comes from above, and what the loss wants of the unit itself.
            for (_, more) in wanted.inside.iter().filter(|(unit, _)| *unit == i) {
                g = g.plus(&at(more)?)?;
            }
            dy = unit.layer.backward(&g, pass, tape, grads, need_dx || i > 0)?;
        }
        grads.passed(|| unit.params())?;
    }
    dy.filter(|_| need_dx).map(|dy| dy.to_tensor()).transpose()
}
