//! Which network of a file: a job that learns from pairs leaves two in one.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use super::about;
use crate::{Error, Result};

/// What the names of a second network's tensors begin with.
pub const TOWER: &str = "tower.";

/// One of the networks in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first, or the only one.
    Model,
    /// The second, where there are two.
    Tower,
}

impl Which {
    /// Where a job says which network that is.
    pub fn section(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tower => "nets.tower",
        }
    }

    /// What a file of ours says of that network.
    pub(super) fn about(self, path: &Path) -> Result<serde_json::Value> {
        let mut about = about(path)?;
        let tower = about.get_mut("tower").filter(|_| self == Self::Tower).map(serde_json::Value::take);
        Ok(tower.unwrap_or(about))
    }

    /// Leaves that network's tensors, under their usual names.
    pub(super) fn choose(self, file: &mut BTreeMap<String, Tensor>) {
        let has_two = file.keys().any(|name| name.starts_with(TOWER));
        let wants_second = has_two && self == Self::Tower;
        file.retain(|name, _| name.starts_with(TOWER) == wants_second);
        if wants_second {
            let bare = |(name, t): (String, Tensor)| (name.trim_start_matches(TOWER).to_owned(), t);
            *file = std::mem::take(file).into_iter().map(bare).collect();
        }
    }
}

/// What the outputs of one of two networks that have learned from pairs are called.
///
/// # Errors
/// A file of anything else.
pub fn outputs(path: &Path, which: Which) -> Result<Vec<String>> {
    let about = about(path)?;
    let (embeds, two) = (about.get("embeds") == Some(&true.into()), about.get("tower").is_some());
    let said = which.about(path)?.get("classes").cloned().filter(|_| embeds && two);
    said.and_then(|c| serde_json::from_value(c).ok()).ok_or_else(|| {
        Error::user(
            format!("`{}` does not hold two networks that have learned from pairs", path.display()),
            "give the model that a job of `kind = \"contrastive\"` left, to `[model]` and to `[nets.tower]`",
        )
    })
}
