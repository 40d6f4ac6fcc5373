//! Weights that are a folder: the usual names in it, and Hugging Face's lists of the files that a model is spread over.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use serde::Deserialize;

use super::{
    file::{MAX_BYTES, size},
    format::Format,
};
use crate::{Error, Result};

/// What weights are called in a folder of ours, or of anyone who keeps the usual names: the first that is there is taken.
const NAMES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Largest list, in bytes.
const MOST_LISTED: u64 = 64 << 20;

/// The file of weights in a folder.
///
/// # Errors
/// A folder that has none under a usual name.
pub fn of_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(found) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(found);
    }
    // What is there may be it, and whoever wrote the job knows.
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let known = |path: &PathBuf| path.is_file() && Format::of(path).is_some_and(|format| format != Format::Shards);
    let other = files.filter(known).min();
    Err(Error::user(
        format!("the folder `{}` has no weights under a usual name, such as `{}`", folder.display(), NAMES[0]),
        match other {
            Some(other) => format!("name the file in `model.weights`: `{}`", other.display()),
            None => "check `model.weights`".into(),
        },
    ))
}

/// A list as it lies beside the files.
#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

fn index(path: &Path) -> Result<Index> {
    let shown = path.display();
    let bad =
        |why: String| Error::user(format!("weights `{shown}` are no list of files: {why}"), "check `model.weights`");
    if size(path)? > MOST_LISTED {
        return Err(bad("it is too large".into()));
    }
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    // They lie beside it, and are none of their own kind.
    let plain = |file: &str| Path::new(file).file_name().is_some_and(|name| name == file) && !file.ends_with(".json");
    if let Some(odd) = index.weight_map.values().find(|file| !plain(file)) {
        return Err(bad(format!("it names `{odd}`")));
    }
    Ok(index)
}

/// The names of the tensors of a list.
///
/// # Errors
/// A list that is none.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    Ok(index(path)?.weight_map.into_keys().collect())
}

/// The tensors of all files of a list.
///
/// # Errors
/// A list that is none; files that are not there, or too large; see [`super::read`].
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let index = index(path)?;
    let files: BTreeSet<PathBuf> = index.weight_map.values().map(|file| path.with_file_name(file)).collect();
    let sizes = files.iter().map(|file| size(file)).collect::<Result<Vec<u64>>>()?;
    if sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size)) > MAX_BYTES {
        return Err(Error::user(format!("weights `{}` are larger than 16 GiB", path.display()), ""));
    }
    let mut tensors = BTreeMap::new();
    for file in &files {
        tensors.extend(super::read(file)?);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::nn;

    fn save(path: &Path, name: &str, values: &[f32]) {
        let tensor = nn::tensor(values.to_vec(), &[values.len()]).unwrap();
        candle_core::safetensors::save(&HashMap::from([(name, tensor)]), path).unwrap();
    }

    #[test]
    fn a_folder_has_one_file_or_a_list_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let error = of_folder(folder).unwrap_err().to_string();
        assert!(error.contains("has no weights under a usual name"), "{error}");
        save(&folder.join("net.safetensors"), "a", &[0.0]);
        let Err(Error::User { hint, .. }) = of_folder(folder) else { panic!("no error") };
        assert!(hint.contains("net.safetensors"), "{hint}");

        for (name, from, values) in [("a", "1", [1.0, 2.0]), ("b", "2", [3.0, 4.0])] {
            save(&folder.join(format!("model-0000{from}-of-00002.safetensors")), name, &values);
        }
        let list = |a: &str, b: &str| {
            let text = serde_json::json!({ "metadata": { "total_size": 16 }, "weight_map": { "a": a, "b": b } });
            std::fs::write(folder.join(NAMES[1]), text.to_string()).unwrap();
        };
        list("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        let path = of_folder(folder).unwrap();
        assert_eq!(names(&path).unwrap(), ["a", "b"]);
        let tensors = super::super::read(&path).unwrap();
        let values = |name: &str| nn::host(&tensors[name]).unwrap().to_vec();
        assert_eq!((values("a"), values("b")), (vec![1.0, 2.0], vec![3.0, 4.0]));

        for (b, says) in [
            ("model-00003-of-00002.safetensors", "model-00003-of-00002.safetensors` cannot be read"),
            ("../net.safetensors", "it names `../net.safetensors`"),
            (NAMES[1], "it names `model.safetensors.index.json`"),
        ] {
            list("model-00001-of-00002.safetensors", b);
            let error = super::super::read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // One file wins over a list, and a list over PyTorch's own file.
        std::fs::write(folder.join("pytorch_model.bin"), "").unwrap();
        assert_eq!(of_folder(folder).unwrap(), path);
        std::fs::rename(folder.join("net.safetensors"), folder.join("model.safetensors")).unwrap();
        assert_eq!(of_folder(folder).unwrap(), folder.join("model.safetensors"));
    }

    #[test]
    fn a_folder_may_have_pytorchs_own_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        assert_eq!(of_folder(dir.path()).unwrap(), dir.path().join("pytorch_model.bin"));
    }
}
