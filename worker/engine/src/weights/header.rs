//! The header of a `.safetensors` file, read without its tensors.

use std::{collections::BTreeMap, io::Read, path::Path};

use crate::{Error, Result};

/// Largest header of a `.safetensors` file, in bytes.
const MAX_HEADER: u64 = 100 << 20;

/// The key of a `.safetensors` header that is no tensor.
pub(super) const METADATA: &str = "__metadata__";

/// What a `.safetensors` file says of itself.
///
/// # Errors
/// A file that is not whole.
pub fn metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    let said = header(path)?.remove(METADATA).unwrap_or_default();
    let said: Option<BTreeMap<String, String>> = serde_json::from_value(said).map_err(|e| not_whole(path, &e))?;
    Ok(said.unwrap_or_default())
}

pub(super) fn not_whole(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::user(format!("`{}` is not a whole file of weights: {e}", path.display()), "check `model.weights`")
}

/// The header of a `.safetensors` file: tensors, and what it says of itself.
pub(super) fn header(path: &Path) -> Result<BTreeMap<String, serde_json::Value>> {
    let mut file = std::fs::File::open(path).map_err(|e| {
        Error::user(format!("weights `{}` cannot be read: {e}", path.display()), "check `model.weights`")
    })?;
    let mut len = [0; 8];
    file.read_exact(&mut len).map_err(|e| not_whole(path, &e))?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER {
        return Err(not_whole(path, &"its header is too long"));
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header).map_err(|e| not_whole(path, &e))?;
    serde_json::from_slice(&header).map_err(|e| not_whole(path, &e))
}
