//! The steps of an epoch, in stretches: one ends where somebody looks at the state of the run.

use std::time::Instant;

use tl_proto::spec::StageSection;

use super::{
    Fed, Loop,
    stage::Stage,
    stay::Stay,
    step::{self, Reduced},
};
use crate::{
    Error, Result,
    collective::Collective,
    data::sampler::Epoch,
    link::{Gradient, Link},
    optim::{self, Optimizer},
};

/// How a stage moves on.
pub(super) struct Pace<'a> {
    /// What the job says of it.
    pub section: &'a StageSection,
    /// What updates.
    pub optimizer: &'a Optimizer,
    /// The highest rate.
    pub top: f64,
    /// Its steps.
    pub total: u64,
}

impl Loop<'_> {
    /// Takes steps until a checkpoint is due, the epoch is over, or the run is to stop, which is what comes back. The state is
    /// whole then; where something has failed, there is none.
    pub(super) fn stretch(
        &mut self,
        stage: &Stage,
        (fed, epoch): (Fed<'_>, &Epoch),
        pace: &Pace<'_>,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<bool> {
        let mut stay = self.stay(stage, &fed);
        match self.steps(stage, (fed, epoch), pace, &mut stay, group, link) {
            Ok(stops) => stay.end(stage, &mut self.state).map(|()| stops),
            // The others are to hear of it at once, whatever the GPU is still at.
            Err(e) => {
                stay.lose(stage);
                Err(e)
            }
        }
    }

    fn steps(
        &mut self,
        stage: &Stage,
        (fed, epoch): (Fed<'_>, &Epoch),
        pace: &Pace<'_>,
        stay: &mut Stay,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<bool> {
        let per_epoch = self.per_epoch();
        for k in self.state.progress.step_in_epoch..per_epoch {
            let (started, stop) = (Instant::now(), link.stop_requested());
            let mut reduced = self.with_room(stage, stay, group, |from, group| {
                step::compute(&from.step(stage, fed, epoch, link.compares()), k, group, stop)
            })?;
            self.publish(group, link);
            let p = &self.state.progress;
            if link.compares() || reduced.flat.is_here() {
                let (names, layout) = (&self.net.network.initial, &stage.layout);
                let (flat, norms) = (reduced.flat.to_host()?, &reduced.norms);
                link.gradient(&Gradient { step: p.step + 1, names, layout, flat: &flat, norms });
            }
            let rate = optim::schedule::rate(pace.section, pace.top * p.plateau_factor, p.stage_step, pace.total);
            let norm = self.apply(stage, pace.optimizer, &mut reduced, (rate, k + 1), stay)?;
            self.report(group, link, &reduced, (rate.lr, norm, started, per_epoch), pace.total);
            if reduced.stop || self.is_due() {
                return Ok(reduced.stop);
            }
        }
        Ok(false)
    }

    /// Computes a step, once more without what stays on a GPU if there was no room for it beside that. Where values lie shows
    /// in no bit, and each rank has a GPU of its own: it does so by itself, unless others have heard of the step already.
    pub(super) fn with_room(
        &mut self,
        stage: &Stage,
        stay: &mut Stay,
        group: &mut dyn Collective,
        compute: impl Fn(&Self, &mut dyn Collective) -> Result<Reduced>,
    ) -> Result<Reduced> {
        let before = group.messages();
        let reduced = compute(self, group);
        let heard = group.messages() > before;
        if heard || !stay.holds() || !reduced.as_ref().is_err_and(Error::is_full) {
            return reduced;
        }
        std::mem::take(stay).end(stage, &mut self.state)?;
        compute(self, group)
    }

    /// Whether a checkpoint is due after the steps that are done.
    pub(super) fn is_due(&self) -> bool {
        let every = u64::from(self.run.spec.checkpoint.every);
        every > 0 && self.state.progress.step.is_multiple_of(every)
    }
}
