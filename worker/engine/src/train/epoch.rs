//! The end of an epoch: what it came to, and what follows from it.

use std::collections::BTreeMap;

use tl_proto::spec::StageSection;

use super::{
    Fed, Loop,
    domain::Shifted,
    fewshot::judge::Judged,
    state::{EpochFigures, Sums},
    tasks::mean,
    watch::{Watch, monitored},
};
use crate::{
    Error, Result,
    collective::Collective,
    link::{Link, Row},
    modifier,
};

impl Loop<'_> {
    /// Whether it is told how many training samples are judged right: pairs have no labels, and the label of a sample that
    /// is mixed is as often as not the smaller part of what is asked for.
    pub(super) fn tells_accuracy(&self) -> bool {
        self.pairs.is_none() && !modifier::mixes(&self.run.spec.modifiers)
    }

    /// Evaluates and decides, from numbers that every rank has alike, whether the stage goes on.
    pub(super) fn end_epoch(
        &mut self,
        section: &StageSection,
        top: f64,
        fed: Fed<'_>,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<bool> {
        // Where averages are kept, they are what is judged.
        self.state.swap_averages();
        let judged = self.judge(section, fed, group, link);
        if matches!(&judged, Ok((.., true))) && self.run.spec.stop.as_ref().is_some_and(|s| s.restore_best) {
            self.state.best = Some((self.state.store.values.clone(), self.state.store.buffer_values.clone()));
            self.state.progress.weighing.keep();
        }
        self.state.swap_averages();
        let (values, better) = judged?;
        let p = &mut self.state.progress;
        if let Some(plateau) = section.plateau() {
            let value = monitored(&plateau.monitor, &values);
            p.plateau_factor = p.plateau.lowered(value, top * p.plateau_factor, &plateau) / top;
        }
        let mut over = section.advance.as_ref().is_some_and(|a| {
            let value = monitored(&a.monitor, &values);
            p.advance.exhausted(value, a.min_delta, a.patience)
        });
        let Some(stop) = self.run.spec.stop.as_ref().filter(|_| !better) else { return Ok(over) };
        p.stop_wait += 1;
        p.plateau_wait += 1;
        if let Some(factor) = stop.plateau_factor.filter(|_| p.plateau_wait >= stop.plateau_patience) {
            p.plateau_factor *= factor;
            p.plateau_wait = 0;
        }
        // As Keras counts: as many epochs in a row as `patience` says, and one at least.
        over |= stop.patience.is_some_and(|patience| p.stop_wait >= patience.max(1));
        Ok(over)
    }

    /// Evaluates; says what it came to, by name, and whether it is the best of the stage by the metric of `[stop]`.
    fn judge(
        &mut self,
        section: &StageSection,
        fed: Fed<'_>,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<(BTreeMap<String, f64>, bool)> {
        let judged = self.judged(fed.val, fed.judged, fed.tasks, Judged::Val, group)?;
        let shifted = self.shifted(fed.val.cut, fed.shifted, false, group)?;
        let (predictions, tells) = (self.run.predictions() as u64, self.tells_accuracy());
        let mut values = judged.values();
        let loss = values["val.loss"];
        let trained = std::mem::take(&mut self.state.progress.weighing.sums);
        let trained = self.figures(&trained);
        let p = &mut self.state.progress;
        if !loss.is_finite() {
            let (step, epoch) = (p.step, p.epoch + 1);
            return Err(Error::NotFinite(format!(
                "the validation loss after step {step} (epoch {epoch} of the stage) is {loss}"
            )));
        }
        let sums = std::mem::take(&mut p.sums);
        p.epoch += 1;
        p.step_in_epoch = 0;
        let Sums { samples, loss, correct } = sums;
        let minimised = loss / samples.max(1) as f64;
        values.insert("train.loss".into(), minimised);
        if tells {
            values.insert("train.accuracy".into(), correct as f64 / (samples * predictions).max(1) as f64);
        }
        values.extend(shifted.iter().flat_map(Shifted::values));
        values.extend(of_tasks(&trained, minimised));
        values.extend(trained);
        p.history.push(EpochFigures { stage: section.name.clone(), epoch: p.epoch, values: values.clone() });
        if group.rank() == 0 {
            // Of tasks, `tasks.NAME.train_loss` and its like.
            let trained = |name: &str| {
                name.starts_with("train.") || name.rsplit('.').next().is_some_and(|last| last.starts_with("train_"))
            };
            // Series of `train.` are of steps; what they came to over the epoch has names of its own.
            let over_epoch =
                ["loss", "accuracy"].map(|n| Some((format!("train.epoch_{n}"), *values.get(&format!("train.{n}"))?)));
            let only_val = values.clone().into_iter().filter(|(name, _)| !trained(name));
            let row = only_val.chain(over_epoch.into_iter().flatten()).collect();
            link.row(&Row { step: p.step, stage: section.name.clone(), epoch: f64::from(p.epoch), values: row });
        }
        let Some(stop) = &self.run.spec.stop else { return Ok((values, false)) };
        let mut watch = Watch { best: p.best, ..Watch::default() };
        let better = watch.improves(monitored(&stop.monitor, &values), stop.min_delta);
        p.best = watch.best;
        if better {
            (p.stop_wait, p.plateau_wait, p.best_epoch) = (0, 0, p.epoch);
        }
        Ok((values, better))
    }
}

/// What stands for all tasks, where there are such: the means of their own figures, as of validation samples, and beside
/// them what is minimised, in which each counts what it counts.
pub(super) fn of_tasks(figures: &[(String, f64)], objective: f64) -> Vec<(String, f64)> {
    let of = |what: &str| {
        let all: Vec<f64> = figures.iter().filter(|(name, _)| name.ends_with(what)).map(|f| f.1).collect();
        (!all.is_empty()).then(|| mean(all.into_iter()))
    };
    let Some(loss) = of(".train_loss") else { return Vec::new() };
    let accuracy = of(".train_accuracy").map(|accuracy| ("train.accuracy", accuracy));
    let all = [("train.loss", loss), ("train.objective", objective)].into_iter().chain(accuracy);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}
