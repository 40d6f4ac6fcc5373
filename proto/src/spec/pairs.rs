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
    /// Where the halves are that training samples go with.
    pub train: String,
    /// Where those are that validation samples go with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    /// What makes two halves a pair: `name` (the path below the folder without its ending, what stands in front of the
    /// tab for text or in the column that `params.label` names, or the `key_id` of a drawing), `label` (any two of the same
    /// class, drawn anew for each), or `order` (the first with the first).
    #[serde(default)]
    pub by: PairedBy,
    /// What becomes of a training sample without its other half, and of a half without its sample: `leave_out`, or `mask`,
    /// where two networks learn from pairs. Then it stays in the batch as one that the others are told from; it has no
    /// loss of its own, and losses are means over the pairs that are whole. Validated are whole pairs alone.
    #[serde(default, skip_serializing_if = "Missing::leaves_out")]
    pub missing: Missing,
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

/// What becomes of a half without the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// Nothing is learned from it.
    #[default]
    LeaveOut,
    /// It stays; what it lacks is masked in the loss.
    Mask,
}

impl Missing {
    /// Whether nothing is learned from half a pair.
    pub fn leaves_out(&self) -> bool {
        *self == Self::LeaveOut
    }
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
