//! The same on a GPU, for what stays there between steps.

use std::ops::Range;

use super::{Anchor, weight};
use crate::{
    Result,
    gpu::{
        Array, Placed,
        ops::{self, Began},
    },
    modifier::Hold,
    nn::{Layout, ParamId},
    optim::Resident,
};

/// Where everything that stays began, beside it.
pub struct Held {
    start: Array,
    importance: Option<Array>,
    pulls: Vec<ops::Pull>,
}

impl Anchor {
    /// Sends up what holds the values that stay; see [`Anchor::pull`].
    ///
    /// # Errors
    /// The memory is full.
    pub fn beside(&self, there: &Resident, layout: &Layout, importance: &[f32]) -> Result<Held> {
        let mut start = self.start.clone();
        // What is new is pulled to zero.
        for (range, _) in self.ranges.iter().zip(&self.came).filter(|(_, came)| **came != Some(true)) {
            start[range.clone()].fill(0.0);
        }
        let pull = |(_, run, came, hold): (ParamId, Range<usize>, bool, &Hold)| ops::Pull {
            run,
            weight: weight(hold, came) as f32,
            important: came && hold.importance.is_some(),
        };
        let pulls: Vec<ops::Pull> = self.held(layout).map(pull).collect();
        let important = pulls.iter().any(|pull| pull.important);
        let importance = if important { Some(there.lay(importance)?) } else { None };
        Ok(Held { start: there.lay(&start)?, importance, pulls })
    }
}

impl Held {
    /// Adds the gradient of the penalties to a mean gradient; waits for the penalties. Both have the host's bits.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn pull(&self, values: &Placed, mean: &mut Placed) -> Result<f64> {
        let began = Began { start: &self.start, importance: self.importance.as_ref() };
        let mut sums = Vec::new();
        mean.change(|device, mean| {
            sums = ops::pull(device, mean, values.array(), began, &self.pulls)?;
            Ok(())
        })?;
        Ok(sums.iter().fold(0.0, |penalty, sum| penalty + 0.5 * sum))
    }
}
