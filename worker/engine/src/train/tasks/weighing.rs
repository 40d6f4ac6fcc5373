//! What each task counts, step by step: a part of the state of a run, moved by numbers that every rank has alike.

use serde::{Deserialize, Serialize};

use super::{
    super::{Loop, step::Reduced},
    names,
};
use crate::{
    Result,
    nn::OWN,
    num,
    objective::{LOG_VARIANCES, weights_of},
};

/// What is known of all tasks, that of `[data]` first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Weighing {
    /// What the loss of each counts.
    pub weights: Vec<f64>,
    /// The mean loss of each in the first step; empty before it, and where nothing follows from it.
    pub first: Vec<f64>,
    /// `weights` as they were with the best values of the stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub best: Vec<f64>,
    /// Sums over the steps of the epoch.
    pub sums: Vec<TaskSums>,
}

/// What a task comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskSums {
    /// Samples.
    pub samples: u64,
    /// Σ loss, neither weighed nor scaled.
    pub loss: f64,
    /// Right predictions.
    pub correct: u64,
}

impl Weighing {
    /// Keeps what tasks count now, beside values that are kept.
    pub fn keep(&mut self) {
        self.best.clone_from(&self.weights);
    }

    /// Goes back to what was kept, if anything was.
    pub fn restore(&mut self) {
        if !self.best.is_empty() {
            self.weights = std::mem::take(&mut self.best);
        }
    }
}

impl TaskSums {
    /// Adds what another part comes to.
    pub fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.loss += other.loss;
        self.correct += other.correct;
    }

    /// The mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.samples.max(1) as f64
    }

    /// Part that was right.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.samples.max(1) as f64
    }
}

/// The mean of some figures.
pub(in crate::train) fn mean(of: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = of.len().max(1) as f64;
    of.sum::<f64>() / n
}

impl Loop<'_> {
    /// Moves the weights of tasks after a step, where they follow gradients, and counts what the step came to.
    ///
    /// # Errors
    /// The gradients cannot be had.
    pub(in crate::train) fn weigh(&mut self, reduced: &Reduced, behind: usize) -> Result<()> {
        if self.tasks.is_none() {
            return Ok(());
        }
        let weighing = &mut self.state.progress.weighing;
        weighing.sums.resize(reduced.tasks.len(), TaskSums::default());
        weighing.sums.iter_mut().zip(&reduced.tasks).for_each(|(sum, one)| sum.add(one));
        let several = self.run.objective.several.as_ref();
        let Some(balance) = several.and_then(|s| (s.balance)(&self.run.spec.objective)) else { return Ok(()) };
        let losses: Vec<f64> = reduced.tasks.iter().map(TaskSums::mean).collect();
        if weighing.first.is_empty() {
            weighing.first.clone_from(&losses);
        }
        let asides = reduced.flat.run(behind..reduced.flat.count())?;
        let each = asides.len() / weighing.weights.len().max(1);
        // Where nothing shared is trained, there is nothing to even out.
        if each > 0 {
            let n = reduced.samples as f64;
            let norms: Vec<f64> = asides.chunks_exact(each).map(|g| num::squared_norm(g).sqrt() / n).collect();
            balance.step(&mut weighing.weights, &norms, &losses, &weighing.first);
        }
        Ok(())
    }

    /// What each task counts now.
    pub(in crate::train) fn counts(&self) -> Vec<f64> {
        let store = &self.state.store;
        let learned = self
            .net
            .network
            .own
            .iter()
            .find(|id| self.net.network.initial.params[id.0].name.strip_prefix(OWN) == Some(LOG_VARIANCES));
        match learned {
            Some(id) => weights_of(store.param(*id)),
            None => self.state.progress.weighing.weights.clone(),
        }
    }

    /// Figures of a step, or of the steps of an epoch, by task.
    pub(in crate::train) fn figures(&self, sums: &[TaskSums]) -> Vec<(String, f64)> {
        let Some(tasks) = self.tasks else { return Vec::new() };
        let each = names(tasks).zip(sums).zip(self.counts());
        let tells = self.tells_accuracy();
        each.flat_map(|((name, sums), weight)| {
            let accuracy = tells.then(|| ("train_accuracy", sums.accuracy()));
            let all = [("train_loss", sums.mean()), ("weight", weight)].into_iter().chain(accuracy);
            all.map(|(what, value)| (format!("tasks.{name}.{what}"), value)).collect::<Vec<_>>()
        })
        .collect()
    }
}
