//! The same student in the same stages, taught by the labels of its own samples in place of a teacher that sees what they go
//! with. Whether they have some is known where they are opened.

use super::{Baseline, untaught};

pub(super) const BASELINE: Baseline = Baseline {
    name: "labels",
    doc: "the same student taught by the labels of its samples, where they have some",
    kinds: &["cross_distill"],
    has_stage: false,
    make: |_, job| {
        untaught(job);
        if let Some(data) = &mut job.data {
            data.pairs = None;
        }
        Ok(())
    },
};
