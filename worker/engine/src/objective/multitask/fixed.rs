//! Weights that the job gives: 1 for each task, unless it says otherwise.

use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{Method, weighed};

fn describe() -> Entry {
    Entry {
        params: vec![number("weight", 1.0, 1e-6, 1e6, "what the loss on the classes of `[data]` counts")],
        ..entry("fixed", "tasks count what the job says (`tasks.NAME.weight`)")
    }
}

/// What tasks count in the first step, where the job says so much of those beside the first. Where weights are learned,
/// nothing else than 1 comes here.
pub(super) fn first(params: &Params, others: &[f64]) -> Vec<f64> {
    std::iter::once(describe().number(params, "weight")).chain(others.iter().copied()).collect()
}

pub(super) const METHOD: Method = Method { entry: describe, own: |_| Vec::new(), weigh: weighed };
