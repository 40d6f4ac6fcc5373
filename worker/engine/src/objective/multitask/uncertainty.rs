//! Weights by how uncertain each task is (Kendall, Gal and Cipolla, 2018): `Σ exp(−s)·L + s/2`, where `s = log σ²` of a
//! task is learned with the network. What a task counts is `exp(−s)`. As in the paper `s` learns at the rate of weights:
//! from rates and numbers of steps of a fine-tuning it does not go far from 0, unless it is given a rate of its own.

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{super::exp, Method, Tasks};
use crate::{
    Error, Result,
    nn::{Fill, Own},
};

/// The name of the tensor with the logarithm of each task's variance.
pub const LOG_VARIANCES: &str = "log_variances";

const NAME: &str = "uncertainty";

fn describe() -> Entry {
    Entry {
        params: vec![number(
            "variance_lr",
            0.0,
            0.0,
            10.0,
            "rate of the variances' logarithms, which follows the stage's schedule; 0 is the stage's highest, at which all \
             tasks go on counting about the same in few steps, or slow ones",
        )],
        ..entry(NAME, "tasks count by how uncertain they are, which is learned")
    }
}

/// At what rate the logarithms learn, if that is the job's method and it says so.
pub(super) fn rate(params: &Params) -> Option<f64> {
    let is = super::describe().method(params).name == NAME;
    Some(describe().number(params, "variance_lr")).filter(|rate| is && *rate > 0.0)
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    own: |tasks| vec![Own { name: LOG_VARIANCES.into(), shape: vec![tasks], fill: Fill::Constant(0.0), span: None }],
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
