//! Matching networks (Vinyals et al., 2016) without full-context embeddings: a query's probability of a class is the sum
//! of the attention that it pays to the shown samples of it, a softmax over cosines.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry, number};

use super::{
    super::ops::{log_softmax, product, unit},
    Learns, Method,
};
use crate::Result;

fn describe() -> Entry {
    Entry {
        params: vec![number(
            "scale",
            1.0,
            1e-3,
            1e3,
            "cosines are multiplied by this before the softmax; the paper's is 1",
        )],
        ..entry("matching", "attention over the shown samples by the cosine of features (MatchingNet)")
    }
}

/// log Σ exp of each row: `[m, 1]`.
fn log_sum(rows: &Tensor) -> Result<Tensor> {
    // What the logarithm of a softmax takes away from each element.
    let first = rows.narrow(1, 0, 1)?;
    Ok((first - log_softmax(rows)?.narrow(1, 0, 1)?)?)
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    learns: Learns::Compares(|params, shown| {
        let cosines = product(&unit(shown.query)?, &unit(shown.support)?.t()?)?;
        let cosines = (cosines * describe().number(params, "scale"))?;
        let mut at = 0;
        let classes = shown.counts.iter().map(|count| {
            at += count;
            log_sum(&cosines.narrow(1, at - count, *count)?.contiguous()?)
        });
        // A softmax over these gives the sums of the attention.
        Ok(Tensor::cat(&classes.collect::<Result<Vec<_>>>()?, 1)?)
    }),
};
