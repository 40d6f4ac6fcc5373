//! `[[stage]]`: what is trained, at which rates, how long, and by which schedule.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SpecError;

/// `[[stage]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageSection {
    /// A label.
    pub name: String,
    /// Passes over the training samples; the most of them where `advance` is given. 0 only with `lr_find`.
    pub epochs: u32,
    /// What is trained: `head`, `top:20` (the last 20 layers of the backbone), `*`, `norms` (scale and shift of every
    /// normalisation of the backbone), a parameter name or the start of one up to a dot, or `re:PATTERN`, a regular
    /// expression that is looked for in parameter names.
    pub train: Vec<String>,
    /// Learning rate: a number; `[low, high]`, geometric from the lowest trained block to the head; or a table from
    /// rules as in `train` to rates, of which the rule that names the fewest parameters counts.
    pub lr: Rates,
    /// A schedule of the catalog.
    #[serde(default = "default_schedule")]
    pub schedule: String,
    /// Shape of the schedule `one_cycle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<CycleSection>,
    /// Lower the rate where the monitored metric no longer improves; `{}` for the usual settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau: Option<PlateauSection>,
    /// Go on to the next stage once the monitored metric no longer improves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advance: Option<AdvanceSection>,
    /// Look for a learning rate before the stage begins; `{}` for the usual settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_find: Option<LrFindSection>,
    /// Steps over which the rate rises from zero; fewer than the stage has.
    #[serde(default)]
    pub warmup: u32,
    /// Each block further from the head learns at this fraction of the rate above it; blocks are those of timm's groups, a last
    /// norm or convolution with the block before it. Where timm has other ones, or none: VGG's lie between poolings, and its
    /// dense layers are one each, as are BERT's pooler and DistilBERT's dense layer in front of the classifier.
    #[serde(default = "one")]
    pub layer_decay: f64,
    /// The smallest fraction of the rate that `layer_decay` comes to.
    #[serde(default)]
    pub min_scale: f64,
    /// What batch-norm layers do.
    #[serde(default)]
    pub bn: BnMode,
    /// Whose statistics batch-norms in training take: those of the `grain`, or of the whole `batch` over all ranks.
    #[serde(default)]
    pub bn_scope: BnScope,
    /// Forget moments at the start of the stage.
    #[serde(default)]
    pub reset_optimizer: bool,
}

pub(super) fn default_schedule() -> String {
    "constant".into()
}

fn one() -> f64 {
    1.0
}

fn val_loss() -> String {
    "val.loss".into()
}

impl StageSection {
    /// A stage that says no more than it must.
    pub fn new(name: &str, epochs: u32, train: &[&str], lr: impl Into<Rates>) -> Self {
        Self {
            name: name.into(),
            epochs,
            train: train.iter().map(|t| (*t).into()).collect(),
            lr: lr.into(),
            schedule: default_schedule(),
            cycle: None,
            plateau: None,
            advance: None,
            lr_find: None,
            warmup: 0,
            layer_decay: 1.0,
            min_scale: 0.0,
            bn: BnMode::default(),
            bn_scope: BnScope::default(),
            reset_optimizer: false,
        }
    }

    /// The settings of the plateau schedule, where the stage has one.
    pub fn plateau(&self) -> Option<PlateauSection> {
        self.plateau.clone().or_else(|| (self.schedule == "plateau").then(PlateauSection::default))
    }
}

/// Learning rates of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`lr` takes a number, `[low, high]`, or a table of rules and rates such as `{ head = 1e-3, \"*\" = 1e-5 }`"
)]
pub enum Rates {
    /// The same for everything.
    One(f64),
    /// Geometric, from the lowest trained block to the head.
    Range([f64; 2]),
    /// By rule; the rule that names the fewest parameters counts.
    Rules(BTreeMap<String, f64>),
}

impl From<f64> for Rates {
    fn from(lr: f64) -> Self {
        Self::One(lr)
    }
}

impl Rates {
    /// The largest rate: the one that is shown, and that schedules are about.
    pub fn top(&self) -> f64 {
        self.all().into_iter().fold(0.0, f64::max)
    }

    /// Every rate that is written.
    pub fn all(&self) -> Vec<f64> {
        match self {
            Self::One(lr) => vec![*lr],
            Self::Range(range) => range.to_vec(),
            Self::Rules(rules) => rules.values().copied().collect(),
        }
    }
}

/// `stage.cycle`: one cycle of rate and momentum (Smith and Topin, 2018) along half cosines, as fastai shapes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CycleSection {
    /// Part of the stage in which the rate rises.
    pub pct_start: f64,
    /// The rate begins at this fraction of itself, 1/div.
    pub div: f64,
    /// And ends at 1/div_final.
    pub div_final: f64,
    /// Momentum (AdamW's beta1) at the start, at the top of the rate, and at the end; without it momentum stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<[f64; 3]>,
}

impl Default for CycleSection {
    fn default() -> Self {
        Self { pct_start: 0.25, div: 25.0, div_final: 1e5, momentum: None }
    }
}

/// `stage.plateau`: Keras' `ReduceLROnPlateau`, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlateauSection {
    /// `val.loss` or `val.accuracy`.
    pub monitor: String,
    /// The rate is multiplied by this.
    pub factor: f64,
    /// After so many epochs without improvement.
    pub patience: u32,
    /// Smallest change that counts as one.
    pub min_delta: f64,
    /// Epochs after a reduction in which nothing is counted.
    pub cooldown: u32,
    /// The rate goes no lower.
    pub min_lr: f64,
}

impl Default for PlateauSection {
    fn default() -> Self {
        Self { monitor: val_loss(), factor: 0.1, patience: 10, min_delta: 1e-4, cooldown: 0, min_lr: 0.0 }
    }
}

/// `stage.advance`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvanceSection {
    /// `val.loss` or `val.accuracy`.
    #[serde(default = "val_loss")]
    pub monitor: String,
    /// Epochs without improvement after which the next stage begins.
    pub patience: u32,
    /// Smallest change that counts as one.
    #[serde(default)]
    pub min_delta: f64,
}

/// `stage.lr_find`: the rate rises exponentially from step to step while the loss is watched (Smith, 2017); the
/// network then goes back to where it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LrFindSection {
    /// The first rate.
    pub start: f64,
    /// The last rate.
    pub end: f64,
    /// Steps.
    pub steps: u32,
    /// The loss is smoothed by this.
    pub smooth: f64,
    /// The search ends where the smoothed loss is this many times its best.
    pub stop_factor: f64,
    /// Train at the rate that was found: `valley` or `steepest`; where none was, `lr` stands. Without it the rate is
    /// only shown.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub pick: Option<Pick>,
}

impl Default for LrFindSection {
    fn default() -> Self {
        Self { start: 1e-7, end: 10.0, steps: 100, smooth: 0.98, stop_factor: 4.0, pick: None }
    }
}

/// Which rate of a search is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// Two thirds into the longest valley of the loss.
    Valley,
    /// Where the loss falls fastest.
    Steepest,
}

/// What the batch-norm layers of the trained part of the backbone do in a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BnMode {
    /// Running statistics, fixed scale and shift.
    #[default]
    Frozen,
    /// Running statistics, trained scale and shift.
    AffineOnly,
    /// Statistics of what is trained on (see `bn_scope`), trained scale and shift.
    Train,
}

/// Whose statistics the batch-norms take that learn in a stage: those of the head, and with `bn = "train"` those of the
/// trained part of the backbone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BnScope {
    /// Of the grain: no waiting, and one grain in memory at a time.
    #[default]
    Grain,
    /// Of the step's whole batch, over all grains of all ranks. Ranks wait for each other at every batch-norm, forward and
    /// backward, and all grains of a rank are in memory at once.
    Batch,
}

/// The pattern of a rule `re:PATTERN`; nothing for another rule. Bounded in length and in what it compiles to, and
/// matched in time linear in the name.
///
/// # Errors
/// Text that is no regular expression, or one that is too large.
pub fn name_pattern(rule: &str) -> Result<Option<regex::bytes::Regex>, SpecError> {
    let Some(text) = rule.strip_prefix("re:") else { return Ok(None) };
    let hint = "write it as `re:layer[34]\\..*conv`; `^` and `$` anchor it";
    if text.is_empty() || text.len() > 200 {
        return Err(SpecError::new(format!("`{rule}` must have 1 to 200 characters after `re:`"), hint));
    }
    let built = regex::bytes::RegexBuilder::new(text).unicode(false).size_limit(1 << 18).nest_limit(32).build();
    built.map(Some).map_err(|e| {
        let why = e.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        SpecError::new(format!("`{rule}` is no regular expression: {why}"), hint)
    })
}
