//! What rank 0 hands out on the way: rows of the series, and checkpoints.

use std::{collections::BTreeMap, time::Instant};

use super::{Loop, epoch::of_tasks, step};
use crate::{
    Result,
    collective::Collective,
    link::{Link, Notice, Row},
};

impl Loop<'_> {
    /// Tells what a step came to: its rate, the norm of its gradient, when it began, and steps of an epoch; then steps of
    /// the stage.
    pub(super) fn report(
        &self,
        group: &dyn Collective,
        link: &mut dyn Link,
        reduced: &step::Reduced,
        (lr, norm, started, per_epoch): (f64, f64, Instant, usize),
        total: u64,
    ) {
        if group.rank() != 0 {
            return;
        }
        let p = &self.state.progress;
        let n = reduced.samples.max(1) as f64;
        let rate = reduced.draws as f64 / started.elapsed().as_secs_f64().max(1e-9);
        let speed = if self.run.few.is_some() { "episodes_per_s" } else { "samples_per_s" };
        let values = [
            ("train.loss", reduced.loss / n),
            ("train.accuracy", reduced.correct as f64 / (n * self.run.predictions() as f64)),
            ("lr", lr),
            ("grad_norm", norm),
            (speed, rate),
        ];
        let penalty = self.anchor.is_some().then_some(("penalty", reduced.penalty));
        let epoch = f64::from(p.epoch) + p.step_in_epoch as f64 / per_epoch as f64;
        let stage = self.run.spec.stage[p.stage].name.clone();
        // Where no pair is whole, there is no loss.
        let there = |name: &str| match name {
            "train.accuracy" => self.tells_accuracy(),
            "train.loss" => reduced.samples > 0,
            _ => true,
        };
        let values = values.into_iter().filter(|(name, _)| there(name));
        let mut values: BTreeMap<String, f64> =
            values.chain(penalty).map(|(name, value)| (name.to_owned(), value)).collect();
        let tasks = self.figures(&reduced.tasks);
        values.extend(of_tasks(&tasks, reduced.loss / n));
        values.extend(tasks);
        link.row(&Row { step: p.step, stage: stage.clone(), epoch, values });
        link.activity(&format!("train {stage}"), p.stage_step, total);
    }

    /// Writes a checkpoint aside; it is published once everyone is known to have its state.
    pub(super) fn checkpoint(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<()> {
        if group.rank() != 0 {
            return Ok(());
        }
        match self.state.save(&self.config.work) {
            Ok(path) => {
                self.failed_checkpoints = 0;
                self.pending = Some((self.state.progress.step, path));
                Ok(())
            }
            Err(e) => {
                self.failed_checkpoints += 1;
                link.notice(
                    Notice::CheckpointFailed,
                    &format!("{e}; training goes on ({} in a row)", self.failed_checkpoints),
                );
                if self.failed_checkpoints > self.run.spec.checkpoint.tolerate { Err(e) } else { Ok(()) }
            }
        }
    }

    /// Hands out the checkpoint that waits for it: everyone has its state.
    pub(super) fn publish(&mut self, group: &dyn Collective, link: &mut dyn Link) {
        if let (0, Some((step, path))) = (group.rank(), self.pending.take()) {
            link.checkpoint(step, &path);
        }
    }
}
