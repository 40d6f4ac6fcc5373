//! The same network in the same stages, which learns the labels of the source and never looks at the target.

use super::{Baseline, by_method};

pub(super) const BASELINE: Baseline = Baseline {
    name: "direct",
    doc: "the same network taught by the labels of the source alone",
    kinds: &["adapt"],
    has_stage: false,
    make: by_method,
};
