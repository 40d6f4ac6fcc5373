//! The same network in the same stages, which learns the labels of the source while its batch-norms take in both domains:
//! what of an adaptation is theirs.

use super::{
    super::{Norm, SpecError},
    Baseline, BnMode, by_method,
};

pub(super) const BASELINE: Baseline = Baseline {
    name: "statistics",
    doc: "the same network taught by the labels of the source, while its batch-norms take in both domains",
    kinds: &["adapt"],
    has_stage: false,
    make: |given, job| {
        // Those of a head that is trained always learn.
        let in_head = job.model.as_ref().is_some_and(|model| model.head.norm == Norm::Batch);
        if !in_head && job.stage.iter().all(|stage| stage.bn != BnMode::Train) {
            let message = format!("`{}` is no baseline of a job in which no batch-norm learns", given.name);
            return Err(SpecError::new(message, "`direct` is the same there; or set `bn = \"train\"` in a stage"));
        }
        by_method(given, job)
    },
};
