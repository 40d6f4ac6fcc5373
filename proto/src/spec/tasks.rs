//! `[tasks.NAME]`: what else a network learns, beside the classes of `[data]`. Each task has a head of its own.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassWeights, DataSection, HeadSection, JobSpec, Params, roles::inherited};

/// What the task is called whose samples and classes are those of `[data]` and whose head is `[model].head`.
pub const MAIN: &str = "main";

/// `[tasks.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSection {
    /// A format of the catalog; that of `[data]` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Where its training samples are. Without it the task is learned from the samples of `[data]`, drawn once for both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Where its validation samples are, if it has training samples of its own, or, such as `0.2`, the share of those that
    /// they are, as in `[data]`.
    #[serde(deserialize_with = "super::share::place_if_any", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::share::Val>")]
    pub val: Option<String>,
    /// The share, where `val` was one: the place is then that of `train`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_share: Option<f64>,
    /// Further parameters of the format; those of `[data]` if neither they nor a format are said, without `root`, `val_root`,
    /// `without` and `invert`, which are about its own files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub params: Params,
    /// Its samples of one step, if it has samples of its own; as many as `data.batch` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Its classes, each of one or more of those of the samples: `{ even = ["0", "2"], odd = ["1", "3"] }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, Vec<String>>,
    /// What a sample counts in the loss by its class, as `data.class_weights`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// Its classifier.
    pub head: HeadSection,
    /// What its loss counts, where weights are fixed.
    pub weight: f64,
}

impl Default for TaskSection {
    fn default() -> Self {
        Self {
            format: None,
            train: None,
            val: None,
            val_share: None,
            params: Params::new(),
            batch: None,
            classes: BTreeMap::new(),
            class_weights: None,
            head: HeadSection::default(),
            weight: 1.0,
        }
    }
}

impl TaskSection {
    /// Its data as a section of its own, where it has samples of its own.
    pub fn own_data(&self, data: &DataSection) -> Option<DataSection> {
        let (train, val) = (self.train.clone()?, self.val.clone()?);
        let own = self.format.is_some() || !self.params.is_empty();
        Some(DataSection {
            format: self.format.clone().unwrap_or_else(|| data.format.clone()),
            train,
            val,
            val_share: self.val_share,
            params: if own { self.params.clone() } else { inherited(&data.params) },
            batch: self.batch.unwrap_or(data.batch),
            ..data.beside()
        })
    }
}

impl JobSpec {
    /// Names of all tasks, that of `[data]` first.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(MAIN).chain(self.tasks.keys().map(String::as_str))
    }
}
