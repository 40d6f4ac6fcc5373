//! The shape of `job.toml`. Field names are the file's keys; defaults are what a user would expect.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AugmentSection, BaselineSection, ClassWeights, CompareSection, EpisodesSection, PairsSection, Precision,
    RecipeSection, Sampling, SourceSection, StageSection, StepSection, TargetSection, TaskSection,
};

/// Free parameters of a catalog entry.
pub type Params = BTreeMap<String, serde_json::Value>;

/// A whole job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Version of the format.
    pub schema: u32,
    /// `"fine_tune"`, or a table with that name: stands for stages and an optimizer, and is written out when read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<RecipeSection>,
    /// Name, kind, seed.
    pub job: JobSection,
    /// Where it runs.
    #[serde(default)]
    pub cluster: ClusterSection,
    /// What it learns from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSection>,
    /// The network that is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSection>,
    /// Further networks by role, such as `nets.teacher`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nets: BTreeMap<String, ModelSection>,
    /// What else is learned, by name, where the kind of job learns several tasks; the first is that of `[data]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskSection>,
    /// Parameters of the objective, as the catalog lists them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objective: Params,
    /// Modifiers by name with their parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modifiers: BTreeMap<String, Params>,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// Stages, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage: Vec<StageSection>,
    /// Early stopping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopSection>,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// Steps of a pipeline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step: Vec<StepSection>,
    /// What a pipeline compares at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<CompareSection>,
}

/// `[job]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSection {
    /// A label for people.
    pub name: String,
    /// An objective of the catalog, or `pipeline`.
    pub kind: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u32,
    /// Higher runs first. That of a pipeline counts, and none of its steps'.
    #[serde(default)]
    pub priority: i32,
    /// Who it belongs to; the same holds of it.
    #[serde(default = "default_project")]
    pub project: String,
    /// What the job has to beat, each a name or a table: `["scratch", "linear_probe"]`. They are trained beside it, on
    /// idle workers, and the difference is told. Written out as a pipeline when the job is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<BaselineSection>,
    /// The job once with each of these seeds in place of `seed` (in a pipeline: every step), and what it comes to as a
    /// mean with its 95 % interval. Written out as steps when the job is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u32>,
}

fn default_project() -> String {
    "default".into()
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// Ranks: `2`, or `"1..4"`: as many as there are, within the range.
    pub ranks: Ranks,
    /// `auto`, `cpu` or `cuda`.
    pub device: Device,
    /// `auto`, `ordered` or `fast`.
    pub reduction: Reduction,
    /// Threads per rank; 0 shares the cores of the node among its slots.
    pub threads: u32,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self { ranks: Ranks { min: 1, max: 1 }, device: Device::Auto, reduction: Reduction::Auto, threads: 0 }
    }
}

/// How many ranks a job takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RanksText", into = "RanksText")]
pub struct Ranks {
    /// Fewest that are worth starting.
    pub min: u32,
    /// Most that it can use.
    pub max: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum RanksText {
    Exact(u32),
    Range(String),
}

impl TryFrom<RanksText> for Ranks {
    type Error = String;
    fn try_from(text: RanksText) -> Result<Self, String> {
        let (min, max) = match text {
            RanksText::Exact(n) => (n, n),
            RanksText::Range(text) => {
                let bad = || format!("`{text}` is not a number of ranks such as 2 or \"1..4\"");
                let (min, max) = text.split_once("..").ok_or_else(bad)?;
                let max = max.strip_prefix('=').unwrap_or(max);
                (min.trim().parse().map_err(|_| bad())?, max.trim().parse().map_err(|_| bad())?)
            }
        };
        if min == 0 || max < min || max > 1024 {
            return Err(format!("ranks {min}..{max} must be at least 1, ascending, and at most 1024"));
        }
        Ok(Self { min, max })
    }
}

impl From<Ranks> for RanksText {
    fn from(r: Ranks) -> Self {
        if r.min == r.max { Self::Exact(r.min) } else { Self::Range(format!("{}..{}", r.min, r.max)) }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}..{}", self.min, self.max) }
    }
}

/// The device that ranks want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// GPUs where the nodes have enough of them, also if others have them now; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or none at all.
    Cuda,
}

/// How gradients are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Ordered where no rank has a GPU, else fast.
    #[default]
    Auto,
    /// One fixed tree, in the hosts' memory: bit-identical for any number of ranks.
    Ordered,
    /// The sums of ranks, over NCCL where they have GPUs: fewest bytes.
    Fast,
}

/// `[data]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// A format of the catalog.
    pub format: String,
    /// Where the training samples are (for `generated`: the task). A kind of job that trains nothing needs none,
    /// and opens none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub train: String,
    /// Where the validation samples are, or, such as `0.2`, the share of those of `train` that they are: of each class so
    /// many, by what is in them, the same with any seed. In few-shot learning, the samples of some of the classes of `train`,
    /// by name.
    #[serde(deserialize_with = "super::share::place")]
    #[schemars(with = "super::share::Val")]
    pub val: String,
    /// The share, where `val` was one: the place is then that of `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_share: Option<f64>,
    /// Samples of one step, over all ranks; where `episodes` are drawn, episodes.
    pub batch: u32,
    /// Grains of a full step; default min(8, batch/4), at least 1. Of episodes, min(8, batch).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grains: Option<u32>,
    /// Take only the first N training samples per class (after a seeded shuffle).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_per_class: Option<u32>,
    /// Train on some of the classes only: names, beginnings of names (`Greek/*`), or their numbers in order, from 0
    /// (`0..120`, with both ends).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_classes: Vec<String>,
    /// The same for the validation samples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub val_classes: Vec<String>,
    /// Samples that may fail to decode before the job fails.
    #[serde(default)]
    pub skip_bad: u32,
    /// What a sample counts in the loss by its class: `"balanced"` (n / (classes · samples of the class)), or a number
    /// for each class in the order of their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// `shuffled`: each sample once an epoch; `balanced`: as many draws, each from a class at random.
    #[serde(default)]
    pub sampling: Sampling,
    /// Augmentation of training samples.
    #[serde(default)]
    pub augment: AugmentSection,
    /// Further parameters of the format.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: Params,
    /// Samples of another domain, without labels, that `adapt` brings the network to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSection>,
    /// Samples of what the weights were trained on: how much of it is forgotten is measured on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSection>,
    /// The other half of each sample, of another kind: sounds that go with pictures, pictures with texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PairsSection>,
    /// Few-shot tasks that `fewshot` draws from the samples. The classes of `train` and `val` should be different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episodes: Option<EpisodesSection>,
}

/// `[model]` and `[nets.ROLE]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A backbone of the catalog.
    pub backbone: String,
    /// A file, a folder of ours or of Hugging Face's layout, `hf://OWNER/REPO[@REVISION][#FILE]`, `data:DIGEST`,
    /// `step:ID`, `job:ID[/STEP]`, or nothing for random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Take preprocessing, tokenizer and sizes from the weights, and none of their values: the same network, begun anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random: bool,
    /// A folder with `adapter_config.json` and `adapter_model.safetensors`, as peft and jobs of ours write it for LoRA and
    /// IA3. Its changes are worked into the weights; with `[modifiers.lora]` or `[modifiers.ia3]` they are trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The preprocessing that the weights want, where no `preprocess.json` or `config.json` of timm's lies beside them:
    /// `tf`, `torch`, `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<String>,
    /// Padding convention of the weights: `same` or `symmetric`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<String>,
    /// Side of the square input in pixels; for text, the most tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<u32>,
    /// Inside the blocks of a transformer: the probability to drop a number of a row while it trains. Else what
    /// `config.json` beside the weights says (`hidden_dropout_prob`, `dropout`), and nothing where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// The same for the probabilities of its attention (`attention_probs_dropout_prob`, `attention_dropout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_dropout: Option<f64>,
    /// What its products compute with: `f32`, `tf32` or `bf16`. Parameters, checkpoints and exported files are f32 with any.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// The classifier on top.
    #[serde(default)]
    pub head: HeadSection,
}

/// `model.head`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadSection {
    /// Widths of hidden layers.
    pub hidden: Vec<u32>,
    /// Probability to drop a unit after each hidden layer (before the output where there is none). Where it is not said, a
    /// head on BERT or DistilBERT takes what `config.json` beside the weights says of one, as in transformers
    /// (`classifier_dropout`, else `hidden_dropout_prob`; `seq_classif_dropout`, else 0.2); any other, and one on weights without that file,
    /// drops nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// `none` or `batch`, after each hidden layer.
    pub norm: Norm,
    /// After each hidden layer: `relu`, `gelu`, `silu`, `tanh`, `sigmoid` or `none`.
    pub activation: HeadAct,
    /// The activation comes before the norm, as in Keras' usual heads, not after it.
    pub act_first: bool,
    /// Keep the head that comes with the weights (their classes must be the data's).
    pub keep: bool,
}

/// Normalisation in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// None.
    #[default]
    None,
    /// Batch-norm.
    Batch,
}

/// Activation in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadAct {
    /// max(x, 0).
    #[default]
    Relu,
    /// x·Φ(x).
    Gelu,
    /// x·σ(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// σ(x).
    Sigmoid,
    /// Nothing.
    None,
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// `adamw` or `sgd`.
    pub name: String,
    /// Decoupled for AdamW, L2 for SGD; matrices and kernels only.
    pub weight_decay: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// First moment of AdamW.
    pub beta1: f64,
    /// Second moment of AdamW.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the mean gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            name: "adamw".into(),
            weight_decay: 0.01,
            momentum: 0.9,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: None,
        }
    }
}

/// `[stop]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopSection {
    /// `val.accuracy` or `val.loss`; `tasks.NAME.accuracy` or `tasks.NAME.loss` where there are several tasks; where a network
    /// is brought to another domain also `target.entropy` (mean entropy of the predictions there: lower is better) or
    /// `target.snd` (soft neighbourhood density, of at most 4096 samples: higher is better), neither of which looks at labels.
    pub monitor: String,
    /// Epochs without improvement before a stage ends.
    #[serde(default)]
    pub patience: Option<u32>,
    /// Smallest change that counts.
    #[serde(default)]
    pub min_delta: f64,
    /// Go back to the best epoch at the end of each stage: the best of that stage, which may be less than an earlier stage had.
    #[serde(default)]
    pub restore_best: bool,
    /// Multiply the rate by this after `plateau_patience` epochs without improvement.
    #[serde(default)]
    pub plateau_factor: Option<f64>,
    /// See `plateau_factor`.
    #[serde(default = "ten")]
    pub plateau_patience: u32,
}

fn ten() -> u32 {
    10
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps between checkpoints; stage ends always have one. 0: once an epoch.
    pub every: u32,
    /// How many of a phase are kept.
    pub keep: u32,
    /// How many may fail to be written before the job fails.
    pub tolerate: u32,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 0, keep: 2, tolerate: 3 }
    }
}

impl JobSpec {
    /// The job as a file that reads back as the same job.
    pub fn to_toml(&self) -> String {
        // Through a table, which puts plain values before sections.
        let mut table = toml::Table::try_from(self).unwrap_or_default();
        super::share::as_in_file(&mut table);
        table.to_string()
    }

    /// Grains of a full step: the unit of sharding and of batch statistics. Part of the job, never of the machines.
    pub fn grains(&self) -> u32 {
        let Some(data) = &self.data else { return 1 };
        let least = if data.episodes.is_some() { 1 } else { 4 };
        data.grains.unwrap_or_else(|| (data.batch / least).min(8)).max(1)
    }
}
