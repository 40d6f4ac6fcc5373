//! CORAL (Sun and Saenko, 2016): the features of both domains get the same covariance.
//!
//! `paper`: ‖C_s − C_t‖²_F / 4d². `domainbed`, which the Transfer-Learning-Library computes too: mean (μ_s − μ_t)² +
//! mean (C_s − C_t)². Covariances are those of samples, over n − 1: of features, or of logits, as in the networks of that paper,
//! whose last layer it is.

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, choice, entry},
    spec::Params,
};

use super::{
    super::{nothing_own, ops::product_t},
    Method, Target,
};
use crate::Result;

fn describe() -> Entry {
    let doc = "`domainbed` brings the means together too, and divides by d² instead of 4d²";
    let at = "what gets the same covariance: `features`, as the last layer takes them, or the `logits` that it gives";
    Entry {
        params: vec![choice("variant", &["paper", "domainbed"], doc), choice("at", &["features", "logits"], at)],
        ..entry("coral", "the features of both domains get the same covariance")
    }
}

fn at_logits(params: &Params) -> bool {
    describe().word(params, "at") == "logits"
}

/// Mean `[1, d]` and covariance `[d, d]` of rows.
fn moments(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = rows.mean_keepdim(0)?;
    let centred = rows.broadcast_sub(&mean)?;
    let free = rows.dim(0)?.saturating_sub(1).max(1) as f64;
    Ok((mean, (product_t(&centred, &centred)? / free)?))
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |params| !at_logits(params),
    averages: false,
    own: nothing_own,
    loss: |params, batch| {
        let (source, target) = batch.split(if at_logits(params) { batch.logits } else { batch.features })?;
        let ((mean_s, cov_s), (mean_t, cov_t)) = (moments(&source)?, moments(&target)?);
        let apart = (cov_s - cov_t)?.sqr()?.mean_all()?;
        Ok(Some(match describe().word(params, "variant") {
            "domainbed" => (apart + (mean_s - mean_t)?.sqr()?.mean_all()?)?,
            _ => (apart / 4.0)?,
        }))
    },
};
