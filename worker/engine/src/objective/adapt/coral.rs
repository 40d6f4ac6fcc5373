//! CORAL (Sun and Saenko, 2016): the features of both domains get the same covariance.
//!
//! `paper`: ‖C_s − C_t‖²_F / 4d². `domainbed`, which the Transfer-Learning-Library computes too: mean (μ_s − μ_t)² +
//! mean (C_s − C_t)². Covariances are those of samples, over n − 1.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, choice, entry};

use super::{
    super::{nothing_own, ops::product_t},
    Method, Target,
};
use crate::Result;

fn describe() -> Entry {
    let doc = "`domainbed` brings the means together too, and divides by d² instead of 4d²";
    Entry {
        params: vec![choice("variant", &["paper", "domainbed"], doc)],
        ..entry("coral", "the features of both domains get the same covariance")
    }
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
    features: true,
    averages: false,
    own: nothing_own,
    loss: |params, batch| {
        let (source, target) = batch.split(batch.features)?;
        let ((mean_s, cov_s), (mean_t, cov_t)) = (moments(&source)?, moments(&target)?);
        let apart = (cov_s - cov_t)?.sqr()?.mean_all()?;
        Ok(Some(match describe().word(params, "variant") {
            "domainbed" => (apart + (mean_s - mean_t)?.sqr()?.mean_all()?)?,
            _ => (apart / 4.0)?,
        }))
    },
};
