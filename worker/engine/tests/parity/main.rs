//! Every backbone against PyTorch, torchvision, timm and Keras, by figures that a script has stored: no Python runs here.
//!
//! `tests/parity/goldens.py` says what the figures are. The engine's error against float64 may be at most twice that of
//! PyTorch in float32, which is stored beside them.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod bf16;
mod golden;
mod keras;
mod network;
mod rule;
mod tuning;

use golden::{Golden, Trajectory};
use network::{Mode, Net};
use tl_engine::backbone::find;

/// How much larger than PyTorch's an error may be.
const FACTOR: f64 = 2.0;

/// How much more is granted to running statistics.
const STATISTICS: f64 = 3.0;

/// A rounding of float32 is no error, even where PyTorch was luckier.
const ROUNDING: f64 = 1.0 / (1u64 << 22) as f64;

/// Golden files that there must be at least.
const FILES: usize = 21;

/// One comparison: what, the error found, and what is allowed.
struct Line {
    what: String,
    found: f64,
    allowed: f64,
}

fn lines(golden: &Golden, group: &str, parts: &[&str], found: &[f64]) -> Vec<Line> {
    let own = &golden.float32[group];
    assert_eq!(own.len(), found.len(), "{group}");
    let line = |((part, found), own_error): ((&&str, &f64), &f64)| {
        let measure = match (group, *part) {
            // A few numbers, which either library may hit by chance: the loss moves as the logits do, and half a million
            // roundings in fifty layers come to more than one.
            (_, "logits" | "loss") => own_error.max(own[0]).max(4.0 * ROUNDING),
            // Sums travel around the running mean, so that any reduction can add them: where a network starts with means
            // far from its data's, as these fills do, their squares hide some of the variance for the first steps.
            ("statistics", _) => STATISTICS * own_error.max(ROUNDING),
            _ => own_error.max(ROUNDING),
        };
        Line { what: format!("{group} {part}"), found: *found, allowed: FACTOR * measure }
    };
    parts.iter().zip(found).zip(own).map(line).collect()
}

fn compare(golden: &Golden) -> Vec<Line> {
    let mut net = Net::build(golden);
    let mut out = Vec::new();
    let modes: &[(Mode, _)] = &[(Mode::Eval, Some(&golden.eval)), (Mode::Train, golden.train.as_ref())];
    let mut last = None;
    for (i, (mode, want)) in modes.iter().filter_map(|(m, w)| Some((m, (*w)?))).enumerate() {
        let got = net.pass(*mode);
        let scale = want.logits.iter().fold(0.0f64, |s, v| s.max(v.abs()));
        assert_eq!(want.logits.len(), got.logits.len());
        let away = want.logits.iter().zip(&got.logits).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        let mut found = vec![away / scale, (got.loss - want.loss).abs() / want.loss];
        found.extend(golden::errors(&net.gradients(&got), &column(golden, i)));
        let group = if *mode == Mode::Eval { "eval" } else { "train" };
        out.extend(lines(golden, group, &["logits", "loss", "gradients, largest", "gradients, rms"], &found));
        last = Some((i, got));
    }
    let (i, got) = last.unwrap();
    net.update(&got, network::constant());
    let found = golden::errors(&net.parameters(), &column(golden, i + 1));
    out.extend(lines(golden, "step", &["parameters, largest", "parameters, rms"], &found));
    if !golden.statistics.is_empty() {
        let found = golden::errors(&net.statistics(), &golden.statistics);
        out.extend(lines(golden, "statistics", &["largest", "rms"], &found));
    }
    out
}

/// The figures of one pass.
fn column(golden: &Golden, i: usize) -> std::collections::BTreeMap<String, [f64; 3]> {
    golden.tensors.iter().map(|(name, f)| (name.clone(), f[3 * i..3 * i + 3].try_into().unwrap())).collect()
}

#[test]
fn every_network_is_as_near_to_float64_as_pytorch_in_float32() {
    let goldens = golden::all();
    assert!(goldens.len() >= FILES, "{} golden files", goldens.len());
    let mut wrong = Vec::new();
    for (name, golden) in &goldens {
        assert!(find(&golden.backbone).is_some(), "no backbone `{}`", golden.backbone);
        let start = std::time::Instant::now();
        for line in compare(golden) {
            let Line { what, found, allowed } = line;
            let text = format!("{name}: {what}: error {found:.2e}, PyTorch's x {FACTOR} {allowed:.2e}");
            println!("{text}, ratio {:.2}", FACTOR * found / allowed);
            // A figure that is not a number is no small error.
            if found.is_nan() || found > allowed {
                wrong.push(text);
            }
        }
        println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn losses_of_a_fine_tuning_are_pytorchs_step_by_step() {
    let mut followed = 0;
    for (name, mut golden) in golden::all() {
        let Some(Trajectory { losses, float32 }) = golden.trajectory.take() else { continue };
        // The trajectory runs on more than the single step.
        golden.shape[0] *= 2;
        let mut net = Net::build(&golden);
        // In which step rounding shows is chance in either library: the largest that PyTorch has shown is the measure.
        let own = losses.iter().zip(&float32).fold(0.0f64, |own, (want, error)| own.max(*error).max(ROUNDING * want));
        for (k, (want, error)) in losses.iter().zip(&float32).enumerate() {
            let got = net.pass(Mode::Train);
            net.update(&got, network::cosine(k, losses.len()));
            let found = (got.loss - want).abs();
            println!("{name}: step {k}: loss {:.6}, error {found:.2e}, PyTorch's {error:.2e}", got.loss);
            assert!(
                found <= FACTOR * own,
                "{name}: step {k}: {} instead of {want}, allowed {:.2e}",
                got.loss,
                FACTOR * own
            );
        }
        assert!(losses.len() >= 10 && losses[losses.len() - 1] < 0.7 * losses[0], "{name}: nothing was learnt");
        followed += 1;
    }
    assert!(followed > 0);
}
