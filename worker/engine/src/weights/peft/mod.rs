//! Adapters in peft's files: `adapter_config.json` and `adapter_model.safetensors` in a folder, read and written.

mod by_layer;
mod config;
mod names;
mod pattern;
mod whole;
mod write;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

use candle_core::Tensor;

use self::{
    config::{Config, Refused},
    names::{WRAPPER, is_head, own_name, place},
    whole::Named,
};
pub use self::{
    names::{has_their_head, module},
    write::{files, hides},
};
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    collective::to_bytes,
    nn::{Entry, Plan, Store, host},
};

/// The names of the two files.
pub const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// What peft wrote in place of the second one before there were safetensors.
const PICKLED: &str = "adapter_model.bin";

/// Largest `adapter_config.json` or `labels.txt`, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The ends of the names of parts; what else is in a file are modules that were trained as they are.
const PARTS: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".ia3_l"];

/// How many batches a batch-norm has seen, which nothing depends on.
const COUNTER: &str = ".num_batches_tracked";

/// An adapter that was read.
pub struct Folder {
    /// What it puts where.
    pub plan: Plan,
    /// Digest of its tensors.
    pub digest: String,
    /// Digest of the file that they are in, which is what weights remembered first.
    pub file: String,
    /// Its path.
    pub shown: String,
    /// By the network's own names.
    tensors: BTreeMap<String, Tensor>,
    head: bool,
    labels: Option<Vec<String>>,
    named: Named,
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
        if size > MAX_TEXT {
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
        let file = blake3::hash(&bytes).to_hex().to_string();
        let (mut named, mut written) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in super::of_bytes(&bytes, &tensors)? {
            let inner = name.strip_prefix(WRAPPER).ok_or_else(|| plain(format!("`{name}` is no name of peft's")))?;
            if inner.ends_with(COUNTER) {
                continue;
            }
            let own = own_name(backbone, inner);
            if let Some(other) = written.insert(own.clone(), inner.to_owned()) {
                return Err(plain(format!("`{other}` and `{inner}` are both `{own}`")));
            }
            named.insert(own, tensor);
        }
        drop(bytes);
        let plan = config.plan(&named, &written).map_err(bad)?;
        let head = named.keys().any(|name| is_head(backbone, name));
        let labels = labels(folder).map_err(plain)?;
        let (digest, all) = (digest(&named)?, Named::of(&config, backbone, &written));
        Ok(Self { plan, digest, file, shown, tensors: named, head, labels, named: all })
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
        if named.len() < self.tensors.len() {
            return Err(Error::user(
                format!("two tensors of the adapter `{}` have the same place in the network", self.shown),
                "`model.backbone` must be the network that the adapter was trained on",
            ));
        }
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
        self.has_all_it_names(&named, network, wanted)
    }
}

/// What [`Folder::digest`] will say of a file of tensors that [`files`] gave.
///
/// # Errors
/// A file that is not whole.
pub fn digest_of(bytes: &[u8], backbone: &Backbone) -> Result<String> {
    let all = super::of_bytes(bytes, Path::new(FILES[1]))?.into_iter().filter(|(name, _)| !name.ends_with(COUNTER));
    let own = |name: &str| own_name(backbone, name.strip_prefix(WRAPPER).unwrap_or(name));
    digest(&all.map(|(name, tensor)| (own(&name), tensor)).collect())
}

/// Digest of the names, shapes and numbers of tensors, in whatever file they are and of whatever type there.
fn digest(tensors: &BTreeMap<String, Tensor>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in tensors {
        let dims: Vec<String> = tensor.dims().iter().map(usize::to_string).collect();
        hasher.update(format!("{name} [{}]\n", dims.join(",")).as_bytes());
        hasher.update(&to_bytes(&host(tensor)?));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The classes that a head is for, where they are said.
fn labels(folder: &Path) -> std::result::Result<Option<Vec<String>>, String> {
    let bad = |e: std::io::Error| format!("labels.txt: {e}");
    let file = match File::open(folder.join("labels.txt")) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(bad)?,
    };
    let mut text = String::new();
    file.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(bad)?;
    if text.len() as u64 > MAX_TEXT {
        return Err("labels.txt is too large".into());
    }
    Ok(Some(text.lines().map(str::to_owned).collect()))
}
