//! Mixed precision against PyTorch's autocast, by the file that `tests/parity/bf16.py` has written: roundings fall where
//! they fall in either library, so what is compared is where gradients point, how long they are, and how far bf16 is
//! from float32.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::{
    golden,
    network::{Mode, Net},
    rule::Fill,
};

/// The smallest cosine of a network's gradient and PyTorch's.
const COSINE: f64 = 0.9999;
/// How far norms may be from PyTorch's, relative; that of a tensor is taken to be at least [`FLOOR`] of the network's.
const NORM: f64 = 0.01;
const FLOOR: f64 = 0.01;
/// How far from float32 the engine's bf16 may be, in PyTorch's: neither much worse, nor no bf16 at all.
const AWAY: [f64; 2] = [0.6, 1.5];
/// How far logits may be from PyTorch's, relative to the largest: two steps of bf16.
const LOGITS: f64 = 2.0 / 128.0;

#[derive(Deserialize)]
struct File {
    networks: BTreeMap<String, Reference>,
}

/// Of each parameter's gradient, in bf16 and in float32: its norm, then elements.
#[derive(Deserialize)]
struct Reference {
    logits: Vec<f64>,
    tensors: BTreeMap<String, [Vec<f64>; 2]>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

#[test]
fn gradients_in_bf16_are_those_of_autocast_and_as_far_from_float32() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/bf16/gradients.json");
    let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(file.networks.len() >= 5);
    let goldens: BTreeMap<_, _> = golden::all().into_iter().collect();
    let mut wrong = Vec::new();
    for (name, want) in &file.networks {
        let golden = &goldens[name];
        // Weights that all but cancel, as the golden files' have, would leave nothing but roundings of bf16.
        let mut net = Net::filled(golden, &Fill::LIFTED);
        net.use_bf16();
        let mode = if golden.train.is_empty() { Mode::Eval } else { Mode::Train };
        let got = net.pass(mode, "input", golden.shape[0]);
        let scale = want.logits.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let logits = got.logits.iter().zip(&want.logits).map(|(a, b)| (f64::from(*a) - b).abs() / scale);
        let logits = logits.fold(0.0, f64::max);

        let found = net.flat_gradients(&got);
        assert!(found.keys().eq(want.tensors.keys()), "{name}: other tensors");
        let length = |v: &[f64]| dot(v, v).sqrt();
        let total = length(&want.tensors.values().map(|[mixed, _]| mixed[0]).collect::<Vec<_>>());
        // Elements stand for all of their tensor.
        let (mut ours, mut mixed, mut full) = (Vec::new(), Vec::new(), Vec::new());
        let (mut norms, mut all) = (0.0f64, 0.0);
        for (tensor, [theirs, float32]) in &want.tensors {
            let flat = &found[tensor];
            let count = theirs.len() - 1;
            let weight = (flat.len() as f64 / count as f64).sqrt();
            ours.extend((0..count).map(|i| weight * f64::from(flat[i * flat.len() / count])));
            mixed.extend(theirs[1..].iter().map(|v| weight * v));
            full.extend(float32[1..].iter().map(|v| weight * v));
            let square: f64 = flat.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            norms = norms.max((square.sqrt() - theirs[0]).abs() / theirs[0].max(FLOOR * total));
            all += square;
        }
        let cosine = dot(&ours, &mixed) / (length(&ours) * length(&mixed));
        let whole = (all.sqrt() / total - 1.0).abs();
        let away = distance(&ours, &full) / distance(&mixed, &full);
        let text = format!(
            "{name}: 1 - cosine {:.1e}, norm {whole:.1e}, norms of tensors {norms:.1e}, {away:.2} times as far from \
             float32, logits {logits:.1e}",
            1.0 - cosine
        );
        println!("{text}");
        let right = cosine >= COSINE && whole <= NORM && norms <= NORM && logits <= LOGITS;
        if !(right && (AWAY[0]..AWAY[1]).contains(&away)) {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
