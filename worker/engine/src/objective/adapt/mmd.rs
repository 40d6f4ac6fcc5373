//! Multi-kernel maximum mean discrepancy, DAN (Long et al., 2015): kernels exp(−d² / 2σ²) of five widths,
//! σ² = 2ᵏ · mean d² for k = −3..1 over all pairs of both domains, as the Transfer-Learning-Library has them.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, choice, entry};

use super::{
    super::{
        nothing_own,
        ops::{exp, squared_distances},
    },
    Method, Target,
};
use crate::{Error, Result, nn::tensor};

fn describe() -> Entry {
    let doc = "`linear` compares each sample with the next one, `quadratic` with all";
    Entry {
        params: vec![choice("estimator", &["linear", "quadratic"], doc)],
        ..entry(
            "mmd",
            "the features of both domains get the same distribution, by kernels of five widths (MK-MMD, DAN)",
        )
    }
}

/// What every kernel value counts, for `n` samples of each domain.
fn weights(n: usize, linear: bool) -> Result<Tensor> {
    let (all, each) = (2 * n, n as f32);
    let mut w = vec![0.0; all * all];
    for i in 0..n {
        if linear {
            let next = (i + 1) % n;
            w[i * all + next] += 1.0 / each;
            w[(n + i) * all + n + next] += 1.0 / each;
            w[i * all + n + next] -= 1.0 / each;
            w[next * all + n + i] -= 1.0 / each;
            continue;
        }
        for j in 0..n {
            if i != j {
                w[i * all + j] = 1.0 / (each * (each - 1.0));
                w[(n + i) * all + n + j] = 1.0 / (each * (each - 1.0));
            }
            w[i * all + n + j] = -1.0 / (each * each);
            w[(n + i) * all + j] = -1.0 / (each * each);
        }
    }
    tensor(w, &[all, all])
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |_| true,
    averages: false,
    own: nothing_own,
    loss: |params, batch| {
        let n = batch.samples()?;
        if batch.features.dim(0)? != 2 * n {
            return Err(Error::Internal("the domains of a step have different sizes".into()));
        }
        if n < 2 {
            return Ok(None);
        }
        let distances = squared_distances(batch.features)?;
        // The width follows the features, but nothing is learned through it.
        let mean = f64::from(distances.mean_all()?.to_scalar::<f32>()?).max(1e-30);
        let mut kernels: Option<Tensor> = None;
        for k in -3..=1 {
            let kernel = exp(&(&distances / (-2.0 * mean * libm::exp2(f64::from(k))))?)?;
            kernels = Some(match kernels {
                Some(sum) => (sum + kernel)?,
                None => kernel,
            });
        }
        let kernels = kernels.ok_or_else(|| Error::Internal("no kernels".into()))?;
        let counted = kernels.mul(&weights(n, describe().word(params, "estimator") == "linear")?)?;
        Ok(Some((counted.sum_all()? + 2.0 / (n as f64 - 1.0))?))
    },
};
