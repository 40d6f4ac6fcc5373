//! Few-shot learning: an episode shows a few samples of classes that were never seen, and asks for the classes of others.
//! A new method is a file here and a line in [`METHODS`].
//!
//! What is minimised is Σ over episodes of the mean −log p over an episode's queries.

mod fine_tune;
mod linear;
mod maml;
mod matching;
mod prototype;
#[cfg(test)]
mod tests;

use candle_core::{Tensor, Var};
use tl_proto::{
    catalog::{Entry, entry},
    spec::Params,
};

use super::{Objective, PLAIN, chosen, cross_entropy};
use crate::{
    Error, Result,
    nn::{host, tensor},
};

/// One way to learn from a few samples.
pub struct Method {
    entry: fn() -> Entry,
    /// How it learns.
    pub learns: Learns,
}

/// Scores `[queries, classes]` of what is asked for.
type Scores = fn(&Params, &Shown<'_>) -> Result<Tensor>;

/// How a method learns from what it is shown.
pub enum Learns {
    /// It compares features; the network learns to make such that compare well.
    Compares(Scores),
    /// It fits a classifier to features of a network that stays as it is.
    Fits(Scores),
    /// It takes steps down the gradient of what it is shown, on a copy of the network.
    Adapts(fn(&Params) -> Steps),
}

/// What an episode shows and asks for, as features.
pub struct Shown<'a> {
    /// `[n, d]`, those of a class together.
    pub support: &'a Tensor,
    /// How many of them are of each class.
    pub counts: &'a [usize],
    /// `[m, d]`
    pub query: &'a Tensor,
}

/// Steps on a copy of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// How many while it is trained for this; 0 where it is not.
    pub trained: usize,
    /// How many when it is judged.
    pub judged: usize,
    /// Learning rate.
    pub rate: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// What moves, by rules as of a stage.
    pub moves: Vec<String>,
}

/// Every method.
pub const METHODS: &[Method] = &[prototype::METHOD, matching::METHOD, maml::METHOD, linear::METHOD, fine_tune::METHOD];

fn describe() -> Entry {
    Entry {
        methods: METHODS.iter().map(|m| (m.entry)()).collect(),
        data: vec!["episodes".into()],
        ..entry(
            "fewshot",
            "new classes from a few samples each: trained and judged by episodes, or, without stages, judged only",
        )
    }
}

/// The method of a job that the check has let through; the first one otherwise.
pub fn method(params: &Params) -> &'static Method {
    chosen(params, describe, METHODS, |m| (m.entry)())
}

impl Method {
    /// Its name in the job file.
    pub fn name(&self) -> String {
        (self.entry)().name
    }

    /// Whether the network needs an output for each class of an episode.
    pub fn classifies(&self) -> bool {
        matches!(self.learns, Learns::Adapts(_))
    }

    /// Whether stages train for it.
    pub fn trains(&self, params: &Params) -> bool {
        match self.learns {
            Learns::Compares(_) => true,
            Learns::Fits(_) => false,
            Learns::Adapts(steps) => steps(params).trained > 0,
        }
    }

    /// Whether it can be judged without having been trained for.
    pub fn stands_alone(&self, params: &Params) -> bool {
        match self.learns {
            Learns::Adapts(_) => !self.trains(params),
            _ => true,
        }
    }
}

/// The mean of −log p of the right classes, of scores of as many queries of each class, class by class; a scalar.
///
/// # Errors
/// Scores that are not for so many classes.
pub fn mean_loss(scores: &Tensor) -> Result<Tensor> {
    let (m, way) = scores.dims2()?;
    let each = m / way.max(1);
    if each * way != m || m == 0 {
        return Err(Error::Internal(format!("{m} queries of {way} classes")));
    }
    let mut targets = vec![0.0; m * way];
    (0..m).for_each(|i| targets[i * way + i / each] = 1.0);
    Ok((cross_entropy(scores, &tensor(targets, &[m, way])?, None)? / m as f64)?)
}

/// The loss of scores that a function of features gives, and its gradient by the features.
///
/// # Errors
/// A function that does not look at them.
pub fn graded(features: &Tensor, scores: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(f64, Tensor, Tensor)> {
    let var = Var::from_tensor(&features.contiguous()?)?;
    let scores = scores(var.as_tensor())?;
    let loss = mean_loss(&scores)?;
    let grads = loss.backward()?;
    let grad = grads.get(&var).ok_or_else(|| Error::Internal("the loss does not depend on the network".into()))?;
    Ok((f64::from(loss.to_scalar::<f32>()?), grad.contiguous()?, scores.detach()))
}

/// The mean of each class's rows: `[classes, d]`.
fn means(shown: &Shown<'_>) -> Result<Tensor> {
    let (way, n) = (shown.counts.len(), shown.support.dim(0)?);
    let mut share = vec![0.0; way * n];
    let mut at = 0;
    for (class, count) in shown.counts.iter().enumerate() {
        share[class * n + at..class * n + at + count].fill(1.0 / *count as f32);
        at += count;
    }
    super::ops::product(&tensor(share, &[way, n])?, shown.support)
}

/// Scores by which a query has the class of the nearest shown sample: minus the smallest squared distance.
///
/// # Errors
/// Tensors that are not on the CPU.
pub fn nearest(shown: &Shown<'_>) -> Result<Tensor> {
    let distances = super::ops::distances_to(shown.query, shown.support)?;
    let (m, n) = distances.dims2()?;
    let distances = host(&distances)?;
    let mut scores = Vec::with_capacity(m * shown.counts.len());
    for row in distances.chunks_exact(n.max(1)) {
        let mut rest = row;
        for count in shown.counts {
            let (own, others) = rest.split_at((*count).min(rest.len()));
            scores.push(-own.iter().copied().fold(f32::INFINITY, f32::min));
            rest = others;
        }
    }
    tensor(scores, &[m, shown.counts.len()])
}

pub(super) const OBJECTIVE: Objective = Objective { entry: describe, ..PLAIN };
