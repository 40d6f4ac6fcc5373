//! The files that `tests/parity/goldens.py` has written, and the error of what was found against them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use tl_engine::backbone::Shape;

/// What the reference says of one network.
#[derive(Deserialize)]
pub struct Golden {
    /// Its name in the catalog.
    pub backbone: String,
    /// `symmetric` or `same`.
    pub padding: String,
    /// What batch-norms add to a variance.
    pub eps: f32,
    /// Of the input: samples, channels, height, width; or samples and the tokens of the longest.
    pub shape: Vec<usize>,
    /// Tokens of each text.
    #[serde(default)]
    pub lengths: Vec<usize>,
    /// Tokens that a network for text knows.
    #[serde(default)]
    pub words: usize,
    /// The size of a text encoder, where it is not the backbone's own.
    pub encoder: Option<Shape>,
    /// Outputs.
    pub classes: usize,
    /// PyTorch's own errors in float32, by group of figures.
    pub float32: BTreeMap<String, Vec<f64>>,
    /// Batch-norms by their running statistics.
    pub eval: Outputs,
    /// Batch-norms by the statistics of the batch; not of a network without any.
    pub train: Option<Outputs>,
    /// Losses of several steps, and PyTorch's errors in each.
    pub trajectory: Option<Trajectory>,
    /// Three figures of each parameter's gradient in each mode, then of the parameter after one step.
    pub tensors: BTreeMap<String, Vec<f64>>,
    /// Three figures of each running statistic after one step; none where the reference has a rule of its own.
    pub statistics: BTreeMap<String, [f64; 3]>,
}

/// What comes out of the network.
#[derive(Deserialize)]
pub struct Outputs {
    /// Row by row.
    pub logits: Vec<f64>,
    /// The mean cross-entropy.
    pub loss: f64,
}

/// Several steps on one batch.
#[derive(Deserialize)]
pub struct Trajectory {
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// Of each loss: PyTorch's absolute error in float32.
    pub float32: Vec<f64>,
}

/// Every golden file with its name.
pub fn all() -> Vec<(String, Golden)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, golden)
    };
    paths.into_iter().map(read).collect()
}

/// Three figures of a tensor, and its elements.
pub type Figures = BTreeMap<String, ([f64; 3], usize)>;

/// The part of a network's norm that a tensor is taken to have at least, shared out by elements: gradients that are zero
/// but for rounding have no digits to compare.
const FLOOR: f64 = 1e-3;

/// Largest and root mean square over tensors of their errors, each relative to the tensor's norm.
pub fn errors(found: &Figures, reference: &BTreeMap<String, [f64; 3]>) -> Vec<f64> {
    assert!(found.keys().eq(reference.keys()), "other tensors: {:?}", difference(found, reference));
    let total = reference.values().map(|f| f[0] * f[0]).sum::<f64>().sqrt();
    let count: usize = found.values().map(|f| f.1).sum();
    let error = |(want, (got, n)): (&[f64; 3], &([f64; 3], usize))| {
        let scale = want[0].max(FLOOR * total * (*n as f64 / count as f64).sqrt());
        let largest = want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        largest / scale
    };
    let each: Vec<f64> = reference.values().zip(found.values()).map(error).collect();
    let square: f64 = each.iter().map(|e| e * e).sum();
    vec![each.iter().copied().fold(0.0, f64::max), (square / each.len() as f64).sqrt()]
}

fn difference(found: &Figures, reference: &BTreeMap<String, [f64; 3]>) -> Vec<String> {
    let only_found = found.keys().filter(|k| !reference.contains_key(*k));
    only_found.chain(reference.keys().filter(|k| !found.contains_key(*k))).take(6).cloned().collect()
}
