//! `adapter_config.json`: what counts of peft's `LoraConfig` and `IA3Config`, and what is refused.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::{FILES, by_layer::ByLayer, pattern};
use crate::nn::{Kind, Plan, Target};

/// Why an adapter cannot be used, and what to do.
pub(super) type Refused = (String, Option<&'static str>);

#[derive(Deserialize)]
pub(super) struct Config {
    peft_type: String,
    #[serde(default = "usual_rank")]
    r: usize,
    #[serde(default = "usual_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    rank_pattern: ByLayer<usize>,
    #[serde(default)]
    alpha_pattern: ByLayer<f64>,
    #[serde(default)]
    feedforward_modules: Value,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// What peft's `LoraConfig` has where nothing is said.
fn usual_rank() -> usize {
    8
}

fn usual_alpha() -> f64 {
    8.0
}

/// Settings that change nothing of what a trained adapter computes: where it came from, which layers have parts (the
/// tensors say), how the parts began, how they are loaded.
const HARMLESS: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_ia3_weights",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Settings that we know and do not have, with what can be done about them.
const KNOWN: [(&str, &str); 15] = [
    ("alora_invocation_tokens", ""),
    ("arrow_config", ""),
    ("ensure_weight_tying", ""),
    (
        "fan_in_fan_out",
        "it is for layers of GPT-2's kind; where peft trained dense layers it meant nothing, and can be set to false",
    ),
    ("kasa_config", ""),
    ("layer_replication", "the base would have more layers than its weights"),
    ("lora_bias", ""),
    ("megatron_config", ""),
    ("monteclora_config", ""),
    ("target_parameters", "only dense layers and convolutions have parts"),
    ("trainable_token_indices", "train the table of tokens as a whole, or not at all"),
    ("use_bdlora", ""),
    ("use_dora", "merge it with peft (`merge_and_unload`) and give the model as `model.weights`"),
    ("use_qalora", ""),
    ("velora_config", ""),
];

/// Initial values that are taken out of the weights of the base.
const MOVING: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Whether changes of a rank and an alpha can come to anything.
fn is_a_scale(rank: usize, alpha: f64) -> bool {
    let alpha = alpha as f32;
    (1..=4096).contains(&rank) && alpha.is_finite() && alpha != 0.0
}

/// Whether a setting is on.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

impl Config {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let config: Self = serde_json::from_str(text).map_err(|e| (format!("{}: {e}", FILES[0]), None))?;
        // First, for others have other settings.
        if !["LORA", "IA3"].contains(&config.peft_type.as_str()) {
            return Err((format!("its kind is `{}`", config.peft_type), None));
        }
        let odd = config.rest.iter().find(|(key, value)| {
            let fine = HARMLESS.contains(&key.as_str()) || *key == "bias";
            !fine && is_on(value)
        });
        if let Some((key, value)) = odd {
            return Err(match KNOWN.iter().find(|(known, _)| known == key) {
                Some((_, hint)) => (format!("`{key}` is not supported"), Some(*hint).filter(|h| !h.is_empty())),
                None => {
                    let value: String = value.to_string().chars().take(80).collect();
                    let hint =
                        "if it changes nothing of what the adapter computes, remove it from `adapter_config.json`";
                    (format!("`{key}` of {} is not known, and is {value}", FILES[0]), Some(hint))
                }
            });
        }
        if config.rest.get("bias").is_some_and(|b| is_on(b) && b != "none") {
            return Err(("`bias` is not supported: its base has other biases".into(), None));
        }
        // However it is written, as peft takes it.
        let init = config.rest.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        let kind = init.to_lowercase();
        if MOVING.iter().any(|moving| kind.starts_with(moving)) {
            let hint = if kind.starts_with("loftq") {
                "merge it with peft (`merge_and_unload`) and give the model as `model.weights`"
            } else {
                "save it with `path_initial_model_for_weight_conversion`: then it is one for the usual base"
            };
            return Err((format!("it began with `{init}`, which changes the base"), Some(hint)));
        }
        Ok(config)
    }

    /// Which layers have parts, the tensors say: names of the network, and their names in the file.
    pub(super) fn plan(
        &self,
        tensors: &BTreeMap<String, Tensor>,
        written: &BTreeMap<String, String>,
    ) -> Result<Plan, Refused> {
        let plain = |why: String| (why, None);
        let ending = |end: &str| -> Vec<String> {
            tensors.keys().filter_map(|name| Some(name.strip_suffix(end)?.to_owned())).collect()
        };
        let (kind, layers) = match self.peft_type.as_str() {
            "LORA" => {
                if !(0.0..1.0).contains(&self.lora_dropout) {
                    return Err(plain(format!("`lora_dropout` is {}", self.lora_dropout)));
                }
                let [layers, others] = [".lora_A.weight", ".lora_B.weight"].map(ending);
                if let Some(layer) = layers.iter().find(|l| !others.contains(l)) {
                    return Err(plain(format!("the change of `{layer}` has a `lora_A` and no `lora_B`")));
                }
                if let Some(layer) = others.iter().find(|l| !layers.contains(l)) {
                    return Err(plain(format!("the change of `{layer}` has a `lora_B` and no `lora_A`")));
                }
                let mut own = BTreeMap::new();
                for layer in &layers {
                    let name = format!("{layer}.lora_A.weight");
                    let theirs = written.get(&name).unwrap_or(&name);
                    let theirs = theirs.strip_suffix(".lora_A.weight").unwrap_or(theirs);
                    let rank = self.rank_pattern.of(theirs).map_err(plain)?.unwrap_or(self.r);
                    let alpha = self.alpha_pattern.of(theirs).map_err(plain)?.unwrap_or(self.lora_alpha);
                    // The numbers of all may be no scale where no layer has them.
                    if !is_a_scale(rank, alpha) {
                        return Err(plain(format!("`{layer}` has rank {rank} and alpha {alpha}")));
                    }
                    if tensors[&name].dims().first() != Some(&rank) {
                        return Err(plain(format!("the change of `{layer}` is not of rank {rank}")));
                    }
                    if (rank, alpha) != (self.r, self.lora_alpha) {
                        own.insert(layer.clone(), (rank, alpha));
                    }
                }
                let kind = Kind::Lora {
                    rank: self.r,
                    alpha: self.lora_alpha,
                    rslora: self.use_rslora,
                    dropout: self.lora_dropout as f32,
                    own,
                };
                (kind, layers)
            }
            _ => {
                let layers = ending(".ia3_l");
                let mut inner = Vec::new();
                for layer in &layers {
                    let name = format!("{layer}.ia3_l");
                    // A factor of inputs is a line, one of outputs a column; only those of convolutions do not say.
                    let of_inputs = match tensors[&name].dims() {
                        [rows, _] => *rows == 1,
                        _ => {
                            let theirs = written.get(&name).unwrap_or(&name);
                            self.is_feedforward(theirs.strip_suffix(".ia3_l").unwrap_or(theirs)).map_err(plain)?
                        }
                    };
                    inner.extend(of_inputs.then_some(layer));
                }
                (Kind::Ia3 { feedforward: Target::exact(inner), strict: true }, layers)
            }
        };
        if layers.is_empty() {
            return Err(plain(format!("{} holds no changes", FILES[1])));
        }
        Ok(Plan { kind, targets: Target::exact(layers), strict: true })
    }

    /// Its `target_modules`, where they alone say which layers have parts.
    pub(super) fn targets(&self) -> Value {
        let alone =
            ["exclude_modules", "layers_to_transform"].iter().all(|key| !self.rest.get(*key).is_some_and(is_on));
        self.rest.get("target_modules").filter(|_| alone).cloned().unwrap_or_default()
    }

    /// Its `modules_to_save`.
    pub(super) fn saved(&self) -> Vec<String> {
        let list = self.rest.get("modules_to_save").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// As peft asks: a text is a pattern for the whole name, those of a list are ends of it, wherever they begin.
    fn is_feedforward(&self, layer: &str) -> Result<bool, String> {
        match &self.feedforward_modules {
            Value::String(text) => pattern::is_match(text, layer),
            Value::Array(list) => Ok(list.iter().filter_map(Value::as_str).any(|end| layer.ends_with(end))),
            _ => Err(format!("`feedforward_modules` does not say whether the factors of `{layer}` are of its inputs")),
        }
    }
}
