//! Tensors by name, from a file of any format that PyTorch's world has.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Tensor};

use super::{
    format::{Format, foreign},
    header::{METADATA, header},
    plain, prefix, pth, shards,
};
use crate::{Error, Result};

/// Largest file of weights that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 16 << 30;

/// Bytes of a file of weights.
pub(super) fn size(path: &Path) -> Result<u64> {
    let shown = path.display();
    let meta = std::fs::metadata(path)
        .map_err(|e| Error::user(format!("weights `{shown}` cannot be read: {e}"), "check `model.weights`"))?;
    if meta.len() > MAX_BYTES {
        return Err(Error::user(format!("weights `{shown}` are larger than 16 GiB"), ""));
    }
    Ok(meta.len())
}

/// Tensors of a file of safetensors or of PyTorch's, or of those that a `.index.json` lists, as f32.
///
/// # Errors
/// A file that is not there, not whole, of another format, or without tensors.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let size = size(path)?;
    let tensors: Vec<(String, Tensor)> = match Format::of(path) {
        Some(Format::Safetensors) => {
            return of_bytes(&std::fs::read(path).map_err(|e| damaged(path, &e.into()))?, path);
        }
        Some(format @ (Format::Archive | Format::Pickle)) => pth::read(path, size, format)?,
        Some(Format::Shards) => return shards::read(path),
        Some(Format::Hdf5) | None => {
            let usual = ("are of no known format", "give a `.safetensors`, `.pth` or `.h5` file");
            let (what, hint) = foreign(path).unwrap_or(usual);
            return Err(Error::user(format!("weights `{}` {what}", path.display()), hint));
        }
    };
    floats(tensors, path)
}

/// What is wrong with a file that its reader refuses.
fn damaged(path: &Path, e: &candle_core::Error) -> Error {
    let text = e.to_string();
    let (shown, first) = (path.display(), text.lines().next().unwrap_or_default());
    Error::user(format!("weights `{shown}` are not a whole file: {first}"), "give a `.safetensors` or `.pth` file")
}

/// Tensors of a `.safetensors` file that was read, as [`read`] gives them.
///
/// # Errors
/// A file that is not whole, or without tensors.
pub(super) fn of_bytes(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, Tensor>> {
    floats(plain::tensors(bytes).map_err(|e| damaged(path, &e))?, path)
}

/// As f32, under the names of the model itself.
fn floats(tensors: Vec<(String, Tensor)>, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let shown = path.display();
    if tensors.is_empty() {
        return Err(Error::user(
            format!("weights `{shown}` hold no tensors"),
            "give a file of tensors by name, such as `torch.save(model.state_dict(), path)` writes",
        ));
    }
    let (names, tensors): (Vec<String>, Vec<Tensor>) = tensors.into_iter().unzip();
    let float = |t: Tensor| t.to_dtype(DType::F32).and_then(|t| t.contiguous()).map_err(|e| damaged(path, &e));
    prefix::unwrapped(&names).into_iter().zip(tensors).map(|(name, t)| Ok((name, float(t)?))).collect()
}

/// The names of the tensors of a file.
///
/// # Errors
/// See [`read`].
pub fn names(path: &Path) -> Result<Vec<String>> {
    let names: Vec<String> = match Format::of(path) {
        Some(Format::Safetensors) => header(path)?.into_keys().filter(|name| name != METADATA).collect(),
        Some(Format::Shards) => shards::names(path)?,
        _ => return Ok(read(path)?.into_keys().collect()),
    };
    Ok(prefix::unwrapped(&names))
}
