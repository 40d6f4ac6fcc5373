//! CDAN (Long et al., 2018): as DANN, but the discriminator sees the features times the predicted probabilities. With
//! `entropy`, certain predictions count more: 1 + e^(−H), with a mean of one over both domains (CDAN+E).

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry, flag};

use super::{
    super::{exp, log_softmax, ops::reverse},
    Method, Target, domain,
};
use crate::Result;

fn describe() -> Entry {
    let mut params = domain::params();
    params.push(flag("entropy", true, "certain predictions count more (CDAN+E)"));
    Entry { params, ..entry("cdan", "as `dann`, with a discriminator that sees features and predictions multiplied") }
}

/// 1 + e^(−H) of every row of probabilities, with a mean of one; nothing is learned through it.
pub(super) fn certainty(p: &Tensor, log_p: &Tensor) -> Result<Tensor> {
    let entropy = p.mul(log_p)?.sum(1)?.neg()?.detach();
    let certain = (exp(&entropy.neg()?)? + 1.0)?;
    let mean = certain.mean_all()?;
    Ok(certain.broadcast_div(&mean)?.detach())
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |_| true,
    averages: false,
    own: |params, widths| {
        let width = widths.features * widths.classes;
        domain::own(width, describe().number(params, "hidden") as usize)
    },
    loss: |params, batch| {
        let log_p = log_softmax(&batch.logits.detach())?;
        let p = exp(&log_p)?;
        let rows = p.unsqueeze(2)?.broadcast_mul(&batch.features.unsqueeze(1)?)?.flatten_from(1)?;
        let rows = reverse(&rows, domain::reversed(&describe(), params, batch.progress))?;
        let losses = domain::losses(batch, &domain::judge(batch, &rows)?)?;
        let counted = if describe().flag(params, "entropy") { losses.mul(&certainty(&p, &log_p)?)? } else { losses };
        Ok(Some(counted.mean_all()?))
    },
};
