//! Contrastive learning of pairs: two networks, one for each kind of sample, learn embeddings in which the halves of a pair
//! lie close together and all others of the batch apart. A new method is a file here and a line in [`METHODS`].
//!
//! Every method looks at the whole batch, whatever ranks computed it: the negatives of a sample are all others of the step.
//!
//! Where halves may be missing, similarities with what is missing are masked: they are in no sum. A half that is alone is a
//! negative of the pairs that are whole, and has no loss of its own. A step divides by the pairs that are whole.

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
    Error, Result,
    nn::{Fill, Own, host, tensor},
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
        ..entry(
            "contrastive",
            "two networks learn embeddings in which the halves of a pair are close, without labels; with `missing = \"mask\"` \
             in `[data.pairs]`, what has no other half is one that others are told from",
        )
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

/// The most that similarities are multiplied by; the least is 1.
const MOST: f64 = 100.0;

/// The logarithm of what similarities are multiplied by; it learns, within limits.
fn scale(start: f64) -> Own {
    let fill = Fill::Constant(libm::log(start) as f32);
    Own { name: "scale".into(), shape: vec![1], fill, span: Some([0.0, libm::log(MOST) as f32]) }
}

/// The numbers on the diagonal of `[n, n]` that stand for whole pairs, added up.
fn diagonal(batch: &Batch<'_>, t: &Tensor) -> Result<Tensor> {
    let n = t.dim(0)?;
    let [samples, halves] = there(batch, n)?;
    let eye = (0..n * n).map(|at| if at / n == at % n { samples[at / n] * halves[at / n] } else { 0.0 }).collect();
    Ok(t.mul(&tensor(eye, &[n, n])?)?.sum_all()?)
}

/// 1 for each sample that is there, and for each other half, and 0 for what is missing.
fn there(batch: &Batch<'_>, n: usize) -> Result<[Vec<f32>; 2]> {
    let Some(present) = batch.present else { return Ok([vec![1.0; n], vec![1.0; n]]) };
    let present = host(present)?;
    if present.len() != 2 * n {
        return Err(Error::Internal("it is not said of every pair what there is of it".into()));
    }
    Ok([0usize, 1].map(|side| present.chunks_exact(2).map(|pair| pair[side]).collect()))
}

/// Added to what no softmax is to see: e to the power of it is nothing.
const NOTHING: f32 = -1e9;

/// `[n, n]` with the columns out of reach that stand for what is missing.
fn within_reach(t: &Tensor, columns: &[f32]) -> Result<Tensor> {
    if columns.iter().all(|there| *there == 1.0) {
        return Ok(t.clone());
    }
    let far = columns.iter().map(|there| if *there == 1.0 { 0.0 } else { NOTHING }).collect();
    Ok(t.broadcast_add(&tensor(far, &[1, columns.len()])?)?)
}
