//! A chain of units, forward and backward, as one grain runs it.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    Result,
    backbone::Unit,
    nn::{Gradients, Layer, Pass, Tape},
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
    let (mut features, mut inside) = (x, BTreeMap::new());
    for (at, unit) in below.iter().enumerate() {
        features = unit.layer.forward(&features, pass, tape)?;
        if looks.contains(&at) {
            inside.insert(at, features.clone());
        }
    }
    let out = last.layer.forward(&features, pass, tape)?;
    let inside = looks.iter().filter_map(|at| inside.get(at).cloned()).collect();
    Ok(Outputs { features, out, inside })
}

/// Adds the gradients of what the units train; gives that of what came in if `need_dx`.
///
/// # Errors
/// A tape that was not written by [`forward`].
pub(super) fn backward(
    units: &[Unit],
    wanted: Wanted<'_>,
    pass: &Pass<'_>,
    tape: &mut Tape,
    grads: &mut Gradients<'_>,
    need_dx: bool,
) -> Result<Option<Tensor>> {
    let Some((last, below)) = units.split_last() else { return Ok(need_dx.then(|| wanted.out.clone())) };
    let mut dy = last.layer.backward(wanted.out, pass, tape, grads, need_dx || !below.is_empty())?;
    if let (Some(dy), Some(more)) = (&mut dy, wanted.features) {
        *dy = (&*dy + more)?.contiguous()?;
    }
    for (i, unit) in below.iter().enumerate().rev() {
        if let Some(mut g) = dy.take() {
            // What comes from above, and what the loss wants of the unit itself.
            for (_, more) in wanted.inside.iter().filter(|(at, _)| *at == i) {
                g = (g + *more)?.contiguous()?;
            }
            dy = unit.layer.backward(&g, pass, tape, grads, need_dx || i > 0)?;
        }
    }
    Ok(dy.filter(|_| need_dx))
}
