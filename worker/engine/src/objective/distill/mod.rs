//! Knowledge distillation (Hinton et al., 2015): `hard·CE(z_s, y) + soft·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))`, and
//! what a method adds that looks at features too. A new method is a file here and a line in [`METHODS`].

mod cosine;
mod hint;
mod logits;
mod relational;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, Param, entry, number},
    spec::Params,
};

use super::{Batch, Objective, PLAIN, Widths, cross_entropy, exp, log_softmax, ops::product};
use crate::{
    Error, Result,
    nn::{Fill, Own},
};

/// One way of looking at a teacher.
struct Method {
    /// What the catalog says.
    entry: fn() -> Entry,
    /// Whether it looks at features.
    inside: bool,
    /// Whether it compares samples with each other.
    coupled: bool,
    /// Tensors of its own.
    own: fn(Widths) -> Vec<Own>,
    /// What it adds for student's and teacher's features, a mean over samples; nothing where it adds none.
    loss: fn(&Batch<'_>, features: &Tensor) -> Result<Option<Tensor>>,
}

/// Every method.
const METHODS: &[Method] = &[logits::METHOD, hint::METHOD, cosine::METHOD, relational::METHOD];

fn describe() -> Entry {
    Entry {
        params: vec![
            number("temperature", 4.0, 0.1, 100.0, "softens both distributions"),
            number("soft_weight", 0.9, 0.0, 100.0, "weight of the teacher's part"),
            number("hard_weight", 0.1, 0.0, 100.0, "weight of the labels' part"),
        ],
        methods: methods(),
        nets: vec!["teacher".into()],
        ..entry("distill", "a student learns from a teacher's logits, or features too, and from labels")
    }
}

/// The parameter of every method that looks at features.
fn weight(default: f64) -> Vec<Param> {
    vec![number("feature_weight", default, 0.0, 1e6, "weight of what is compared between features")]
}

/// A map from the student's features to as many as the teacher has: FitNets' 1x1 regressor.
fn regressor(widths: Widths) -> Vec<Own> {
    let bound = 1.0 / (widths.features as f32).sqrt();
    let fill = Fill::Uniform(bound);
    vec![
        Own { name: "regressor.weight".into(), shape: vec![widths.features, widths.teacher], fill, most: None },
        Own { name: "regressor.bias".into(), shape: vec![widths.teacher], fill, most: None },
    ]
}

/// The student's features as the teacher would have them.
fn regressed(batch: &Batch<'_>) -> Result<Tensor> {
    let mapped = product(batch.features, batch.own("regressor.weight")?)?;
    Ok(mapped.broadcast_add(batch.own("regressor.bias")?)?)
}

/// The method of a job that the check has let through; the first one otherwise.
fn method(params: &Params) -> &'static Method {
    let name = describe().method(params).name.clone();
    METHODS.iter().find(|m| (m.entry)().name == name).unwrap_or(&METHODS[0])
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: |params| method(params).coupled,
    features: |params| method(params).inside,
    looks_inside: |params| method(params).inside,
    own: |params, widths| Ok((method(params).own)(widths)),
    loss: |params: &Params, batch: &Batch<'_>| {
        let number = |name: &str| describe().number(params, name);
        let hard = (cross_entropy(batch.logits, batch.targets, batch.weights)? * number("hard_weight"))?;
        Ok((hard + taught(params, batch, [number("temperature"), number("soft_weight")])?)?)
    },
    ..PLAIN
};

/// What a teacher adds to the loss: its softened logits, and what the method compares of its features.
pub(super) fn taught(params: &Params, batch: &Batch<'_>, [t, soft]: [f64; 2]) -> Result<Tensor> {
    let taught = batch.taught()?;
    let student = log_softmax(&(batch.logits / t)?)?;
    let teacher = log_softmax(&(taught.logits / t)?)?;
    let loss = (exp(&teacher)?.mul(&teacher.sub(&student)?)?.sum_all()? * (soft * t * t))?;
    let method = method(params);
    if !method.inside {
        return Ok(loss);
    }
    let features = taught.features.ok_or_else(|| Error::Internal("a teacher without features".into()))?;
    let Some(more) = (method.loss)(batch, features)? else { return Ok(loss) };
    let weight = (method.entry)().number(params, "feature_weight") * batch.samples()? as f64;
    Ok((loss + (more * weight)?)?)
}

/// What the catalog says of the methods.
pub(super) fn methods() -> Vec<Entry> {
    METHODS.iter().map(|m| (m.entry)()).collect()
}
