//! The run that is simulated, and its state: what it hashes to tells which steps went into it, and by whom.

use tl_engine::elastic::Plan;
use tl_proto::elastic::Saved;

/// A run with uneven steps.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub steps: u64,
    pub publish_every: u64,
}

impl Plan for Run {
    fn steps(&self) -> u64 {
        self.steps
    }

    fn grains(&self, step: u64) -> usize {
        // The last step of every epoch of nine is a tail.
        if step.is_multiple_of(9) { 2 } else { 6 }
    }

    fn samples(&self, step: u64) -> u64 {
        if step.is_multiple_of(9) { 7 } else { 27 }
    }

    fn publishes(&self, step: u64) -> bool {
        step.is_multiple_of(self.publish_every)
    }
}

impl Run {
    /// Samples of all steps up to one.
    pub fn samples_until(&self, step: u64) -> u64 {
        (1..=step).map(|k| self.samples(k)).sum()
    }
}

/// What a rank trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trained {
    pub applied: u64,
    pub samples: u64,
    /// As a fast reduction would: who took part in each step is in it, so that two histories never hash alike.
    pub digest: u64,
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x1234_5678_9abc_def1);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 27)
}

impl Trained {
    /// The state after one more step, reduced by `generation`.
    pub fn after(self, run: &Run, generation: u64) -> Self {
        let applied = self.applied + 1;
        let digest = mix(mix(self.digest, applied), generation);
        Self { applied, samples: self.samples + run.samples(applied), digest }
    }

    pub fn saved(self) -> Saved {
        Saved { step: self.applied, samples: self.samples, digest: self.digest }
    }
}

/// Draws of one schedule.
#[derive(Debug)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed, 1))
    }

    /// A number from `from` to below `to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        self.0 = mix(self.0, 3);
        from + self.0 % (to - from).max(1)
    }

    pub fn one_of<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() { None } else { Some(items[self.within(0, items.len() as u64) as usize]) }
    }
}
