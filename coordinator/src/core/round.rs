//! A round of placements: who waits is asked in turn, and what is kept for one is not to be had by those behind.

use std::collections::BTreeSet;

use tl_proto::{ids::JobId, spec::Device};

use super::{
    placement::{Seat, Supply, Want},
    state::{Job, Millis, Phase},
};

/// Who found no room.
struct Small {
    device: Device,
    over_nccl: bool,
    need: usize,
    /// Whether it takes either kind of device and waits for GPUs: who needs more may find as many on CPUs alone.
    for_gpus: bool,
}

impl Small {
    fn is_like(&self, want: &Want<'_>) -> bool {
        let same = (self.device, self.over_nccl) == (want.device, want.over_nccl);
        same && if self.for_gpus { want.patient && want.need == self.need } else { want.need >= self.need }
    }
}

/// A round.
pub(super) struct Round<'a> {
    supply: &'a Supply<'a>,
    now: Millis,
    /// Slots that somebody gets, or that are kept for somebody.
    taken: BTreeSet<Seat>,
    /// Slots that are free, and not taken.
    free: BTreeSet<Seat>,
    /// Who found no room. Nor does who wants as much of the same.
    small: Vec<Small>,
    /// Steps of which one unit had no room: nor have the others.
    full: BTreeSet<(&'a JobId, &'a str)>,
}

impl<'a> Round<'a> {
    /// One in which nobody was asked yet.
    pub(super) fn new(supply: &'a Supply<'a>, now: Millis) -> Self {
        let (taken, free) = (BTreeSet::new(), supply.free());
        Self { supply, now, taken, free, small: Vec::new(), full: BTreeSet::new() }
    }

    /// Whether nothing is left for those behind.
    pub(super) fn is_over(&self) -> bool {
        self.free.is_empty()
    }

    /// Slots that somebody gets, or that are kept for somebody.
    pub(super) fn taken(&self) -> &BTreeSet<Seat> {
        &self.taken
    }

    /// Gives slots away.
    pub(super) fn take(&mut self, seats: impl IntoIterator<Item = Seat>) {
        for seat in seats {
            self.free.remove(&seat);
            self.taken.insert(seat);
        }
    }

    /// The slots that are free for a phase, best ones first, if they are enough for it to start. Else what it waits for is
    /// kept for it, and what is of no use to it stays for those behind.
    pub(super) fn turn(&mut self, (id, job, phase): (&'a JobId, &'a Job, &'a Phase)) -> Option<Vec<Seat>> {
        let (unit, step) = (phase.unit.is_some(), (id, phase.step.as_str()));
        if phase.not_before_ms > self.now || (unit && self.full.contains(&step)) {
            return None;
        }
        let want = Want::of(job, phase)?;
        let (plain, need) = (!unit && want.taught.is_none(), want.need);
        if plain && self.small.iter().any(|small| small.is_like(&want)) {
            return None;
        }
        let room = self.supply.room(&want, &self.taken, &BTreeSet::new());
        if room.free.len() >= need && job.is_unblocked(phase) {
            return Some(room.free);
        }
        if room.free.len() >= need {
            // Its units come first, and what it needs after them is kept for it.
            self.take(room.free.into_iter().take(need));
        } else if unit {
            // A unit keeps nobody from slots: its training does, from as many as it needs.
            self.full.insert(step);
        } else {
            // It will fit when others are done: whoever comes later must not keep it waiting for ever.
            self.take(room.usable);
            if plain {
                let (device, over_nccl, for_gpus) = (want.device, want.over_nccl, room.for_gpus);
                self.small.push(Small { device, over_nccl, need, for_gpus });
            }
        }
        None
    }
}
