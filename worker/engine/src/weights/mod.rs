//! Pretrained weights: read by name, checked by shape, refused with names.

mod contract;

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};

pub use contract::{Contract, Scale};

use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    nn::Store,
};

/// Largest file of weights that is read, in bytes.
const MAX_BYTES: u64 = 16 << 30;

/// Tensors of a `.safetensors` or `.pth` file, as f32.
///
/// # Errors
/// A file that is not there, not whole, or of another format.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let shown = path.display();
    let meta = std::fs::metadata(path)
        .map_err(|e| Error::user(format!("weights `{shown}` cannot be read: {e}"), "check `model.weights`"))?;
    if meta.len() > MAX_BYTES {
        return Err(Error::user(format!("weights `{shown}` are larger than 16 GiB"), ""));
    }
    let bad = |e: candle_core::Error| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default().to_owned();
        Error::user(format!("weights `{shown}` are not a whole file: {first}"), "give a `.safetensors` or `.pth` file")
    };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let tensors: Vec<(String, Tensor)> = match extension {
        "safetensors" => candle_core::safetensors::load(path, &Device::Cpu).map_err(bad)?.into_iter().collect(),
        "pth" | "pt" | "bin" => {
            let path = path.to_owned();
            // The reader indexes into what the file claims: a panic there is a bad file, not a bug of the run.
            let read = std::panic::catch_unwind(|| candle_core::pickle::read_all(path));
            read.unwrap_or_else(|_| Err(candle_core::Error::Msg("the archive contradicts itself".into())))
                .map_err(bad)?
        }
        _ => {
            return Err(Error::user(
                format!("weights `{shown}` are of no known format"),
                "give a `.safetensors` or `.pth` file",
            ));
        }
    };
    let float = |t: Tensor| t.to_dtype(DType::F32).and_then(|t| t.contiguous());
    tensors.into_iter().map(|(name, t)| Ok((name, float(t).map_err(bad)?))).collect()
}

/// Copies the tensors of `file` into `store`.
///
/// Names of the classifier are left alone unless `keep_head`; a classifier of another shape is refused then.
///
/// # Errors
/// Names the tensors that are missing or have another shape.
pub fn fill(
    store: &mut Store,
    file: &BTreeMap<String, Tensor>,
    keep_head: impl Fn(&str) -> bool,
    shown: &str,
) -> Result<()> {
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    let Store { params, buffers, values, buffer_values } = store;
    for (list, values) in [(&*params, values), (&*buffers, buffer_values)] {
        for entry in list.iter().filter(|e| keep_head(&e.name)) {
            match file.get(&entry.name) {
                None => missing.push(entry.name.clone()),
                Some(t) if t.dims() != entry.shape => {
                    wrong.push(format!("`{}` is {:?} instead of {:?}", entry.name, t.dims(), entry.shape));
                }
                Some(t) => values[entry.range.clone()].copy_from_slice(&crate::nn::host(t)?),
            }
        }
    }
    if missing.is_empty() && wrong.is_empty() {
        return Ok(());
    }
    let some = |list: &[String]| {
        let rest = list.len().saturating_sub(3);
        let head = list[..list.len().min(3)].join(", ");
        if rest > 0 { format!("{head} and {rest} more") } else { head }
    };
    let mut said = Vec::new();
    if !missing.is_empty() {
        said.push(format!("no {}", some(&missing)));
    }
    if !wrong.is_empty() {
        said.push(some(&wrong));
    }
    Err(Error::user(
        format!("weights `{shown}` are of another network: {}", said.join("; ")),
        "`model.backbone` must be the network that the weights were trained with",
    ))
}

/// Fills a new network from a file, all but the head unless it is kept.
///
/// # Errors
/// See [`read`] and [`fill`].
pub fn load(network: &mut Network, backbone: &Backbone, path: &Path, keep_head: bool) -> Result<()> {
    let file = read(path)?;
    let head = |name: &str| {
        name.starts_with("head.") || name.strip_prefix(backbone.classifier).is_some_and(|r| r.starts_with('.'))
    };
    fill(&mut network.initial, &file, |name| keep_head || !head(name), &path.display().to_string())
}

/// The contract inside a `.safetensors` file of ours, if there is one.
///
/// # Errors
/// A file that is not whole, or a contract that says something we cannot do.
pub fn embedded(path: &Path) -> Result<Option<Contract>> {
    if path.extension().is_none_or(|e| e != "safetensors") {
        return Ok(None);
    }
    let Some(text) = metadata(path)?.remove("tl") else { return Ok(None) };
    let about: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    about.get("contract").map(|c| Contract::parse(&c.to_string(), &path.display().to_string())).transpose()
}

/// Largest header of a `.safetensors` file, in bytes.
const MAX_HEADER: u64 = 100 << 20;

/// What a `.safetensors` file says of itself.
///
/// # Errors
/// A file that is not whole.
pub fn metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    use std::io::Read;
    let shown = path.display();
    let bad = |e: &dyn std::fmt::Display| {
        Error::user(format!("`{shown}` is not a whole file of weights: {e}"), "check `model.weights`")
    };
    let mut file = std::fs::File::open(path).map_err(|e| bad(&e))?;
    let mut len = [0; 8];
    file.read_exact(&mut len).map_err(|e| bad(&e))?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER {
        return Err(bad(&"its header is too long"));
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header).map_err(|e| bad(&e))?;
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: BTreeMap<String, String>,
    }
    serde_json::from_slice::<Header>(&header).map(|h| h.metadata).map_err(|e| bad(&e))
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::{HeadSection, ModelSection};

    use super::*;
    use crate::train::net::Net;

    fn model(backbone: &str, weights: Option<&Path>) -> ModelSection {
        ModelSection {
            backbone: backbone.into(),
            weights: weights.map(|p| p.display().to_string()),
            preprocess: None,
            padding: None,
            input: None,
            head: HeadSection::default(),
        }
    }

    fn build(model: &ModelSection) -> Result<Net> {
        Net::build(model, 2, false, 1, &BTreeMap::new())
    }

    /// The tensors of a network as a bare file, without a contract.
    fn bare(net: &Net, path: &Path) {
        let store = &net.network.initial;
        let params = store.params.iter().map(|e| (e, &store.values[e.range.clone()]));
        let buffers = store.buffers.iter().map(|e| (e, &store.buffer_values[e.range.clone()]));
        let tensor =
            |(e, v): (&crate::nn::Entry, &[f32])| (e.name.clone(), crate::nn::tensor(v.to_vec(), &e.shape).unwrap());
        let tensors = params.chain(buffers).map(tensor).collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    #[test]
    fn weights_of_another_network_are_refused_by_the_names_of_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let mut other = model("resnet20", Some(&path));
        other.preprocess = Some("unit".into());
        let error = build(&other).err().unwrap().to_string();
        assert!(error.contains("are of another network: no conv1.weight"), "{error}");
    }

    #[test]
    fn a_contract_must_be_there_and_be_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let mut job = model("small_cnn", Some(&path));
        assert!(build(&job).err().unwrap().to_string().contains("without a preprocessing contract"));
        job.preprocess = Some("torch".into());
        assert_eq!(build(&job).unwrap().contract.scale, Scale::Unit);
        let said = serde_json::to_string(&Contract::named("tf", 32, None).unwrap()).unwrap();
        std::fs::write(dir.path().join("preprocess.json"), said).unwrap();
        assert!(build(&job).err().unwrap().to_string().contains("ask for different preprocessing"));
        job.preprocess = None;
        assert_eq!(build(&job).unwrap().contract.scale, Scale::Tf);
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(read(&path).is_err(), "{len} bytes");
        }
        let zip = dir.path().join("w.pth");
        std::fs::write(&zip, &bytes).unwrap();
        assert!(read(&zip).is_err());
    }
}
