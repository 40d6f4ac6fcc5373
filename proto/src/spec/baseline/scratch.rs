//! The same network on the same data for as many steps, begun with random values, and trained as a whole; of two networks
//! that are trained together, both.

use super::{Baseline, BnMode, one_stage, transferred};

pub(super) const BASELINE: Baseline = Baseline {
    name: "scratch",
    doc: "the same network begun with random values and trained as a whole, for as many epochs",
    kinds: &["finetune", "distill", "cross_distill", "contrastive", "adapt", "fewshot", "multitask"],
    has_stage: true,
    make: |given, job| {
        for net in transferred(&given.name, job)? {
            // Sizes, tokenizer and preprocessing are still those of the weights.
            (net.random, net.adapter, net.head.keep) = (true, None, false);
        }
        job.tasks.values_mut().for_each(|task| task.head.keep = false);
        one_stage(given, job, "*", BnMode::Train)
    },
};
