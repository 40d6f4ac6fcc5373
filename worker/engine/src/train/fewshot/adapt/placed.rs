//! The same on a GPU: an episode begins with a copy that is made there, and nothing of a step goes up but what passes.

use std::{ops::Range, sync::Arc};

use super::{Adapted, Tuner};
use crate::{
    Result,
    gpu::{
        Device, Mixed, Placed,
        ops::{self, Sgd},
    },
    nn::{DropoutDraw, Gradients, Packs},
};

impl Tuner<'_> {
    /// See [`Tuner::adapt`].
    pub(super) fn adapt_placed<'d>(
        &self,
        packs: &Packs,
        shown: &Mixed,
        steps: usize,
        dropout: impl Fn(usize) -> Option<DropoutDraw<'d>>,
    ) -> Result<Adapted> {
        let (device, runs) = (shown.device(), self.runs());
        let mut own = self.begin(packs, device)?;
        let mut velocity = device.zeros(own.array().shape())?;
        let how = Sgd { momentum: self.steps.momentum as f32, lr: self.steps.rate as f32, decay: 0.0 };
        for step in 0..steps {
            let mut grads = Gradients::unmade(&self.layout);
            packs.lend(&self.layout, &own, || {
                self.slopes(&self.pass(self.store, packs, dropout(step)), shown.clone().into(), &mut grads)
            })?;
            let slopes = grads.finish()?.0.placed(device)?;
            own.change(|device, own| {
                runs.iter().try_for_each(|run| {
                    let at = (run.clone(), run.clone());
                    ops::sgd(device, [&mut *own, &mut velocity], slopes.array(), at, how)
                })
            })?;
        }
        Ok(Adapted::There(own))
    }

    /// What is trained, as it is before the first step: where a run's values stay on the GPU, these.
    fn begin(&self, packs: &Packs, device: &Arc<Device>) -> Result<Placed> {
        let first = match packs.resident().or_else(|| self.first.get().cloned()) {
            Some(first) => first,
            None => {
                let mut laid = vec![0.0; self.layout.params_len()];
                for (id, slot) in self.layout.trained() {
                    laid[slot].copy_from_slice(self.store.param(id));
                }
                let sent = Placed::new(device.clone(), device.upload(&laid, &[laid.len()])?);
                self.first.get_or_init(|| sent).clone()
            }
        };
        Ok(first.made(|device, first| device.copy(first))?)
    }

    /// Where that lies which moves, in as few runs as there are.
    fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for slot in self.moves.iter().filter_map(|id| self.layout.slot(*id)) {
            match runs.last_mut() {
                Some(last) if last.end == slot.start => last.end = slot.end,
                _ => runs.push(slot),
            }
        }
        runs
    }
}
