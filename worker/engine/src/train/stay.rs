//! What stays on a GPU between the steps of a stretch: values, moments and averages of all that is trained, and what holds
//! it. Whoever looks at the state of the run does so between stretches, when it is whole. Only what an objective trains for
//! itself is looked at in each step, on the host: it is shown there after each update.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use super::{Fed, Loop, stage::Stage, state::RunState, step::Reduced};
#[cfg(feature = "cuda")]
use super::{
    anchor::{Anchor, Held},
    apply::finite,
    gate,
    net::Net,
};
use crate::{Result, optim};
#[cfg(feature = "cuda")]
use crate::{
    gpu::{Array, Device, ops},
    nn::{Flat, ParamId},
    optim::{Group, Resident},
};

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
    there: Option<There>,
}

/// What stays, and what lies beside it.
#[cfg(feature = "cuda")]
struct There {
    resident: Resident,
    averages: Option<Array>,
    held: Option<Held>,
    /// What an objective trains for itself, and the least and the most that a number of it may be.
    own: Vec<(Group, Option<[f32; 2]>)>,
}

#[cfg(feature = "cuda")]
impl There {
    /// Takes what a stage trains out of the state.
    fn new(
        device: &Arc<Device>,
        stage: &Stage,
        net: &Net,
        anchor: Option<&Anchor>,
        state: &mut RunState,
    ) -> Result<Self> {
        let network = &net.network;
        let span = |id: ParamId| network.limits.iter().find(|(limited, _)| *limited == id).map(|(_, span)| *span);
        let trained = stage.layout.trained().zip(&stage.groups);
        let own = trained.filter(|((id, _), _)| network.own.contains(id));
        let own: Vec<(Group, Option<[f32; 2]>)> = own.map(|((id, _), group)| (group.clone(), span(id))).collect();
        let values = &mut state.store.values;
        let shown: Vec<Vec<f32>> = own.iter().map(|(group, _)| values[group.values.clone()].to_vec()).collect();
        let resident = Resident::new(device, &stage.groups, values, &state.moments)?;
        own.iter().zip(&shown).for_each(|((group, _), own)| values[group.values.clone()].copy_from_slice(own));
        let held = anchor.map(|anchor| anchor.beside(&resident, &stage.layout, &state.importance)).transpose();
        let averages = state.averages.as_ref().map(|(values, _)| resident.lay(values)).transpose();
        let (held, averages) = match held.and_then(|held| Ok((held, averages?))) {
            Ok(beside) => beside,
            Err(e) => {
                // Whoever goes on without has the values again.
                resident.settle(&mut state.store.values, &mut state.moments)?;
                return Err(e);
            }
        };
        if let Some((values, _)) = &mut state.averages {
            stage.groups.iter().for_each(|group| values[group.values.clone()].fill(f32::NAN));
        }
        Ok(Self { resident, averages, held, own })
    }

    /// Shows the host what an objective trains for itself, as it is after an update, and within its limits.
    fn show(&mut self, values: &mut [f32]) -> Result<()> {
        for (group, span) in &self.own {
            let mut shown = self.resident.look(group.gradient.clone())?;
            if let Some([least, most]) = span {
                shown.iter_mut().for_each(|v| *v = v.clamp(*least, *most));
                self.resident.put(group.gradient.clone(), &shown)?;
            }
            values[group.values.clone()].copy_from_slice(&shown);
        }
        Ok(())
    }
}

#[cfg(feature = "cuda")]
impl Stay {
    /// Moves the averages after an update, wherever they are.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn average(&mut self, stage: &Stage, keep: f64, state: &mut RunState) -> Result<()> {
        let Some(There { resident, averages: Some(averages), .. }) = &mut self.there else {
            state.average(&stage.groups, &stage.norms, keep);
            return Ok(());
        };
        let values = resident.values();
        ops::average(values.device(), averages, values.array(), (1.0 - keep) as f32)?;
        // Running statistics are the host's.
        state.average(&[], &stage.norms, keep);
        Ok(())
    }

    /// Whether anything stays.
    pub fn holds(&self) -> bool {
        self.there.is_some()
    }

    /// Leaves all as it is, where something has failed and nobody goes on: what the GPU was told may never be done, and both
    /// asking it for numbers and giving memory back could wait for that.
    pub fn lose(self, stage: &Stage) {
        if self.holds() {
            stage.packs.lose();
        }
        std::mem::forget(self.there);
    }

    /// Makes the state whole again.
    ///
    /// # Errors
    /// The GPU has failed: then there is no state.
    pub fn end(self, stage: &Stage, state: &mut RunState) -> Result<()> {
        let Some(There { resident, averages, .. }) = self.there else { return Ok(()) };
        stage.packs.take_from(&stage.layout, None);
        if let (Some(there), Some((values, _))) = (&averages, &mut state.averages) {
            resident.bring(there, values)?;
        }
        resident.settle(&mut state.store.values, &mut state.moments)
    }

    /// Lets go of what stays: nobody goes on from there, and the state becomes another one.
    pub fn leave(self, stage: &Stage) {
        if self.holds() {
            stage.packs.take_from(&stage.layout, None);
        }
    }
}

#[cfg(feature = "cuda")]
impl Loop<'_> {
    /// The stretch that begins, up to the next checkpoint or the end of the epoch.
    pub(super) fn stay(&self, stage: &Stage, fed: &Fed<'_>) -> Stay {
        let p = &self.state.progress;
        let left = self.per_epoch().saturating_sub(p.step_in_epoch) as u64;
        let ahead = match u64::from(self.run.spec.checkpoint.every) {
            0 => left,
            every => left.min(every - p.step % every),
        };
        self.stay_for(ahead, stage, fed)
    }

    /// A stretch of so many steps, unless it is not worth while, or averages are to speak in a step: those are the host's.
    pub(super) fn stay_for(&self, ahead: u64, stage: &Stage, fed: &Fed<'_>) -> Stay {
        let speak = (self.run.objective.averages)(&self.run.spec.objective);
        let spoken = speak && fed.other.is_some() && self.state.averages.is_some();
        Stay { may: ahead >= WORTH && !spoken && !stage.groups.is_empty(), there: None }
    }

    /// Mean, gate, pull, clip and update where the gradient lies, if that is a GPU and what is trained may stay there: the
    /// norm of the mean gradient.
    pub(super) fn update_there(
        &mut self,
        stage: &Stage,
        optimizer: &optim::Optimizer,
        reduced: &mut Reduced,
        rate: optim::Rate,
        stay: &mut Stay,
    ) -> Result<Option<f64>> {
        let state = &mut self.state;
        if let (None, true, Flat::Device(sum)) = (&stay.there, stay.may, &reduced.flat) {
            stay.there = roomy(There::new(sum.device(), stage, self.net, self.anchor.as_ref(), state))?;
            stay.may = stay.holds();
        }
        let Some(there) = &mut stay.there else { return Ok(None) };
        let resident = &mut there.resident;
        let sum = reduced.flat.placed(resident.values().device())?;
        let mut mean = match resident.mean(&sum, reduced.samples) {
            // Nothing has moved yet: the host goes on.
            Err(e) if e.is_full() => {
                std::mem::take(stay).end(stage, state)?;
                return Ok(None);
            }
            made => made?,
        };
        if gate::watches(&state.progress) {
            let names = &self.net.network.initial;
            gate::check(&mut state.progress, names, &stage.layout, &reduced.touched, &mean.download()?)?;
        }
        if let Some(held) = &there.held {
            reduced.penalty = held.pull(resident.values(), &mut mean)?;
        }
        let section = &self.run.spec.optimizer;
        let norm = finite(optim::clip_placed(&mut mean, section.clip_norm)?, state.progress.step)?;
        stage.packs.take_from(&stage.layout, None);
        resident.step(optimizer, section, &mut state.moments, &mean, rate)?;
        there.show(&mut state.store.values)?;
        stage.packs.take_from(&stage.layout, Some(there.resident.values()));
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
    /// They are where the state is.
    pub fn average(&mut self, stage: &Stage, keep: f64, state: &mut RunState) -> Result<()> {
        state.average(&stage.groups, &stage.norms, keep);
        Ok(())
    }

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

    /// Nothing stays.
    pub fn leave(self, _: &Stage) {}
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
impl Loop<'_> {
    /// The stretch that begins.
    pub(super) fn stay(&self, _: &Stage, _: &Fed<'_>) -> Stay {
        Stay::default()
    }

    /// A stretch of so many steps.
    pub(super) fn stay_for(&self, _: u64, _: &Stage, _: &Fed<'_>) -> Stay {
        Stay::default()
    }

    /// Every gradient lies in the host's memory.
    pub(super) fn update_there(
        &mut self,
        _: &Stage,
        _: &optim::Optimizer,
        _: &mut Reduced,
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
