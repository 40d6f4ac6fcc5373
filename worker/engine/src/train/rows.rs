//! The series of a run: what each step has come to.

use std::{collections::BTreeMap, time::Instant};

use super::{Loop, epoch, step};
use crate::{
    collective::Collective,
    link::{Link, Row},
};

impl Loop<'_> {
    /// Tells of a step that is done.
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
        let n = reduced.samples as f64;
        let rate = n / started.elapsed().as_secs_f64().max(1e-9);
        let values = [
            ("train.loss", reduced.loss / n),
            ("train.accuracy", reduced.correct as f64 / n),
            ("lr", lr),
            ("grad_norm", norm),
            ("samples_per_s", rate),
        ];
        let epoch = f64::from(p.epoch) + p.step_in_epoch as f64 / per_epoch as f64;
        let stage = self.run.spec.stage[p.stage].name.clone();
        let values = values.into_iter().filter(|(name, _)| self.pairs.is_none() || *name != "train.accuracy");
        let mut values: BTreeMap<String, f64> = values.map(|(name, value)| (name.to_owned(), value)).collect();
        let figures = self.figures(&reduced.tasks);
        if let Some(mean) = epoch::mean_accuracy(&figures) {
            values.insert("train.accuracy".into(), mean);
        }
        values.extend(figures);
        link.row(&Row { step: p.step, stage: stage.clone(), epoch, values });
        link.activity(&format!("train {stage}"), p.stage_step, total);
    }
}
