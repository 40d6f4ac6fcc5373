//! The other grains of a step, where a layer needs sums over the whole batch.

use std::sync::Arc;

use crate::Result;

/// What becomes of the numbers of all grains, in their order.
#[derive(Clone, Copy)]
pub enum Join {
    /// All grains hand in as many; those of a grain are added to what came of the grains before it.
    Fold(fn(&mut [f64], &[f64])),
    /// One after the other.
    Append,
}

/// A place among the grains of one step, over all ranks. Every grain calls it at the same layers in the same order.
pub trait Grains: Sync {
    /// Hands in this grain's numbers and waits for those of all others; the outcome is what `join` makes of
    /// them in the order of grains, whoever computed them.
    ///
    /// # Errors
    /// Another grain has failed, or a rank is lost: there will be no sum.
    fn joined(&self, own: Vec<f64>, join: Join) -> Result<Arc<[f64]>>;
}

/// Plain sums.
pub(super) const PLUS: Join = Join::Fold(plus);

fn plus(sums: &mut [f64], next: &[f64]) {
    sums.iter_mut().zip(next).for_each(|(s, n)| *s += n);
}
