//! The same network on the same data for as many steps, begun with random values, and trained as a whole.

use super::{Baseline, BnMode, one_stage, transferred};

pub(super) const BASELINE: Baseline = Baseline {
    name: "scratch",
    doc: "the same network begun with random values and trained as a whole, for as many epochs",
    kinds: &["finetune", "distill", "adapt", "multitask"],
    has_stage: true,
    make: |given, job| {
        let model = transferred(&given.name, job)?;
        // Sizes, tokenizer and preprocessing are still those of the weights.
        (model.random, model.adapter, model.head.keep) = (true, None, false);
        job.tasks.values_mut().for_each(|task| task.head.keep = false);
        one_stage(given, job, "*", BnMode::Train)
    },
};
