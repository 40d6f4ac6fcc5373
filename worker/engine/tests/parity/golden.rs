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
    /// Of kernels: see `rule.py`.
    #[serde(default)]
    pub gain: f64,
    /// Layers that a rectifier follows: see `rule.py`.
    #[serde(default)]
    pub shifts: Vec<String>,
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// Of the step.
    pub adamw: AdamW,
    /// PyTorch's own errors in float32.
    pub float32: Own,
    /// Of each input, batch-norms by their running statistics.
    pub eval: Vec<Outputs>,
    /// Of each input, batch-norms by the statistics of the batch; none of a network without any.
    #[serde(default)]
    pub train: Vec<Outputs>,
    /// Losses of several steps, and PyTorch's errors in each.
    pub trajectory: Option<Trajectory>,
    /// Three figures of each parameter's gradient for each input and mode, then of what one step adds to it.
    pub tensors: BTreeMap<String, Vec<f64>>,
    /// Three figures of each running statistic after the step; none where the reference has a rule of its own.
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

/// Settings of the golden step.
#[derive(Deserialize)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Of what decays.
    pub weight_decay: f64,
    /// Large, so that the step is smooth.
    pub eps: f64,
}

/// PyTorch's own errors: for each input of the logits, of the loss, and of gradients over tensors the median and the
/// largest; the last two of the step and of the running statistics after it.
#[derive(Deserialize)]
pub struct Own {
    pub eval: Vec<[f64; 4]>,
    #[serde(default)]
    pub train: Vec<[f64; 4]>,
    pub step: [f64; 2],
    pub statistics: Option<[f64; 2]>,
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
        // What is heard is no network: see `audio.rs`.
        .filter(|path| !path.ends_with("audio.json"))
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

/// The part of what a tensor of its size has on average below which a tensor is compared with that average: gradients
/// that are zero but for rounding have no digits to compare.
pub const FLOOR: f64 = 1e-3;

/// The same for what a step adds: beside a large value it has fewer digits.
pub const STEP_FLOOR: f64 = 0.02;

/// Of each tensor its name and its error, relative to its norm; by error.
pub fn errors<'a>(found: &'a Figures, reference: &BTreeMap<String, [f64; 3]>, floor: f64) -> Vec<(&'a str, f64)> {
    assert!(found.keys().eq(reference.keys()), "other tensors: {:?}", difference(found, reference));
    let total = reference.values().map(|f| f[0] * f[0]).sum::<f64>().sqrt();
    let count: usize = found.values().map(|f| f.1).sum();
    let mut each = Vec::new();
    for (want, (name, (got, n))) in reference.values().zip(found) {
        let share = total * (*n as f64 / count as f64).sqrt();
        let scale = if want[0] > floor * share { want[0] } else { share };
        let away = want.iter().zip(got).map(|(a, b)| (a - b).abs() / scale);
        // A figure that is not a number is no small error.
        let largest = away.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
        each.push((name.as_str(), largest));
    }
    each.sort_by(|a, b| a.1.total_cmp(&b.1));
    each
}

fn difference(found: &Figures, reference: &BTreeMap<String, [f64; 3]>) -> Vec<String> {
    let only_found = found.keys().filter(|k| !reference.contains_key(*k));
    only_found.chain(reference.keys().filter(|k| !found.contains_key(*k))).take(6).cloned().collect()
}
