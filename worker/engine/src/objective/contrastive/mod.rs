//! Contrastive learning of pairs: two networks, one for each kind of sample, learn embeddings in which the halves of a pair
//! lie close together and all others of the batch apart. A new method is a file here and a line in [`METHODS`].
//!
//! Every method looks at the whole batch, whatever ranks computed it: the negatives of a sample are all others of the step.

mod clip;
mod siglip;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, entry, integer},
    spec::{Params, TOWER},
};

use super::{
    Batch, Objective, PLAIN, chosen,
    ops::{exp, product, unit},
};
use crate::{
    Result,
    nn::{Fill, Own},
};

/// One way of comparing the halves of a batch.
struct Method {
    /// What the catalog says.
    entry: fn() -> Entry,
    /// Tensors of its own.
    own: fn(&Params) -> Vec<Own>,
    /// Σ over the pairs of the batch, for their similarities `[n, n]`: rows are samples, columns their other halves.
    loss: fn(&Batch<'_>, similarities: &Tensor) -> Result<Tensor>,
}

/// Every method.
const METHODS: &[Method] = &[clip::METHOD, siglip::METHOD];

fn describe() -> Entry {
    Entry {
        params: vec![integer("dimensions", 128, 2, 4096, "numbers of an embedding: both networks end in so many")],
        methods: METHODS.iter().map(|m| (m.entry)()).collect(),
        nets: vec![TOWER.into()],
        data: vec!["pairs".into()],
        ..entry("contrastive", "two networks learn embeddings in which the halves of a pair are close, without labels")
    }
}

/// The method of a job that the check has let through; the first one otherwise.
fn method(params: &Params) -> &'static Method {
    chosen(params, describe, METHODS, |m| (m.entry)())
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: |_| true,
    dimensions: |params| Some(describe().number(params, "dimensions") as usize),
    own: |params, _| Ok((method(params).own)(params)),
    loss: |params, batch| {
        let similarities = product(&unit(batch.logits)?, &unit(batch.paired()?)?.t()?)?;
        let scaled = similarities.broadcast_mul(&exp(batch.own("scale")?)?)?;
        (method(params).loss)(batch, &scaled)
    },
    ..PLAIN
};

/// The logarithm of what similarities are multiplied by; it learns, up to a limit.
fn scale(start: f64, most: f64) -> Own {
    let fill = Fill::Constant(libm::log(start) as f32);
    Own { name: "scale".into(), shape: vec![1], fill, most: Some(libm::log(most) as f32) }
}

/// The numbers on the diagonal of `[n, n]`, added up.
fn diagonal(t: &Tensor) -> Result<Tensor> {
    let n = t.dim(0)?;
    let eye = (0..n * n).map(|at| f32::from(u8::from(at / n == at % n))).collect();
    Ok(t.mul(&crate::nn::tensor(eye, &[n, n])?)?.sum_all()?)
}
