//! Staged fine-tuning: cross-entropy with the labels.

use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{Batch, Objective, PLAIN, cross_entropy, smoothed};

fn describe() -> Entry {
    Entry {
        params: vec![number("label_smoothing", 0.0, 0.0, 0.9, "part of the target spread evenly over all classes")],
        ..entry("finetune", "staged fine-tuning: feature extraction, partial, full, progressive unfreezing")
    }
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    loss: |params: &Params, batch: &Batch<'_>| {
        let smoothing = describe().number(params, "label_smoothing");
        cross_entropy(batch.logits, &smoothed(batch.targets, smoothing)?, batch.weights)
    },
    ..PLAIN
};
