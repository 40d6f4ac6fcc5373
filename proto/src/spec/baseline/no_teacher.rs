//! The same student in the same stages, taught by the labels alone.

use super::{Baseline, untaught};

pub(super) const BASELINE: Baseline = Baseline {
    name: "no_teacher",
    doc: "the same student taught by the labels alone",
    kinds: &["distill"],
    has_stage: false,
    make: |_, job| {
        untaught(job);
        Ok(())
    },
};
