//! What has arrived for the reductions of one generation, and the gate in front of every change of the state.

use std::collections::BTreeMap;

use super::{Plan, Tally};
use crate::{collective::partition::partition, data::sampler};

/// What all members said together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub saw_newer: bool,
    pub wants_stop: bool,
}

/// Parts by step and rank. A peer may be one step ahead, so up to two steps are there at once.
#[derive(Debug, Default)]
pub(super) struct Reductions(BTreeMap<u64, BTreeMap<usize, Tally>>);

impl Reductions {
    /// Keeps a part; the first one of a rank counts.
    pub fn insert(&mut self, step: u64, rank: usize, tally: Tally) {
        self.0.entry(step).or_default().entry(rank).or_insert(tally);
    }

    /// Whether a rank's part of a step is there.
    pub fn has(&self, step: u64, rank: usize) -> bool {
        self.0.get(&step).is_some_and(|parts| parts.contains_key(&rank))
    }

    /// Forgets a step that is applied.
    pub fn forget(&mut self, step: u64) {
        self.0.remove(&step);
    }

    /// The verdict over a step once all parts are there. `Err` if they do not hold each grain exactly once and the
    /// samples of the step: then the state must not be touched.
    pub fn verdict(&self, step: u64, world: usize, grains: usize, samples: u64) -> Option<Result<Verdict, ()>> {
        let parts = self.0.get(&step).filter(|parts| parts.len() == world)?;
        let mut next = 0;
        let tiled = parts.values().all(|t| {
            let fits = t.grains.is_empty() || t.grains.start == next;
            next = next.max(t.grains.end);
            fits
        });
        if !tiled || next != grains || parts.values().map(|t| t.samples).sum::<u64>() != samples {
            return Some(Err(()));
        }
        Some(Ok(Verdict {
            saw_newer: parts.values().any(|t| t.saw_newer),
            wants_stop: parts.values().any(|t| t.wants_stop),
        }))
    }
}

/// The part of a rank of a step, without wishes.
pub(super) fn part_of(plan: &impl Plan, step: u64, rank: usize, world: usize) -> Tally {
    let (grains, samples) = (plan.grains(step), plan.samples(step));
    let own = partition(grains, world).swap_remove(rank);
    let drawn = own.clone().map(|s| sampler::grain(samples as usize, grains, s).len() as u64).sum();
    Tally { grains: own, samples: drawn, ..Tally::default() }
}
