//! The only place where the state of a run changes: what becomes of a step that all ranks have reduced alike.

use super::{Loop, gate, stage::Stage, stay::Stay, step::Reduced};
use crate::{Error, Result, modifier, nn, num, optim};

impl Loop<'_> {
    /// Update, running statistics, counters; what comes back is the norm of the gradient. A step without a whole pair
    /// has nothing to be learned from: no weight decays by it, no moment fades, and the gate does not take it for a
    /// gradient of zero. `next` is the step of the epoch that follows.
    pub(super) fn apply(
        &mut self,
        stage: &Stage,
        optimizer: &optim::Optimizer,
        reduced: &mut Reduced,
        (rate, next): (optim::Rate, usize),
        stay: &mut Stay,
    ) -> Result<f64> {
        let norm = if reduced.samples == 0 { 0.0 } else { self.update(stage, optimizer, reduced, rate, stay)? };
        let (first, end) = (stage.layout.params_len(), stage.layout.total_len());
        let sums = reduced.flat.run(first..end)?;
        let store = &mut self.state.store;
        for (mean_id, var_id) in &stage.norms {
            let Some(at) = stage.layout.stats(*mean_id) else { continue };
            let mut mean = store.buffer(*mean_id).to_vec();
            let mut var = store.buffer(*var_id).to_vec();
            nn::update_running(&mut mean, &mut var, &sums[at.start - first..at.end - first]);
            store.buffer_values[store.buffers[mean_id.0].range.clone()].copy_from_slice(&mean);
            store.buffer_values[store.buffers[var_id.0].range.clone()].copy_from_slice(&var);
        }
        let keep = modifier::average(&self.run.spec.modifiers, self.state.progress.averaged);
        if let Some(keep) = keep.filter(|_| reduced.samples > 0) {
            stay.average(stage, keep, &mut self.state)?;
        }
        let p = &mut self.state.progress;
        p.step += 1;
        p.stage_step += 1;
        p.step_in_epoch = next;
        p.sums.samples += reduced.samples;
        p.sums.loss += reduced.loss;
        p.sums.correct += reduced.correct;
        self.weigh(reduced, end)?;
        Ok(norm)
    }

    /// Mean, gate, clip, update.
    fn update(
        &mut self,
        stage: &Stage,
        optimizer: &optim::Optimizer,
        reduced: &mut Reduced,
        rate: optim::Rate,
        stay: &mut Stay,
    ) -> Result<f64> {
        if let Some(norm) = self.update_there(stage, optimizer, reduced, rate, stay)? {
            return Ok(norm);
        }
        let mean = &mut reduced.flat.here()?[..stage.layout.params_len()];
        num::divide(mean, reduced.samples as f32);
        let names = &self.net.network.initial;
        gate::check(&mut self.state.progress, names, &stage.layout, &reduced.touched, mean)?;
        if let Some(anchor) = &self.anchor {
            reduced.penalty = anchor.pull(&self.state.store.values, &self.state.importance, &stage.layout, mean);
        }
        let norm = finite(optim::clip(mean, self.run.spec.optimizer.clip_norm), self.state.progress.step)?;
        let store = &mut self.state.store;
        (optimizer.step)(
            &self.run.spec.optimizer,
            &mut self.state.moments,
            &mut store.values,
            mean,
            &stage.groups,
            rate,
        );
        for (id, [least, most]) in &self.net.network.limits {
            let bounded = &mut store.values[store.params[id.0].range.clone()];
            bounded.iter_mut().for_each(|v| *v = v.clamp(*least, *most));
        }
        Ok(norm)
    }
}

/// The norm of the gradient that follows so many steps, if it is a number.
pub(super) fn finite(norm: f64, done: u64) -> Result<f64> {
    if norm.is_finite() {
        return Ok(norm);
    }
    Err(Error::NotFinite(format!("the gradient of step {} is not finite", done + 1)))
}
