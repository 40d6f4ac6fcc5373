//! Weights by how uncertain each task is (Kendall, Gal and Cipolla, 2018): `Σ exp(−s)·L + s/2`, where `s = log σ²` of a
//! task is learned with the network. What a task counts is `exp(−s)`. `s` learns at the stage's highest rate, which is made
//! for weights: from rates and numbers of steps of a fine-tuning it does not go far from 0.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry};

use super::{super::exp, Method, Tasks};
use crate::{
    Error, Result,
    nn::{Fill, Own},
};

/// The name of the tensor with the logarithm of each task's variance.
pub const LOG_VARIANCES: &str = "log_variances";

fn describe() -> Entry {
    entry(
        "uncertainty",
        "tasks count by how uncertain they are, which is learned at the stage's highest rate: in few steps, or slow ones, all \
         go on counting about the same",
    )
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    own: |tasks| vec![Own { name: LOG_VARIANCES.into(), shape: vec![tasks], fill: Fill::Constant(0.0), most: None }],
    weigh,
};

fn weigh(tasks: &Tasks<'_>, parts: &[Tensor]) -> Result<Tensor> {
    let s = tasks.own.get(LOG_VARIANCES);
    let s = s.ok_or_else(|| Error::Internal(format!("the objective has no tensor `{LOG_VARIANCES}`")))?;
    let parts = Tensor::stack(parts, 0)?;
    let weighed = exp(&s.neg()?)?.mul(&parts)?.sum_all()?;
    // A grain counts by its samples of the first task: over a step that is once.
    let kept = (s.sum_all()? * (tasks.samples as f64 / 2.0))?;
    Ok((weighed + kept)?)
}

/// What tasks count at these logarithms of variances.
pub fn weights(log_variances: &[f32]) -> Vec<f64> {
    log_variances.iter().map(|s| libm::exp(-f64::from(*s))).collect()
}
