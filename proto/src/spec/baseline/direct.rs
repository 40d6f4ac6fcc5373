//! The same network in the same stages, which learns the labels of the source and never looks at the target.

use super::{
    super::{Params, SpecError},
    Baseline,
};
use crate::catalog::METHOD;

pub(super) const BASELINE: Baseline = Baseline {
    name: "direct",
    doc: "the same network taught by the labels of the source alone",
    kinds: &["adapt"],
    has_stage: false,
    make: |given, job| {
        if job.objective.get(METHOD).is_some_and(|method| *method == given.name) {
            let message = format!("the job's method is `{}` itself", given.name);
            return Err(SpecError::new(message, "choose another `objective.method`, or remove the baseline"));
        }
        job.objective = Params::from([(METHOD.to_owned(), given.name.clone().into())]);
        Ok(())
    },
};
