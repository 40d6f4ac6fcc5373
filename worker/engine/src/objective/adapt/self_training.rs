//! Self-training: certain predictions in the other domain are taken for labels (Lee, 2013; the threshold as in FixMatch).
//! With `[modifiers.ema]` the average of the weights predicts. The mean goes over all target samples, certain or not.

use tl_proto::catalog::{Entry, entry, number};

use super::{
    super::{exp, log_softmax, nothing_own},
    Method, Target,
};
use crate::nn::{host, tensor};

fn describe() -> Entry {
    Entry {
        params: vec![number("threshold", 0.95, 0.0, 1.0, "predictions of a higher probability are taken for labels")],
        ..entry(
            "self_training",
            "certain predictions in the other domain are taken for labels; with `modifiers.ema`, those of the average",
        )
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |_| false,
    averages: true,
    own: nothing_own,
    loss: |params, batch| {
        let (_, target) = batch.split(batch.logits)?;
        let own = target.detach();
        let (m, classes) = target.dims2()?;
        let p = exp(&log_softmax(batch.averaged.unwrap_or(&own))?)?;
        let threshold = describe().number(params, "threshold") as f32;
        let mut labels = vec![0.0; m * classes];
        for (p, label) in host(&p)?.chunks_exact(classes).zip(labels.chunks_exact_mut(classes)) {
            let best = (0..classes).fold(0, |best, c| if p[c] > p[best] { c } else { best });
            label[best] = if p[best] > threshold { 1.0 } else { 0.0 };
        }
        let counted = log_softmax(&target)?.mul(&tensor(labels, &[m, classes])?)?;
        Ok(Some((counted.sum_all()?.neg()? / m.max(1) as f64)?))
    },
};
