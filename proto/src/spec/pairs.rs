//! `[data.pairs]`: the other half of each sample, of another kind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AugmentSection, DataSection, Params};

/// `[data.pairs]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairsSection {
    /// A format of the catalog.
    pub format: String,
    /// Where the halves are that training samples go with. One without the other is left out.
    pub train: String,
    /// Where those are that validation samples go with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    /// What makes two halves a pair: `name` (the path below the folder without its ending, or what stands in front of the
    /// tab for text), `label` (any two of the same class, drawn anew for each), or `order` (the first with the first).
    #[serde(default)]
    pub by: PairedBy,
    /// Augmentation of training samples.
    #[serde(default)]
    pub augment: AugmentSection,
    /// Further parameters of the format.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
}

/// What makes two halves a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairedBy {
    /// Names without their endings.
    #[default]
    Name,
    /// The class; nothing else is learned of it.
    Label,
    /// The place in the list.
    Order,
}

impl DataSection {
    /// The other halves' data as a section of its own; they are validated on those they learn from where there are no others.
    pub fn of_pairs(&self) -> Option<Self> {
        let pairs = self.pairs.as_ref()?;
        Some(Self {
            format: pairs.format.clone(),
            train: pairs.train.clone(),
            val: pairs.val.clone().unwrap_or_else(|| pairs.train.clone()),
            params: pairs.params.clone(),
            augment: pairs.augment.clone(),
            ..self.beside()
        })
    }
}
