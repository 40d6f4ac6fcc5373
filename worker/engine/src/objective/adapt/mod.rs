//! Domain adaptation: labels of one domain, samples without labels of another. The network learns the labels, and a
//! method brings the two domains together. A new method is a file here and a line in [`METHODS`].
//!
//! All methods but `direct` and `statistics` look at the whole batch: `Σ CE(source) + n · trade_off · L(method)` for n source
//! samples. A method with a usual weight of its own has the kind's `trade_off` among its parameters, with that default.

mod cdan;
mod coral;
mod dann;
mod direct;
mod domain;
mod mcc;
mod mmd;
mod self_training;
mod statistics;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{Batch, Objective, PLAIN, Widths, chosen, cross_entropy};
use crate::{Result, nn::Own};

/// What a method does with samples of the other domain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Nothing: they stay where they are.
    Left,
    /// They pass the network beside the others, which changes its batch-norms, and no loss looks at what comes out.
    Passed,
    /// They pass it too, and the loss, one of the whole batch, looks at them.
    Judged,
}

/// One way of bringing two domains together.
struct Method {
    /// What the catalog says.
    entry: fn() -> Entry,
    /// What it does with samples of the other domain.
    target: Target,
    /// Whether the head learns nothing from it, but what makes the features alone: then it is of no use where that is frozen.
    features: fn(&Params) -> bool,
    /// Whether it lets the average of the weights speak, where the job keeps one.
    averages: bool,
    /// Tensors of its own.
    own: fn(&Params, Widths) -> Result<Vec<Own>>,
    /// Its loss; nothing where it adds none. It is a mean over samples of the source, of the target, or of both, as its paper
    /// has it, and without `trade_off`: the kind of job weighs it.
    loss: fn(&Params, &Batch<'_>) -> Result<Option<Tensor>>,
}

/// Every method.
const METHODS: &[Method] = &[
    dann::METHOD,
    cdan::METHOD,
    mmd::METHOD,
    coral::METHOD,
    mcc::METHOD,
    self_training::METHOD,
    statistics::METHOD,
    direct::METHOD,
];

fn describe() -> Entry {
    Entry {
        params: vec![number("trade_off", 1.0, 1e-6, 1e4, "weight of the method's loss beside that of the labels")],
        methods: METHODS.iter().map(|m| (m.entry)()).collect(),
        data: vec!["target".into()],
        ..entry("adapt", "a network with labels of one domain is brought to another domain that has none")
    }
}

/// The method of a job that the check has let through; the first one otherwise.
fn method(params: &Params) -> &'static Method {
    chosen(params, describe, METHODS, |m| (m.entry)())
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: |params| method(params).target == Target::Judged,
    looks: |params| method(params).target != Target::Left,
    norms_alone: |params| method(params).target == Target::Passed,
    features: |params| (method(params).features)(params),
    averages: |params| method(params).averages,
    own: |params, widths| (method(params).own)(params, widths),
    loss: |params, batch| {
        let (labelled, _) = batch.split(batch.logits)?;
        let labels = cross_entropy(&labelled, batch.targets, batch.weights)?;
        let Some(method) = (method(params).loss)(params, batch)? else { return Ok(labels) };
        let weight = describe().number(params, "trade_off") * batch.samples()? as f64;
        Ok((labels + (method * weight)?)?)
    },
    ..PLAIN
};
