//! Jobs made of jobs: `[[step]]` and `[compare]`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{JobSpec, Params};

/// `[[step]]` of a pipeline
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSection {
    /// Its name.
    pub id: String,
    /// A job file beside this one; the client replaces it by `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Steps that come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Keys of the job file to replace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: Params,
    /// The step's whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<JobSpec>>,
}

/// `[compare]` of a pipeline
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompareSection {
    /// A metric of the report, such as `val.accuracy`.
    pub metric: String,
    /// The step that is meant to win.
    pub candidate: String,
    /// The steps it is measured against; the best of them counts.
    pub baselines: Vec<String>,
}

impl JobSpec {
    /// The kind of a job made of jobs.
    pub const PIPELINE: &str = "pipeline";

    /// The steps in file order: one, called `main`, for a job that is no pipeline.
    pub fn steps(&self) -> Vec<(&str, &JobSpec, &[String])> {
        if self.job.kind == Self::PIPELINE {
            self.step.iter().filter_map(|s| Some((s.id.as_str(), s.spec.as_deref()?, s.needs.as_slice()))).collect()
        } else {
            vec![("main", self, &[])]
        }
    }
}
