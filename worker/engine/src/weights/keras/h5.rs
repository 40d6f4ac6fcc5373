//! HDF5 files as Keras writes them: tensors by layer and variable. Reading is the `hdf5-pure` crate's, which is Rust alone.
//!
//! Three layouts are known: a model or weights of Keras 1 to 3 in the old format (`LAYER/…/VARIABLE:0`, below
//! `model_weights` if the model is there too), and `.weights.h5` of Keras 3 (`…/CLASS_N/vars/I`, where the layer's name is
//! an attribute).

use std::path::Path;

use candle_core::{Device, Tensor};
use hdf5_pure::{AttrValue, DType, Dataset, Datatype, File, Group};

/// Groups inside each other that are followed.
const DEPTH: usize = 12;
/// Groups and data sets of a file that are looked at.
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

/// Why a file cannot be read.
#[derive(Debug)]
pub enum Bad {
    /// It is damaged, or claims what cannot be.
    NotWhole(String),
    /// A tensor of numbers that are not read.
    Precision {
        /// Where it is in the file.
        name: String,
        /// What is in it.
        bits: u32,
    },
}

impl<T: ToString> From<T> for Bad {
    fn from(why: T) -> Self {
        Self::NotWhole(why.to_string())
    }
}

/// Every tensor of a file.
///
/// # Errors
/// A file that is not whole or not Keras', or of numbers in another precision.
pub fn read(path: &Path, size: u64) -> Result<Vec<Variable>, Bad> {
    let file = File::open(path)?;
    let root = file.root();
    let mut out = Vec::new();
    let old = root.groups()?.iter().any(|g| g == "model_weights");
    let start = if old { root.group("model_weights")? } else { root };
    let mut reader = Reader { left: size.saturating_mul(PACKED), things: MOST, out: &mut out };
    reader.group(&start, &mut Vec::new())?;
    Ok(out)
}

struct Reader<'a> {
    /// Bytes that tensors may still take, whatever the file claims.
    left: u64,
    /// Groups and data sets that may still be looked at: a file may have groups without end that hold nothing.
    things: usize,
    out: &'a mut Vec<Variable>,
}

impl Reader<'_> {
    fn look(&mut self, things: usize) -> Result<(), Bad> {
        self.things = self.things.checked_sub(things).ok_or("it holds too many groups and tensors")?;
        Ok(())
    }

    fn group(&mut self, group: &Group, at: &mut Vec<String>) -> Result<(), Bad> {
        if at.len() > DEPTH {
            return Err("its groups never end".into());
        }
        let sets = group.datasets()?;
        self.look(sets.len())?;
        for name in sets {
            let named = || layer(group);
            let Some((layers, variable)) = place(at, &name, named) else { continue };
            let set = group.dataset(&name)?;
            if let Some(value) = self.tensor(&set, || format!("{}/{name}", at.join("/")))? {
                self.out.push(Variable { layers, name: variable, value });
            }
        }
        let groups = group.groups()?;
        self.look(groups.len())?;
        for name in groups {
            // What an optimizer keeps has names of the same form.
            if at.is_empty() && (name == "optimizer" || name == "optimizer_weights") {
                continue;
            }
            let inner = group.group(&name)?;
            at.push(name);
            self.group(&inner, at)?;
            at.pop();
        }
        Ok(())
    }

    /// A tensor of 32-bit numbers; nothing for integers, which are counters and seeds. Of numbers in another precision
    /// weights would be missing without a word, so that the file is refused by the name of one.
    fn tensor(&mut self, set: &Dataset, named: impl FnOnce() -> String) -> Result<Option<Tensor>, Bad> {
        if set.dtype()? != DType::F32 {
            return match set.datatype()? {
                Datatype::FloatingPoint { size, .. } => Err(Bad::Precision { name: named(), bits: size * 8 }),
                _ => Ok(None),
            };
        }
        let shape = set.shape()?;
        let bytes = shape.iter().try_fold(4u64, |n, d| n.checked_mul(*d));
        let rest = bytes.and_then(|bytes| self.left.checked_sub(bytes));
        self.left = rest.ok_or("it claims more numbers than its bytes could hold")?;
        let shape: Vec<usize> = shape.into_iter().map(|d| d as usize).collect();
        Ok(Some(Tensor::from_vec(set.read_f32()?, shape, &Device::Cpu)?))
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
    use hdf5_pure::{DatatypeByteOrder, FileBuilder, FloatingPointLayout};

    use super::*;

    /// A file with one layer, whose bias is of numbers of so many bits; 0 is a counter.
    fn file(bits: u32, empty: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.h5");
        let mut file = FileBuilder::new();
        let mut group = file.create_group("dense");
        group.create_dataset("kernel:0").with_f32_data(&[1.0, 2.0]);
        let bias = group.create_dataset("bias:0");
        match bits {
            0 => bias.with_i64_data(&[1, 2]),
            32 => bias.with_f32_data(&[1.0, 2.0]),
            64 => bias.with_f64_data(&[1.0, 2.0]),
            _ => {
                let layout = FloatingPointLayout {
                    bit_precision: 16,
                    exponent_location: 10,
                    exponent_size: 5,
                    mantissa_size: 10,
                    exponent_bias: 15,
                    ..FloatingPointLayout::IEEE754_BINARY32
                };
                let half = Datatype::FloatingPoint { size: 2, byte_order: DatatypeByteOrder::LittleEndian, layout };
                bias.with_raw_data(half, vec![0, 60, 0, 64], 2)
            }
        };
        file.add_group(group.finish());
        (0..empty).for_each(|i| {
            let group = file.create_group(&format!("empty{i}"));
            file.add_group(group.finish());
        });
        file.write(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn numbers_of_another_precision_are_refused_by_name_and_counters_left_out() {
        let read = |bits| {
            let (_dir, path) = file(bits, 0);
            super::read(&path, 1 << 20)
        };
        assert_eq!((read(32).unwrap().len(), read(0).unwrap().len()), (2, 1));
        for bits in [16, 64] {
            let refused = read(bits).err().unwrap();
            let Bad::Precision { name, bits: said } = refused else { panic!("{refused:?}") };
            assert_eq!((name.as_str(), said), ("dense/bias:0", bits));
        }
    }

    #[test]
    fn groups_count_though_they_hold_nothing() {
        let (_dir, path) = file(32, 4);
        let file = File::open(&path).unwrap();
        let look = |things| {
            let mut out = Vec::new();
            Reader { left: 1 << 20, things, out: &mut out }.group(&file.root(), &mut Vec::new())
        };
        // Five groups and two data sets.
        look(7).unwrap();
        let refused = look(6).unwrap_err();
        assert!(matches!(&refused, Bad::NotWhole(why) if why.contains("too many groups")), "{refused:?}");
    }

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
