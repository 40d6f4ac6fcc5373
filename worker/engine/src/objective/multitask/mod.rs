//! Several tasks on one network (Caruana, 1997), each with a head and classes of its own: the cross-entropies of all of
//! them, weighed against each other. A new way of weighing is a file here and a line in [`METHODS`].
//!
//! Every task's loss is a mean over its own samples of the step, however many those are and wherever they were computed:
//! a grain adds up its samples, and what it adds counts by how many samples the task has in the whole step.

mod fixed;
mod gradnorm;
#[cfg(test)]
mod tests;
mod uncertainty;

use std::collections::BTreeMap;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

pub use gradnorm::Balance;
pub use uncertainty::{LOG_VARIANCES, weights as weights_of};

use super::{Objective, PLAIN, chosen, cross_entropy, smoothed};
use crate::{Error, Result, nn::Own};

/// What a grain holds of one task.
pub struct Task<'a> {
    /// `[n, classes]`; a variable.
    pub logits: &'a Tensor,
    /// `[n, classes]`: target probabilities.
    pub targets: &'a Tensor,
    /// `[classes]`: what a class counts, where they do not all count the same.
    pub classes: Option<&'a Tensor>,
}

/// What a grain holds of all tasks.
pub struct Tasks<'a> {
    /// Each task, the first that of `[data]`.
    pub each: Vec<Task<'a>>,
    /// Samples of the first task in the step over those of each: what turns sums over a grain into parts of a mean.
    pub scales: &'a [f64],
    /// What each task's loss counts.
    pub weights: &'a [f64],
    /// Samples of the first task in the grain.
    pub samples: usize,
    /// The objective's own tensors, by name; variables.
    pub own: &'a BTreeMap<String, Tensor>,
}

/// The weighed losses in one, and the loss of each task.
pub type Losses = (Tensor, Vec<f64>);

/// How an objective learns several tasks at once.
pub struct Several {
    /// Σ over the samples of the first task of the weighed losses, for each task the sum over its own.
    pub loss: fn(&Params, &Tasks<'_>) -> Result<Losses>,
    /// What tasks count in the first step, where the job says so much of those beside the first.
    pub first: fn(&Params, &[f64]) -> Vec<f64>,
    /// How weights follow the gradients of the tasks, where they do.
    pub balance: fn(&Params) -> Option<Balance>,
    /// At what rate the objective's own tensors learn, where that is not a stage's highest.
    pub rate: fn(&Params) -> Option<f64>,
}

/// One way of weighing.
struct Method {
    /// What the catalog says.
    entry: fn() -> Entry,
    /// Tensors of its own, for so many tasks.
    own: fn(usize) -> Vec<Own>,
    /// The weighed losses in one, from those of each task as parts of a mean.
    weigh: fn(&Tasks<'_>, &[Tensor]) -> Result<Tensor>,
}

/// Every method.
const METHODS: &[Method] = &[fixed::METHOD, uncertainty::METHOD, gradnorm::METHOD];

fn describe() -> Entry {
    Entry {
        params: vec![number("label_smoothing", 0.0, 0.0, 0.9, "part of the target spread evenly over all classes")],
        methods: METHODS.iter().map(|m| (m.entry)()).collect(),
        tasks: true,
        ..entry("multitask", "several heads on one network, each for classes, and samples, of its own (`[tasks.NAME]`)")
    }
}

/// The method of a job that the check has let through; the first one otherwise.
fn method(params: &Params) -> &'static Method {
    chosen(params, describe, METHODS, |m| (m.entry)())
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    own: |params, widths| Ok((method(params).own)(widths.tasks)),
    several: Some(Several { loss, first: fixed::first, balance: gradnorm::balance, rate: uncertainty::rate }),
    ..PLAIN
};

fn loss(params: &Params, tasks: &Tasks<'_>) -> Result<(Tensor, Vec<f64>)> {
    let smoothing = describe().number(params, "label_smoothing");
    let (mut parts, mut alone) = (Vec::new(), Vec::new());
    for (Task { logits, targets, classes }, scale) in tasks.each.iter().zip(tasks.scales) {
        let sum = cross_entropy(logits, &smoothed(targets, smoothing)?, *classes)?;
        alone.push(f64::from(sum.to_scalar::<f32>()?));
        parts.push(times(sum, *scale)?);
    }
    Ok(((method(params).weigh)(tasks, &parts)?, alone))
}

/// Times a number; by one, exactly what it was.
fn times(t: Tensor, by: f64) -> Result<Tensor> {
    if by == 1.0 { Ok(t) } else { Ok((t * by)?) }
}

/// Σ of weights times losses.
fn weighed(tasks: &Tasks<'_>, parts: &[Tensor]) -> Result<Tensor> {
    let mut all = parts.iter().zip(tasks.weights).map(|(part, weight)| times(part.clone(), *weight));
    let first = all.next().unwrap_or_else(|| Err(Error::Internal("a job without a task".into())))?;
    all.try_fold(first, |sum, part| Ok((sum + part?)?))
}
