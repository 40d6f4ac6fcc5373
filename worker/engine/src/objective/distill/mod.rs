//! Knowledge distillation (Hinton et al., 2015): `hard·CE(z_s, y) + soft·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))`, and
//! what a method adds, of features or of logits. A new method is a file here and a line in [`METHODS`]. One that stands in
//! place of the second part has the kind's `soft_weight` and `hard_weight` among its parameters, with defaults 0 and 1.
//!
//! The teacher may be of the student's own network (self-distillation: a model of an earlier job), and there may be
//! several, whose softened probabilities are averaged; features are those of the first.

mod angles;
mod attention;
mod cosine;
mod hint;
mod logits;
mod maps;
mod relational;
mod teachers;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, Param, choice, entry, integer, names, number, numbers},
    spec::Params,
};

use super::{Batch, Look, Objective, PLAIN, Tap, Widths, chosen, cross_entropy, log_softmax, ops::product};
use crate::{
    Error, Result,
    cache::{Packed, Top},
    nn::{Fill, Own},
};

/// Where a method looks.
enum Looks {
    /// At logits alone.
    Nowhere,
    /// At what the last layers take.
    AtFeatures,
    /// At what comes out of units inside, by name; of the last of each size of maps that both have, if none is named. Of
    /// what comes out of the teacher's at that which is said, or at all of it.
    AtUnits(Vec<String>, Option<Look>),
}

/// One way of looking at a teacher.
struct Method {
    /// What the catalog says.
    entry: fn() -> Entry,
    /// Where it looks.
    looks: fn(&Params) -> Looks,
    /// Whether it compares samples with each other.
    coupled: bool,
    /// Tensors of its own.
    own: fn(&Widths) -> Result<Vec<Own>>,
    /// What it adds to Hinton's part, with its weight, a mean over samples; nothing where it adds none.
    loss: fn(&Params, &Batch<'_>, &Soft) -> Result<Option<Tensor>>,
}

/// What teachers and student say of the samples, softened alike.
struct Soft {
    /// What logits are divided by: the `temperature` of the job, whichever kind of distillation it is.
    temperature: f64,
    /// `[n, classes]`: the probabilities of the teachers, the mean of all; nothing is learned through it.
    p: Tensor,
    /// `[n, classes]`: their logarithms.
    log_p: Tensor,
    /// `[n, classes]`: the logarithms of the student's.
    log_q: Tensor,
}

impl Soft {
    /// # Errors
    /// A batch without a teacher.
    fn of(params: &Params, batch: &Batch<'_>, temperature: f64) -> Result<Self> {
        let log_q = log_softmax(&(batch.logits / temperature)?)?;
        let weights = describe().numbers(params, "teacher_weights");
        let (p, log_p) = teachers::softened(batch.taught()?.logits, batch.logits.dim(1)?, temperature, &weights)?;
        Ok(Self { temperature, p, log_p, log_q })
    }
}

/// Every method.
const METHODS: &[Method] = &[logits::METHOD, hint::METHOD, attention::METHOD, cosine::METHOD, relational::METHOD];

/// The parameter that says what labels count.
pub(super) const HARD: &str = "hard_weight";

/// What is said of `top_k`.
const TOP: &str = "keep so many of the largest logits of a teacher, and for the others one number, so that at `temperature` \
    the probabilities of the kept ones stay; 0 keeps all";

fn describe() -> Entry {
    Entry {
        params: vec![
            number("temperature", 4.0, 0.1, 100.0, "softens both distributions"),
            number("soft_weight", 0.9, 0.0, 100.0, "weight of the teacher's part"),
            number(HARD, 0.1, 0.0, 100.0, "weight of the labels' part"),
        ]
        .into_iter()
        .chain(teaching())
        .collect(),
        methods: methods(),
        nets: vec!["teacher".into()],
        several: vec!["teacher".into()],
        ..entry("distill", "a student learns from a teacher's logits, or features too, and from labels")
    }
}

/// Parameters of every kind of job that learns from teachers' logits.
pub(super) fn teaching() -> [Param; 3] {
    [
        choice("logits", &["f32", "f16"], "how what teachers say is kept; f16 takes half the room and rounds it"),
        integer("top_k", 0, 0, 1_000_000, TOP),
        numbers("teacher_weights", 0.0, 1e6, "what each of several teachers counts; all alike, if nothing is said"),
    ]
}

/// The parameter of methods that look at features.
fn weight(default: f64) -> Param {
    number("feature_weight", default, 0.0, 1e6, "weight of what is compared between features")
}

/// The parameter of methods that look at units.
fn taps(doc: &str) -> Param {
    let form = "\"UNIT\", or \"UNIT:UNIT\" where the teacher's has another name";
    names("taps", &[], &format!("{doc}; {form}"))
}

/// A map from the student's features to as many as the teacher has: FitNets' 1x1 regressor.
fn regressor(widths: &Widths) -> Vec<Own> {
    regressor_of("regressor", widths.features, widths.teacher)
}

/// The same for some other features.
fn regressor_of(name: &str, own: usize, theirs: usize) -> Vec<Own> {
    let fill = Fill::Uniform(1.0 / (own as f32).sqrt());
    vec![
        Own { name: format!("{name}.weight"), shape: vec![own, theirs], fill, span: None },
        Own { name: format!("{name}.bias"), shape: vec![theirs], fill, span: None },
    ]
}

/// The student's features as the teacher would have them.
fn regressed(batch: &Batch<'_>) -> Result<Tensor> {
    let mapped = product(batch.features, batch.own("regressor.weight")?)?;
    Ok(mapped.broadcast_add(batch.own("regressor.bias")?)?)
}

impl<'a> Batch<'a> {
    /// The teacher's features.
    fn features_taught(&self) -> Result<&'a Tensor> {
        let features = self.teacher.and_then(|t| t.features);
        features.ok_or_else(|| Error::Internal("a teacher without features".into()))
    }
}

/// The method of a job that the check has let through; the first one otherwise.
fn method(params: &Params) -> &'static Method {
    chosen(params, describe, METHODS, |m| (m.entry)())
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: |params| method(params).coupled,
    features: |params| matches!((method(params).looks)(params), Looks::AtFeatures),
    looks_inside: |params| matches!((method(params).looks)(params), Looks::AtFeatures),
    packed: |params| packed(params, describe().number(params, "temperature")),
    taps: |params| match (method(params).looks)(params) {
        Looks::AtUnits(named, _) => Some(named),
        _ => None,
    },
    look: |params| match (method(params).looks)(params) {
        Looks::AtUnits(_, look) => look,
        _ => None,
    },
    own: |params, widths| {
        teachers::check(&describe().numbers(params, "teacher_weights"), widths.teachers)?;
        (method(params).own)(&widths)
    },
    loss: |params: &Params, batch: &Batch<'_>| {
        let number = |name: &str| describe().number(params, name);
        let hard = (cross_entropy(batch.logits, batch.targets, batch.weights)? * number(HARD))?;
        Ok((hard + taught(params, batch, [number("temperature"), number("soft_weight")])?)?)
    },
    ..PLAIN
};

/// How a teacher's logits are kept that are softened by `temperature`.
pub(super) fn packed(params: &Params, temperature: f64) -> Packed {
    let count = describe().number(params, "top_k") as usize;
    let top = (count > 0).then_some(Top { count, temperature });
    Packed { half: describe().word(params, "logits") == "f16", top }
}

/// What teachers add to the loss: their logits, softened by `temperature`, times `weight`, and what the method compares.
pub(super) fn taught(params: &Params, batch: &Batch<'_>, [temperature, weight]: [f64; 2]) -> Result<Tensor> {
    let soft = Soft::of(params, batch, temperature)?;
    let weight = weight * soft.temperature * soft.temperature;
    let loss = (soft.p.mul(&soft.log_p.sub(&soft.log_q)?)?.sum_all()? * weight)?;
    match (method(params).loss)(params, batch, &soft)? {
        Some(more) => Ok((loss + (more * batch.samples()? as f64)?)?),
        None => Ok(loss),
    }
}

/// What the catalog says of the methods.
pub(super) fn methods() -> Vec<Entry> {
    METHODS.iter().map(|m| (m.entry)()).collect()
}
