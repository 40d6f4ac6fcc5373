//! HDF5 files as Keras writes them: tensors by layer and variable. Reading is the `hdf5-pure` crate's, which is Rust alone.
//!
//! Three layouts are known: a model or weights of Keras 1 to 3 in the old format (`LAYER/…/VARIABLE:0`, below
//! `model_weights` if the model is there too), and `.weights.h5` of Keras 3 (`…/CLASS_N/vars/I`, where the layer's name is
//! an attribute).

use std::path::Path;

use candle_core::{Device, Tensor};
use hdf5_pure::{AttrValue, DType, Dataset, File, Group};

/// Groups inside each other that are followed.
const DEPTH: usize = 12;
/// Tensors of a file that are read.
const MOST: usize = 100_000;

/// How much smaller than its numbers a compressed file may be.
const PACKED: u64 = 8;

/// A tensor of a layer.
pub struct Variable {
    /// The layer's name: that of the innermost group, or of the outermost.
    pub layers: [String; 2],
    /// `kernel`, `depthwise_kernel`, `gamma` and so on.
    pub name: String,
    /// As Keras lays it out.
    pub value: Tensor,
}

/// Every tensor of a file.
///
/// # Errors
/// A file that is not whole or not Keras'; the text completes "failed to read".
pub fn read(path: &Path, size: u64) -> Result<Vec<Variable>, String> {
    let bad = |e: hdf5_pure::Error| e.to_string();
    let file = File::open(path).map_err(bad)?;
    let root = file.root();
    let mut out = Vec::new();
    let old = root.groups().map_err(bad)?.iter().any(|g| g == "model_weights");
    let start = if old { root.group("model_weights").map_err(bad)? } else { root };
    let mut reader = Reader { left: size.saturating_mul(PACKED), out: &mut out };
    reader.group(&start, &mut Vec::new())?;
    Ok(out)
}

struct Reader<'a> {
    /// Bytes that tensors may still take, whatever the file claims.
    left: u64,
    out: &'a mut Vec<Variable>,
}

impl Reader<'_> {
    fn group(&mut self, group: &Group, at: &mut Vec<String>) -> Result<(), String> {
        let bad = |e: hdf5_pure::Error| e.to_string();
        if at.len() > DEPTH {
            return Err("its groups never end".into());
        }
        for name in group.datasets().map_err(bad)? {
            let named = || layer(group);
            let Some((layers, variable)) = place(at, &name, named) else { continue };
            let set = group.dataset(&name).map_err(bad)?;
            if let Some(value) = self.tensor(&set)? {
                self.out.push(Variable { layers, name: variable, value });
            }
            if self.out.len() > MOST {
                return Err("it holds too many tensors".into());
            }
        }
        for name in group.groups().map_err(bad)? {
            // What an optimizer keeps has names of the same form.
            if at.is_empty() && (name == "optimizer" || name == "optimizer_weights") {
                continue;
            }
            let inner = group.group(&name).map_err(bad)?;
            at.push(name);
            self.group(&inner, at)?;
            at.pop();
        }
        Ok(())
    }

    /// A tensor of 32-bit numbers; nothing for any other, which are counters and seeds.
    fn tensor(&mut self, set: &Dataset) -> Result<Option<Tensor>, String> {
        let bad = |e: hdf5_pure::Error| e.to_string();
        if set.dtype().map_err(bad)? != DType::F32 {
            return Ok(None);
        }
        let shape = set.shape().map_err(bad)?;
        let bytes = shape.iter().try_fold(4u64, |n, d| n.checked_mul(*d));
        let rest = bytes.and_then(|bytes| self.left.checked_sub(bytes));
        self.left = rest.ok_or("it claims more numbers than its bytes could hold")?;
        let shape: Vec<usize> = shape.into_iter().map(|d| d as usize).collect();
        let values = set.read_f32().map_err(bad)?;
        Tensor::from_vec(values, shape, &Device::Cpu).map(Some).map_err(|e| e.to_string())
    }
}

/// The layer's name that Keras 3 writes beside numbered variables.
fn layer(group: &Group) -> Option<String> {
    match group.attrs().ok()?.remove("name")? {
        AttrValue::String(name) | AttrValue::VarLenString(name) | AttrValue::VarLenAsciiString(name) => Some(name),
        _ => None,
    }
}

/// Layer and variable of the data set `name` in the groups `at`.
fn place(at: &[String], name: &str, named: impl FnOnce() -> Option<String>) -> Option<([String; 2], String)> {
    if let [.., class, vars] = at
        && vars == "vars"
    {
        let index: usize = name.parse().ok()?;
        let class = class.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_');
        let layer = named()?;
        return Some(([layer.clone(), layer], (*variables(class).get(index)?).to_owned()));
    }
    // `:0` is TensorFlow's. A nested model puts its own name in front of the layer's; where a layer was made twice in one
    // session, the inner name has a number that the outer one has not.
    let variable = name.split(':').next()?.to_owned();
    Some(([at.last()?.clone(), at.first()?.clone()], variable))
}

/// Variables of a class of layers, in the order in which Keras numbers them.
fn variables(class: &str) -> &'static [&'static str] {
    match class {
        "batch_normalization" => &["gamma", "beta", "moving_mean", "moving_variance"],
        "normalization" => &["mean", "variance"],
        "separable_conv2d" => &["depthwise_kernel", "pointwise_kernel", "bias"],
        "conv2d" | "depthwise_conv2d" | "dense" => &["kernel", "bias"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_says_layer_and_variable() {
        let at = |path: &str, layer: Option<&str>| {
            let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
            let name = parts.pop().unwrap();
            place(&parts, &name, || layer.map(str::to_owned))
                .map(|(layers, variable)| format!("{}/{variable}", layers[0]))
        };
        assert_eq!(at("Conv1/Conv1/kernel:0", None).unwrap(), "Conv1/kernel");
        assert_eq!(at("mobilenetv2/Conv1/kernel", None).unwrap(), "Conv1/kernel");
        assert_eq!(at("layers/batch_normalization_10/vars/3", Some("bn")).unwrap(), "bn/moving_variance");
        assert_eq!(at("layers/conv2d/vars/1", Some("c")).unwrap(), "c/bias");
        assert_eq!(at("layers/depthwise_conv2d_3/vars/0", Some("d")).unwrap(), "d/kernel");
        assert_eq!(at("layers/separable_conv2d_31/vars/1", Some("s")).unwrap(), "s/pointwise_kernel");
        assert_eq!(at("layers/functional/layers/dense/vars/0", Some("p")).unwrap(), "p/kernel");
        assert_eq!(at("layers/dense/vars/0", None), None, "numbers alone say nothing");
        assert_eq!(at("layers/dropout/seed_generator/vars/0", Some("x")), None);
    }
}
