//! What a file of weights says of the small parts that were trained with it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{about, not_whole};
use crate::{
    Result, modifier,
    nn::{Kind, Plan},
};

/// Digests of the tensors of the adapters that are in some weights, the first one first, over all the jobs that the
/// weights came through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrAll")]
pub struct Merged(pub Vec<String>);

/// A file named one before it named all.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrAll {
    One(String),
    All(Vec<String>),
}

impl From<OneOrAll> for Merged {
    fn from(said: OneOrAll) -> Self {
        match said {
            OneOrAll::One(digest) => Self(vec![digest]),
            OneOrAll::All(digests) => Self(digests),
        }
    }
}

impl Merged {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These and one more.
    pub fn and(&self, digest: Option<String>) -> Self {
        Self(self.0.iter().cloned().chain(digest).collect())
    }
}

/// What a file of weights says of small parts.
#[derive(Default)]
pub struct Inside {
    /// Adapters that are worked into it.
    pub merged: Merged,
    /// Bottlenecks that it holds.
    pub plan: Option<Plan>,
}

/// Reads what a file says of small parts; nothing where it is not ours.
///
/// # Errors
/// A file that is not whole.
pub fn inside(path: &Path) -> Result<Inside> {
    let about = about(path)?;
    let merged = match about.get("merged") {
        Some(said) if !said.is_null() => serde_json::from_value(said.clone()).map_err(|e| not_whole(path, &e))?,
        _ => Merged::default(),
    };
    let Some(said) = about.get("modifiers") else { return Ok(Inside { merged, plan: None }) };
    let modifiers = serde_json::from_value(said.clone()).map_err(|e| not_whole(path, &e))?;
    let plan = modifier::adapt(&modifiers).map(|(.., plan)| plan);
    // A file may say anything; what we write is a bottleneck of a size that the job file may ask for.
    match plan.as_ref().map(|plan| &plan.kind) {
        None | Some(Kind::Bottleneck { reduction: 1..=4096, .. }) => Ok(Inside { merged, plan }),
        Some(_) => Err(not_whole(path, &"its parts are none that a model can have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_one_adapter_or_all() {
        let read = |text: &str| serde_json::from_str::<Merged>(text).unwrap();
        assert_eq!(read("\"a\""), Merged(vec!["a".into()]));
        let two = read("\"a\"").and(Some("b".into()));
        assert_eq!(serde_json::to_string(&two).unwrap(), "[\"a\",\"b\"]");
        assert_eq!(read("[\"a\",\"b\"]"), two);
    }
}
