//! Jobs made of jobs: `[[step]]`, what each waits for, and `[compare]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Gate, Gates, JobSpec, Params};

/// `[[step]]` of a pipeline
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSection {
    /// Its name.
    pub id: String,
    /// A job file beside this one; the client replaces it by `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Steps that come first, and whose gates must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What the step must come to before steps that need it may start: `"val.accuracy >= 0.9"`, or a list of which all
    /// must hold.
    #[serde(default, skip_serializing_if = "Gates::is_empty")]
    pub gate: Gates,
    /// Steps with the same group are one job with several seeds: they are told and compared as a mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Keys of the job file to replace.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
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
    /// The step, or group of steps, that is meant to win. In a job with `baseline` it is the job itself.
    #[serde(default)]
    pub candidate: String,
    /// The steps or groups it is measured against; the best of them counts.
    #[serde(default)]
    pub baselines: Vec<String>,
}

impl JobSpec {
    /// The kind of a job made of jobs.
    pub const PIPELINE: &str = "pipeline";
    /// What the one step of a job that is no pipeline is called.
    pub const MAIN: &str = "main";

    /// The steps in file order: one, called `main`, for a job that is no pipeline.
    pub fn steps(&self) -> Vec<(&str, &JobSpec, &[String])> {
        if self.job.kind == Self::PIPELINE {
            self.step.iter().filter_map(|s| Some((s.id.as_str(), s.spec.as_deref()?, s.needs.as_slice()))).collect()
        } else {
            vec![(Self::MAIN, self, &[])]
        }
    }

    /// What a step must come to before those that need it may start.
    pub fn gates(&self, step: &str) -> &[Gate] {
        self.step.iter().find(|s| s.id == step).map_or(&[], |s| &s.gate.0)
    }

    /// The step whose model is the job's: the first of what is meant to win, else the last one.
    pub fn main_step(&self) -> &str {
        let wins = self.compare.as_ref().and_then(|c| self.members(&c.candidate).first().copied());
        let last = || self.step.last().map_or(Self::MAIN, |s| s.id.as_str());
        if self.job.kind == Self::PIPELINE { wins.unwrap_or_else(last) } else { Self::MAIN }
    }

    /// Whether a step stands for its group: another seed of the same job shows nothing else before it runs.
    pub fn leads_group(&self, step: &str) -> bool {
        let group = self.step.iter().find(|s| s.id == step).and_then(|s| s.group.as_deref());
        group.is_none_or(|group| self.members(group).first() == Some(&step))
    }

    /// The steps of a group, or the one step of this name, in the order of their seeds.
    pub(crate) fn runs(&self, name: &str) -> Vec<(u32, &str)> {
        let seed = |id: &str| {
            let step = self.step.iter().find(|s| s.id == id);
            step.and_then(|s| s.spec.as_deref()).map_or(0, |spec| spec.job.seed)
        };
        let mut runs: Vec<(u32, &str)> = self.members(name).into_iter().map(|id| (seed(id), id)).collect();
        // Steps of one seed stay in the order of the file.
        runs.sort_by_key(|(seed, _)| *seed);
        runs
    }

    /// The steps of a group, or the one step of this name.
    pub fn members(&self, name: &str) -> Vec<&str> {
        let grouped = self.step.iter().filter(|s| s.group.as_deref() == Some(name));
        let grouped: Vec<&str> = grouped.map(|s| s.id.as_str()).collect();
        if !grouped.is_empty() {
            return grouped;
        }
        self.step.iter().filter(|s| s.id == name).map(|s| s.id.as_str()).collect()
    }
}
