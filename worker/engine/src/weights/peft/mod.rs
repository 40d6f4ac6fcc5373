//! Adapters in peft's files: `adapter_config.json` and `adapter_model.safetensors` in a folder, read and written.

mod config;
mod names;
mod pattern;
mod write;

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use self::{
    config::{Config, Refused},
    names::{WRAPPER, is_head, own_name, place},
};
pub use self::{
    names::{has_their_head, module},
    write::{files, hides},
};
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    nn::{Entry, Plan, Store, host},
};

/// The names of the two files.
pub const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// What peft wrote in place of the second one before there were safetensors.
const PICKLED: &str = "adapter_model.bin";

/// Largest `adapter_config.json`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The ends of the names of parts; what else is in a file are modules that were trained as they are.
const PARTS: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".ia3_l"];

/// How many batches a batch-norm has seen, which nothing depends on.
const COUNTER: &str = ".num_batches_tracked";

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

impl Folder {
    /// Reads a folder for a backbone. Its plan names exactly the layers that its tensors name.
    ///
    /// # Errors
    /// Files that are not there or not whole, an adapter of a kind that we do not have, or half of one.
    pub fn read(folder: &Path, backbone: &Backbone) -> Result<Self> {
        let shown = folder.display().to_string();
        let bad = |(why, hint): Refused| {
            Error::user(
                format!("the adapter `{shown}` cannot be used: {why}"),
                hint.unwrap_or("`model.adapter` is a folder that peft has written for LoRA or IA3"),
            )
        };
        let plain = |why: String| bad((why, None));
        let [config, tensors] = FILES.map(|name| folder.join(name));
        let size = std::fs::metadata(&config).map_err(|e| plain(format!("{}: {e}", FILES[0])))?.len();
        if size > MAX_CONFIG {
            return Err(plain(format!("{} is too large", FILES[0])));
        }
        let text = std::fs::read_to_string(&config).map_err(|e| plain(format!("{}: {e}", FILES[0])))?;
        let config = Config::parse(&text).map_err(bad)?;
        if tensors.exists() {
            super::size(&tensors)?;
        } else if folder.join(PICKLED).exists() {
            let hint = "convert it in that folder:\n  import torch, safetensors.torch\n  \
                        safetensors.torch.save_file(torch.load(\"adapter_model.bin\"), \"adapter_model.safetensors\")";
            return Err(bad((format!("it has `{PICKLED}` and no `{}`", FILES[1]), Some(hint))));
        }
        let bytes = std::fs::read(&tensors).map_err(|e| plain(format!("{}: {e}", FILES[1])))?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let (mut named, mut written) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in super::read(&tensors)? {
            let inner = name.strip_prefix(WRAPPER).ok_or_else(|| plain(format!("`{name}` is no name of peft's")))?;
            if inner.ends_with(COUNTER) {
                continue;
            }
            let own = own_name(backbone, inner);
            written.insert(own.clone(), inner.to_owned());
            named.insert(own, tensor);
        }
        let plan = config.plan(&named, &written).map_err(bad)?;
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
    /// Tensors without a place, or of another shape; half a module or half a head; a kept head for other classes.
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
        let named: BTreeMap<String, &Tensor> = self.tensors.iter().map(|(name, t)| (own(name), t)).collect();
        let wanted = |name: &str| kept.is_some() || !is_head(backbone, name);
        self.is_whole(&named, &network.initial, backbone, wanted)?;
        let Store { params, buffers, values, buffer_values, .. } = &mut network.initial;
        for (name, tensor) in named.iter().filter(|(name, _)| wanted(name)) {
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

    /// Whether every module that it brings is whole, and the head if there is something of it.
    fn is_whole(
        &self,
        named: &BTreeMap<String, &Tensor>,
        network: &Store,
        backbone: &Backbone,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let saved = named.keys().filter(|name| !PARTS.iter().any(|end| name.ends_with(end)));
        let saved: BTreeMap<&str, &String> = saved.filter_map(|name| Some((module(name)?, name))).collect();
        let head = named.keys().find(|name| is_head(backbone, name));
        let missing = |entry: &&Entry| wanted(&entry.name) && !named.contains_key(&entry.name);
        for entry in network.params.iter().chain(&network.buffers).filter(missing) {
            let of_module = module(&entry.name).and_then(|m| saved.get(m).copied());
            let part = PARTS.iter().any(|end| entry.name.ends_with(end));
            let of_head = head.filter(|_| is_head(backbone, &entry.name));
            if let Some(has) = of_module.or(of_head).filter(|_| !part) {
                return Err(Error::user(
                    format!("the adapter `{}` is half there: it has `{has}`, and no `{}`", self.shown, entry.name),
                    "give the files as they were saved, and `model.head` the layers that they were saved with",
                ));
            }
        }
        Ok(())
    }
}
