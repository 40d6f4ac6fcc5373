//! What becomes of samples on their way to the network: which are drawn, what they count, how they are changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[data.augment]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSection {
    /// Mirror left and right with probability one half.
    pub flip: bool,
    /// Rotate by up to this fraction of a full turn, either way.
    pub rotate: f64,
    /// Zoom by up to this fraction, in or out.
    pub zoom: f64,
    /// Crop a window at a random place, after padding by this fraction of the side.
    pub crop: f64,
    /// Blank a box at a random place with this probability.
    pub erase: f64,
    /// `4`: four fixed views per sample, cacheable; `"fresh"`: a new one each epoch.
    pub views: Views,
}

/// What samples count in the loss by their class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`class_weights` takes \"balanced\", or a list with a number for each class")]
pub enum ClassWeights {
    /// By how rare it is.
    Rule(WeightRule),
    /// By class, in the order of their names.
    Each(Vec<f64>),
}

/// A rule for class weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightRule {
    /// All samples over classes times samples of the class: one on average over the samples.
    Balanced,
}

/// Which samples an epoch sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Each once, in a new order.
    #[default]
    Shuffled,
    /// As many draws with replacement, all classes alike.
    Balanced,
}

/// How many versions of a sample there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "ViewsText", into = "ViewsText")]
pub enum Views {
    /// This many fixed ones, used in turn.
    Fixed(u32),
    /// A new one each epoch; nothing of them can be cached.
    Fresh,
}

impl Default for Views {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ViewsText {
    Count(u32),
    Word(String),
}

impl TryFrom<ViewsText> for Views {
    type Error = String;
    fn try_from(text: ViewsText) -> Result<Self, String> {
        match text {
            ViewsText::Count(n) if (1..=1024).contains(&n) => Ok(Self::Fixed(n)),
            ViewsText::Word(w) if w == "fresh" => Ok(Self::Fresh),
            _ => Err("views must be a number from 1 to 1024, or \"fresh\"".into()),
        }
    }
}

impl From<Views> for ViewsText {
    fn from(v: Views) -> Self {
        match v {
            Views::Fixed(n) => Self::Count(n),
            Views::Fresh => Self::Word("fresh".into()),
        }
    }
}
