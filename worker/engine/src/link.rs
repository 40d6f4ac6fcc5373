//! The rank's way out: everything that it tells the world, and the wish to stop.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::nn::{Layout, Store};

/// What is worth keeping in the history of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// A checkpoint was not whole; an older one is used.
    CheckpointDamaged,
    /// A checkpoint could not be written; training goes on.
    CheckpointFailed,
    /// Samples that would not decode, or that go with nothing, were left out.
    SamplesSkipped,
    /// Files that lie among the samples and are none were passed over.
    FilesPassedOver,
    /// Halves of pairs are learned from without the other.
    HalvesMasked,
    /// A segment of the cache was not whole; its samples are computed again.
    CacheDamaged,
    /// The cache could not be written; training goes on without.
    CacheUnwritten,
    /// A stage ended early.
    StoppedEarly,
    /// A learning rate was searched for.
    RateFound,
    /// A run goes on on machines that compute other bits.
    OtherNumbers,
    /// Where training goes on.
    Resumed,
    /// Classes that few-shot episodes are judged by were trained on.
    SameClasses,
    /// Samples that are judged are trained on.
    SameSamples,
    /// Training samples of the same contents are in different classes.
    TwoClasses,
    /// A part of each clip is not heard.
    ClipsCut,
    /// The ends of texts are not read.
    TextsCut,
    /// What a teacher says cannot be kept; it runs in every step.
    TeacherNotKept,
    /// The outputs of a head that came with weights have other names beside them, or another order, than the classes.
    OutputsNamed,
    /// At the end of a stage, an average of the weights is still much of what the stage began with.
    AverageLags,
}

/// One row of the training series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Optimizer steps done.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// Epochs done, within the stage.
    pub epoch: f64,
    /// `train.loss`, `val.accuracy` and so on.
    pub values: std::collections::BTreeMap<String, f64>,
}

/// Norms of what each grain of a step added to its gradient, added up over the grains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Norms {
    /// Of all tensors together.
    pub whole: f64,
    /// Of each tensor, in the order of [`Gradient::tensors`].
    pub each: Vec<f64>,
}

impl Norms {
    /// Adds those of a grain, of which the squares are given, tensor by tensor; none, if nobody measured it.
    pub fn add(&mut self, squares: &[f64]) {
        self.each.resize(self.each.len().max(squares.len()), 0.0);
        self.each.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square.sqrt());
        self.whole += squares.iter().sum::<f64>().sqrt();
    }
}

/// The gradient of a step: sums over its samples, then those of batch-norms that learn.
pub struct Gradient<'a> {
    /// Step of the run, from 1.
    pub step: u64,
    /// Names of the tensors.
    pub names: &'a Store,
    /// Where each of them lies.
    pub layout: &'a Layout,
    /// The elements.
    pub flat: &'a [f32],
    /// Norms of what each grain added; none unless [`Link::compares`].
    pub norms: &'a Norms,
}

impl Gradient<'_> {
    /// Name and gradient of each tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &[f32])> {
        self.layout.trained().map(|(id, at)| (self.names.params[id.0].name.clone(), &self.flat[at]))
    }

    /// Name and sums of each batch-norm that learns.
    pub fn statistics(&self) -> impl Iterator<Item = (String, &[f32])> {
        self.layout.norms().map(|(id, at)| (self.names.buffers[id.0].name.clone(), &self.flat[at]))
    }
}

/// Where a rank reports to.
pub trait Link: Send {
    /// A row of the series.
    fn row(&mut self, row: &Row);
    /// Progress of what goes on now.
    fn activity(&mut self, name: &str, done: u64, total: u64);
    /// A checkpoint lies at `path` and may be published.
    fn checkpoint(&mut self, step: u64, path: &Path);
    /// A finished file.
    fn artifact(&mut self, name: &str, path: &Path);
    /// Something worth keeping.
    fn notice(&mut self, notice: Notice, text: &str);
    /// Whether gradients are compared: then the norms of grains are worked out too.
    fn compares(&self) -> bool {
        false
    }
    /// The reduced gradient of a step, before it is used. One that lies on a GPU comes down only for those who compare.
    fn gradient(&mut self, _: &Gradient<'_>) {}
    /// Whether the rank should stop at the next step.
    fn stop_requested(&self) -> bool;
}

/// A link that nobody is at the other end of.
pub struct Deaf;

impl Link for Deaf {
    fn row(&mut self, _: &Row) {}
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn stop_requested(&self) -> bool {
        false
    }
}
