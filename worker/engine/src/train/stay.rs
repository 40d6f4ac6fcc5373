//! What stays on a GPU between the steps of a stretch: values and moments of all that is trained. Whoever looks at the
//! state of the run does so between stretches, when it is whole.

use super::{Fed, Loop, stage::Stage, state::RunState, step::Reduced};
#[cfg(feature = "cuda")]
use super::{apply::finite, gate};
use crate::{Result, optim};
#[cfg(feature = "cuda")]
use crate::{nn::Flat, optim::Resident};

/// Steps of a stretch that make it worth while: values and both moments go up for it and come down again, where
/// otherwise gradients come down in each step and values go up.
#[cfg(feature = "cuda")]
const WORTH: u64 = 4;

/// One stretch. It begins with everything in the state of the run.
#[derive(Default)]
#[must_use = "what stays on a GPU has to come down"]
pub(super) struct Stay {
    /// Whether anything may stay.
    #[cfg(feature = "cuda")]
    may: bool,
    /// What does, from the first update on.
    #[cfg(feature = "cuda")]
    there: Option<Resident>,
}

#[cfg(feature = "cuda")]
impl Stay {
    /// Whether anything stays.
    pub fn holds(&self) -> bool {
        self.there.is_some()
    }

    /// Leaves all as it is, where something has failed and nobody goes on: what the GPU was told may never be done, and both
    /// asking it for numbers and giving memory back could wait for that.
    pub fn lose(self, stage: &Stage) {
        if self.holds() {
            stage.packs.take_from(None);
        }
        std::mem::forget(self.there);
    }

    /// Makes the state whole again.
    ///
    /// # Errors
    /// The GPU has failed: then there is no state.
    pub fn end(self, stage: &Stage, state: &mut RunState) -> Result<()> {
        let Some(there) = self.there else { return Ok(()) };
        stage.packs.take_from(None);
        there.settle(&mut state.store.values, &mut state.moments)
    }
}

#[cfg(feature = "cuda")]
impl Loop<'_> {
    /// The stretch that begins. What is trained may stay on a GPU where only layers look at it between two steps: neither
    /// objectives with tensors of their own, nor modifiers that hold or average, old heads, several tasks, or episodes.
    pub(super) fn stay(&self, stage: &Stage, fed: &Fed<'_>) -> Stay {
        let p = &self.state.progress;
        let left = self.per_epoch().saturating_sub(p.step_in_epoch) as u64;
        let ahead = match u64::from(self.run.spec.checkpoint.every) {
            0 => left,
            every => left.min(every - p.step % every),
        };
        let others = self.anchor.is_some()
            || self.tasks.is_some()
            || self.run.few.is_some()
            || self.state.averages.is_some()
            || fed.said.is_some()
            || !self.net.network.own.is_empty();
        Stay { may: ahead >= WORTH && !others && !stage.groups.is_empty(), there: None }
    }

    /// Mean, gate, clip and update where the gradient lies, if that is a GPU and what is trained may stay there: the norm of
    /// the mean gradient.
    pub(super) fn update_there(
        &mut self,
        stage: &Stage,
        optimizer: &optim::Optimizer,
        reduced: &Reduced,
        rate: optim::Rate,
        stay: &mut Stay,
    ) -> Result<Option<f64>> {
        let state = &mut self.state;
        if let (None, true, Flat::Device(sum)) = (&stay.there, stay.may, &reduced.flat) {
            let values = &mut state.store.values;
            stay.there = roomy(Resident::new(sum.device(), &stage.groups, values, &state.moments))?;
            stay.may = stay.holds();
        }
        let Some(there) = &mut stay.there else { return Ok(None) };
        let sum = reduced.flat.placed(there.values().device())?;
        let mut mean = there.mean(&sum, reduced.samples)?;
        if gate::watches(&state.progress) {
            let names = &self.net.network.initial;
            gate::check(&mut state.progress, names, &stage.layout, &reduced.touched, &mean.download()?)?;
        }
        let section = &self.run.spec.optimizer;
        let norm = finite(optim::clip_placed(&mut mean, section.clip_norm)?, state.progress.step)?;
        stage.packs.take_from(None);
        there.step(optimizer, section, &mut state.moments, &mean, rate)?;
        stage.packs.take_from(Some(there.values()));
        Ok(Some(norm))
    }
}

/// What there was room for; nothing where the memory of the GPU is full: staying there saves time alone.
#[cfg(feature = "cuda")]
fn roomy<T>(made: Result<T>) -> Result<Option<T>> {
    match made {
        Err(e) if e.is_full() => Ok(None),
        made => made.map(Some),
    }
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
impl Stay {
    /// Nothing stays.
    pub fn holds(&self) -> bool {
        false
    }

    /// Nothing is lost.
    pub fn lose(self, _: &Stage) {}

    /// The state is whole.
    pub fn end(self, _: &Stage, _: &mut RunState) -> Result<()> {
        Ok(())
    }
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
impl Loop<'_> {
    /// The stretch that begins.
    pub(super) fn stay(&self, _: &Stage, _: &Fed<'_>) -> Stay {
        Stay::default()
    }

    /// Every gradient lies in the host's memory.
    pub(super) fn update_there(
        &mut self,
        _: &Stage,
        _: &optim::Optimizer,
        _: &Reduced,
        _: optim::Rate,
        _: &mut Stay,
    ) -> Result<Option<f64>> {
        Ok(None)
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::{Error, Full};

    #[test]
    fn what_has_no_room_does_not_stay_and_is_no_failure() {
        assert!(matches!(roomy(Ok(7)), Ok(Some(7))));
        assert!(matches!(roomy::<()>(Err(Error::GpuMemory(Full::Grain))), Ok(None)));
        assert!(matches!(roomy::<()>(Err(Error::Internal("gone".into()))), Err(Error::Internal(_))));
    }
}
