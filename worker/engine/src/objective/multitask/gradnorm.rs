//! GradNorm (Chen, Badrinarayanan, Lee and Rabinovich, 2018): weights move so that the gradients of all tasks at the last
//! shared layer have about the same norm, and more of it for a task that has learned less than the others.

use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{Method, weighed};

const NAME: &str = "gradnorm";

/// No weight falls below this before they are made to add up again: its task would be lost for good.
const LEAST: f64 = 1e-3;

fn describe() -> Entry {
    Entry {
        params: vec![
            number("alpha", 1.5, 0.0, 12.0, "how strongly tasks that are behind pull"),
            number("rate", 0.025, 0.0, 1.0, "what a weight moves by in a step, where its gradient is an average one"),
        ],
        ..entry(NAME, "tasks count so that their gradients at the last shared layer are alike")
    }
}

pub(super) const METHOD: Method = Method { entry: describe, own: |_| Vec::new(), weigh: weighed };

/// How weights follow the gradients of the tasks, if that is the job's method.
pub(super) fn balance(params: &Params) -> Option<Balance> {
    let number = |name: &str| describe().number(params, name);
    let is = super::describe().method(params).name == NAME;
    is.then(|| Balance { alpha: number("alpha"), rate: number("rate") })
}

/// The rule by which weights move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// How strongly tasks that are behind pull.
    pub alpha: f64,
    /// What a weight moves by.
    pub rate: f64,
}

impl Balance {
    /// Moves `weights` after a step. `norms` are those of the weighed losses' gradients at the last shared layer, `losses`
    /// the means of the step, and `first` those of the first step.
    ///
    /// It is a step down `Σ |G − Ḡ·r^α|`, whose second terms are constants, divided by the mean norm `Ḡ`: so the rate means
    /// the same for large gradients and for small ones. Then weights are scaled to add up to their number.
    pub fn step(&self, weights: &mut [f64], norms: &[f64], losses: &[f64], first: &[f64]) {
        let n = weights.len() as f64;
        let mean = |of: &[f64]| of.iter().sum::<f64>() / n;
        let progress: Vec<f64> = losses.iter().zip(first).map(|(now, first)| now / first).collect();
        let (mean_norm, mean_progress) = (mean(norms), mean(&progress));
        let usable = mean_norm > 0.0 && mean_progress > 0.0 && mean_norm.is_finite() && mean_progress.is_finite();
        if !usable || weights.len() < 2 {
            return;
        }
        for ((weight, norm), progress) in weights.iter_mut().zip(norms).zip(&progress) {
            let wanted = mean_norm * libm::pow(progress / mean_progress, self.alpha);
            let side = if *norm == wanted { 0.0 } else { (norm - wanted).signum() };
            *weight = (*weight - self.rate * side * norm / (*weight * mean_norm)).max(LEAST);
        }
        let total = weights.iter().sum::<f64>();
        weights.iter_mut().for_each(|w| *w *= n / total);
    }
}
