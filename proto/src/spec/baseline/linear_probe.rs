//! How far the weights go as they are: one dense layer on features that stay as they were, for as many steps.

use super::{super::HeadSection, Baseline, BnMode, one_stage, transferred};

pub(super) const BASELINE: Baseline = Baseline {
    name: "linear_probe",
    doc: "one dense layer on the features as the weights give them, for as many epochs",
    kinds: &["finetune"],
    has_stage: true,
    make: |given, job| {
        // Said, because heads on some text encoders drop what their `config.json` says.
        transferred(&given.name, job)?.head = HeadSection { dropout: Some(0.0), ..HeadSection::default() };
        one_stage(given, job, "head", BnMode::Frozen)
    },
};
