//! Adapters in peft's files: `adapter_config.json` and `adapter_model.safetensors` in a folder, read and written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use candle_core::Tensor;
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use super::text;
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    collective::to_bytes,
    nn::{Entry, Kind, ParamId, Part, Plan, Store, Target, host},
};

/// The names of the two files.
pub const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// What stands before the names of the network that peft wraps.
const WRAPPER: &str = "base_model.model.";

/// Largest `adapter_config.json`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// An adapter that was read.
pub struct Folder {
    /// What it puts where.
    pub plan: Plan,
    /// Digest of its tensors' file.
    pub digest: String,
    /// Its path.
    pub shown: String,
    /// By the network's own names.
    tensors: BTreeMap<String, Tensor>,
    head: bool,
    labels: Option<Vec<String>>,
}

/// What counts of peft's `LoraConfig` and `IA3Config`.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    #[serde(default)]
    r: usize,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    feedforward_modules: Value,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Settings that change what an adapter computes, and that we do not have.
const UNKNOWN: [&str; 11] = [
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
];

/// Initial values that are taken out of the weights of the base.
const MOVING: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Whether a setting is on.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

/// Whether a tensor belongs to the head.
fn is_head(backbone: &Backbone, name: &str) -> bool {
    name.starts_with("head.") || name.strip_prefix(backbone.classifier).is_some_and(|rest| rest.starts_with('.'))
}

/// The layer in front of DistilBERT's classifier, in a head of one hidden layer.
const PRE_CLASSIFIER: (&str, &str) = ("head.0.", "pre_classifier.");

/// A name of Hugging Face's model without what stands before those of its encoder.
fn own_name(backbone: &Backbone, name: &str) -> String {
    if backbone.reads_text() { text::bare_name(name).to_owned() } else { name.to_owned() }
}

/// Where a network has a tensor of an adapter: DistilBERT's dense layer came with the weights or is the job's head.
fn place(backbone: &Backbone, network: &Store, name: &str) -> String {
    match name.strip_prefix(PRE_CLASSIFIER.1) {
        Some(rest) if backbone.name == "distilbert" && !network.params.iter().any(|e| e.name == name) => {
            format!("{}{rest}", PRE_CLASSIFIER.0)
        }
        _ => name.to_owned(),
    }
}

/// The other way round: as `AutoModelForSequenceClassification` has it where that is the same network.
fn their_name(backbone: &Backbone, name: &str) -> String {
    match (backbone.name, name.strip_prefix(PRE_CLASSIFIER.0)) {
        ("distilbert", Some(rest)) => format!("{}{rest}", PRE_CLASSIFIER.1),
        ("distilbert", _) if name.starts_with(PRE_CLASSIFIER.1) => name.to_owned(),
        ("bert" | "distilbert", _) if !is_head(backbone, name) => format!("{}.{name}", backbone.name),
        _ => name.to_owned(),
    }
}

impl Folder {
    /// Reads a folder for a backbone.
    ///
    /// # Errors
    /// Files that are not there or not whole, or an adapter of a kind that we do not have.
    pub fn read(folder: &Path, backbone: &Backbone) -> Result<Self> {
        let shown = folder.display().to_string();
        let bad = |why: String| {
            Error::user(
                format!("the adapter `{shown}` cannot be used: {why}"),
                "`model.adapter` is a folder that peft has written for LoRA or IA3",
            )
        };
        let [config, tensors] = FILES.map(|name| folder.join(name));
        let size = std::fs::metadata(&config).map_err(|e| bad(format!("{}: {e}", FILES[0])))?.len();
        if size > MAX_CONFIG {
            return Err(bad(format!("{} is too large", FILES[0])));
        }
        let text = std::fs::read_to_string(&config).map_err(|e| bad(format!("{}: {e}", FILES[0])))?;
        let config: Config = serde_json::from_str(&text).map_err(|e| bad(format!("{}: {e}", FILES[0])))?;
        let odd = UNKNOWN.iter().find(|key| config.rest.get(**key).is_some_and(is_on));
        if let Some(key) = odd {
            return Err(bad(format!("`{key}` is not supported")));
        }
        if config.rest.get("bias").is_some_and(|b| is_on(b) && b != "none") {
            return Err(bad("`bias` is not supported: its base has other biases".into()));
        }
        let init = config.rest.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if MOVING.iter().any(|kind| init.starts_with(kind)) {
            return Err(bad(format!("it began with `{init}`, which changes the base")));
        }
        if tensors.exists() {
            super::size(&tensors)?;
        }
        let bytes = std::fs::read(&tensors).map_err(|e| bad(format!("{}: {e}", FILES[1])))?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let mut named = BTreeMap::new();
        for (name, tensor) in super::read(&tensors)? {
            let inner = name.strip_prefix(WRAPPER).ok_or_else(|| bad(format!("`{name}` is no name of peft's")))?;
            named.insert(own_name(backbone, inner), tensor);
        }
        let plan = config.plan(&named).map_err(&bad)?;
        let head = named.keys().any(|name| is_head(backbone, name));
        let labels = std::fs::read_to_string(folder.join("labels.txt")).ok();
        let labels = labels.map(|text| text.lines().map(str::to_owned).collect());
        Ok(Self { plan, digest, shown, tensors: named, head, labels })
    }

    /// Whether it brings a head.
    pub fn has_head(&self) -> bool {
        self.head
    }

    /// Copies its tensors into a network with its plan; those of a head only if that is kept for these classes.
    ///
    /// # Errors
    /// Tensors without a place, or of another shape; a kept head for other classes.
    pub fn fill(&self, network: &mut Network, backbone: &Backbone, kept: Option<&[String]>) -> Result<()> {
        if let (Some(classes), Some(labels)) = (kept, &self.labels)
            && classes != labels
        {
            return Err(Error::user(
                format!("the adapter `{}` is for the classes {labels:?}, and the data has {classes:?}", self.shown),
                "a head can only be kept for the classes that it was trained on",
            ));
        }
        let own = |name: &String| place(backbone, &network.initial, name);
        let named: Vec<(String, &Tensor)> = self.tensors.iter().map(|(name, t)| (own(name), t)).collect();
        let Store { params, buffers, values, buffer_values } = &mut network.initial;
        for (name, tensor) in &named {
            if is_head(backbone, name) && kept.is_none() {
                continue;
            }
            let found =
                |list: &[Entry]| list.iter().find(|e| e.name == *name).map(|e| (e.shape.clone(), e.range.clone()));
            let (shape, place) = match (found(params), found(buffers)) {
                (Some((shape, range)), _) => (shape, &mut values[range]),
                (None, Some((shape, range))) => (shape, &mut buffer_values[range]),
                (None, None) => {
                    return Err(Error::user(
                        format!("the adapter `{}` changes `{name}`, which {} does not have", self.shown, backbone.name),
                        "`model.backbone` must be the network that the adapter was trained on",
                    ));
                }
            };
            // A factor is a line or a column there.
            let same =
                if name.ends_with(".ia3_l") { tensor.elem_count() == place.len() } else { tensor.dims() == shape };
            if !same {
                return Err(Error::user(
                    format!("`{name}` of the adapter `{}` is {:?} instead of {shape:?}", self.shown, tensor.dims()),
                    "`model.backbone` must be the network that the adapter was trained on",
                ));
            }
            place.copy_from_slice(&host(tensor)?);
        }
        Ok(())
    }
}

impl Config {
    /// Which layers have parts, the tensors say.
    fn plan(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Plan, String> {
        let ending = |end: &str| -> Vec<String> {
            tensors.keys().filter_map(|name| Some(name.strip_suffix(end)?.to_owned())).collect()
        };
        let (kind, layers) = match self.peft_type.as_str() {
            "LORA" if (1..=4096).contains(&self.r) && (self.lora_alpha as f32).is_finite() => {
                let (rank, alpha, rslora) = (self.r, self.lora_alpha, self.use_rslora);
                let layers = ending(".lora_A.weight");
                let odd = layers.iter().find(|l| tensors[&format!("{l}.lora_A.weight")].dims().first() != Some(&rank));
                if let Some(layer) = odd {
                    return Err(format!("the change of `{layer}` is not of rank {rank}"));
                }
                (Kind::Lora { rank, alpha, rslora, dropout: 0.0 }, layers)
            }
            "LORA" => return Err(format!("rank {} and alpha {}", self.r, self.lora_alpha)),
            "IA3" => {
                let listed = self.feedforward_modules.as_array().cloned().unwrap_or_default();
                let listed = Target::list(listed.iter().filter_map(Value::as_str));
                // A factor of inputs is a line, one of outputs a column; only those of convolutions do not say.
                let inner = |layer: &String| match tensors[&format!("{layer}.ia3_l")].dims() {
                    [rows, _] => *rows == 1,
                    _ => listed.iter().any(|t| t.names(layer)),
                };
                let layers = ending(".ia3_l");
                let feedforward = Target::list(layers.iter().filter(|l| inner(l)).cloned());
                (Kind::Ia3 { feedforward, strict: true }, layers)
            }
            other => return Err(format!("its kind is `{other}`")),
        };
        if layers.is_empty() {
            return Err(format!("{} holds no changes", FILES[1]));
        }
        Ok(Plan { kind, targets: Target::list(layers), strict: true })
    }
}

/// The two files for a network with LoRA or IA3, in the order of [`FILES`]; `saved` are modules that were trained as they
/// are. Nothing for a network without.
///
/// # Errors
/// None that can be caused from outside.
pub fn files(
    network: &Network,
    backbone: &Backbone,
    store: &Store,
    saved: &BTreeSet<String>,
    base: Option<&str>,
) -> Result<Option<[Vec<u8>; 2]>> {
    let adapters = &network.adapters;
    let Some(plan) = adapters.plan.as_ref().filter(|_| !adapters.sites.is_empty()) else { return Ok(None) };
    let theirs = |name: &str| their_name(backbone, name);
    let modules: Vec<String> =
        saved.iter().map(|m| theirs(&format!("{m}.")).trim_end_matches('.').to_owned()).collect();
    let mut config = json!({
        "base_model_name_or_path": base,
        "task_type": match backbone.name {
            "bert" | "distilbert" => Some("SEQ_CLS"),
            "minilm" => Some("FEATURE_EXTRACTION"),
            _ => None,
        },
        "inference_mode": true,
        "fan_in_fan_out": false,
        "modules_to_save": modules,
        "target_modules": targets(plan, &adapters.sites.iter().map(|s| s.layer.as_str()).collect::<Vec<_>>()),
    });
    match &plan.kind {
        Kind::Lora { rank, alpha, rslora, dropout } => {
            config["peft_type"] = "LORA".into();
            config["r"] = (*rank).into();
            config["lora_alpha"] = if alpha.fract() == 0.0 { (*alpha as i64).into() } else { (*alpha).into() };
            // The shortest decimal that is this number.
            config["lora_dropout"] = dropout.to_string().parse::<f64>().unwrap_or_default().into();
            config["use_rslora"] = (*rslora).into();
            config["bias"] = "none".into();
            config["init_lora_weights"] = true.into();
        }
        _ => {
            let inner = adapters.sites.iter().filter(|s| matches!(s.part, Part::Ia3 { input: true, .. }));
            let inner: Vec<&str> = inner.map(|s| s.layer.as_str()).collect();
            config["peft_type"] = "IA3".into();
            // All names in full: peft looks for these among those.
            config["target_modules"] = adapters.sites.iter().map(|s| s.layer.as_str()).collect();
            config["feedforward_modules"] = inner.into();
            config["init_ia3_weights"] = true.into();
        }
    }
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |entry: &Entry, shape: Vec<usize>, values: &[f32]| {
        tensors.push((format!("{WRAPPER}{}", theirs(&entry.name)), shape, to_bytes(&values[entry.range.clone()])));
    };
    for site in &adapters.sites {
        let of = |id: ParamId| &store.params[id.0];
        match site.part {
            Part::Lora { a, b, .. } => [a, b].map(of).into_iter().for_each(|e| add(e, e.shape.clone(), &store.values)),
            Part::Ia3 { l, input } => {
                let (entry, n) = (of(l), of(l).range.len());
                let shape = match (of(site.weight).shape.len(), input) {
                    (2, true) => vec![1, n],
                    (2, false) => vec![n, 1],
                    _ => vec![1, n, 1, 1],
                };
                add(entry, shape, &store.values);
            }
        }
    }
    let is_saved = |e: &&Entry| e.name.rsplit_once('.').is_some_and(|(module, _)| saved.contains(module));
    store.params.iter().filter(is_saved).for_each(|e| add(e, e.shape.clone(), &store.values));
    store.buffers.iter().filter(is_saved).for_each(|e| add(e, e.shape.clone(), &store.buffer_values));
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let views = tensors.iter().map(|(name, shape, bytes)| {
        Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| internal(&e))?))
    });
    let metadata: HashMap<String, String> = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata));
    let config = serde_json::to_vec_pretty(&config).map_err(|e| internal(&e))?;
    Ok(Some([config, bytes.map_err(|e| internal(&e))?]))
}

/// The ends of names that were given, where they say the same to peft; else all names in full.
fn targets<'a>(plan: &'a Plan, layers: &[&'a str]) -> Vec<&'a str> {
    if plan.targets.iter().any(|t| t.0.starts_with("re:")) {
        return layers.to_vec();
    }
    let used = plan.targets.iter().filter(|t| layers.iter().any(|l| t.names(l)));
    used.map(|t| t.0.as_str()).collect()
}
