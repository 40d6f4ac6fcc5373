//! Data beside that of the task: samples of another domain, and of what the weights were trained on.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AugmentSection, DataSection, Params, Sampling, paths::PLACED};

/// Parameters of `[data]` that are about its own files, and so about no others: what is left out of them, and how their
/// images are turned. With the places, nothing beside takes them over.
const OWN: [&str; 2] = ["without", "invert"];

/// The parameters that samples beside have where their section says none.
pub(super) fn inherited(params: &Params) -> Params {
    let own = |key: &str| PLACED.contains(&key) || OWN.contains(&key);
    params.iter().filter(|(key, _)| !own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `[data.target]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSection {
    /// A format of the catalog; that of `[data]` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Where the samples are that are learned from. Labels that lie with them are not looked at.
    pub train: String,
    /// Where samples with labels are, of classes of `[data]`, or, such as `0.2`, the share of those of `train` that they are,
    /// as in `[data]`. What the network comes to on them is reported; nothing is decided by their labels.
    #[serde(default, deserialize_with = "super::share::place_if_any", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::share::Val>")]
    pub val: Option<String>,
    /// The share, where `val` was one: the place is then that of `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_share: Option<f64>,
    /// Further parameters of the format; those of `[data]` if neither they nor a format are said, without `root`, `val_root`,
    /// `without` and `invert`, which are about its own files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: Params,
}

/// `[data.source]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSection {
    /// A format of the catalog; that of `[data]` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Where samples are from which `[modifiers.ewc]` learns what matters; no others look at them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Where samples with labels are, of the classes that the weights' own head was trained on: what the network comes to
    /// on them, before and after, is reported, and nothing is decided by it.
    pub val: String,
    /// Further parameters of the format; those of `[data]` if neither they nor a format are said, without `root`, `val_root`,
    /// `without` and `invert`, which are about its own files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: Params,
}

impl DataSection {
    /// The section of samples beside these, without what concerns these alone: their classes, and what goes with them.
    pub(super) fn beside(&self) -> Self {
        Self {
            train_per_class: None,
            val_share: None,
            class_weights: None,
            sampling: Sampling::default(),
            target: None,
            source: None,
            pairs: None,
            episodes: None,
            train_classes: Vec::new(),
            val_classes: Vec::new(),
            ..self.clone()
        }
    }

    /// The target's data as a section of its own; its validation samples are those it learns from where it has no others.
    pub fn of_target(&self) -> Option<Self> {
        let target = self.target.as_ref()?;
        let own = target.format.is_some() || !target.params.is_empty();
        Some(Self {
            format: target.format.clone().unwrap_or_else(|| self.format.clone()),
            train: target.train.clone(),
            val: target.val.clone().unwrap_or_else(|| target.train.clone()),
            val_share: target.val_share,
            params: if own { target.params.clone() } else { inherited(&self.params) },
            ..self.beside()
        })
    }

    /// The same for the source's data; its samples are seen as they are.
    pub fn of_source(&self) -> Option<Self> {
        let source = self.source.as_ref()?;
        let own = source.format.is_some() || !source.params.is_empty();
        Some(Self {
            format: source.format.clone().unwrap_or_else(|| self.format.clone()),
            train: source.train.clone().unwrap_or_else(|| source.val.clone()),
            val: source.val.clone(),
            params: if own { source.params.clone() } else { inherited(&self.params) },
            augment: AugmentSection::default(),
            ..self.beside()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_about_the_files_of_a_job_is_about_no_others() {
        let all = json!({ "root": "a", "val_root": "b", "without": ["c"], "invert": true, "depth": 2 });
        let of = |beside: serde_json::Value| {
            let data = json!({
                "format": "image_folder", "train": "a", "val": "b", "batch": 2, "params": all,
                "target": beside, "source": beside,
            });
            let data: DataSection = serde_json::from_value(data).unwrap();
            [data.of_target(), data.of_source()].map(|data| serde_json::to_value(data.unwrap().params).unwrap())
        };
        assert_eq!(of(json!({ "train": "t", "val": "v" })), [json!({ "depth": 2 }), json!({ "depth": 2 })]);
        let own = json!({ "root": "t", "invert": true });
        assert_eq!(of(json!({ "train": "t", "val": "v", "params": own.clone() })), [own.clone(), own]);
    }
}
