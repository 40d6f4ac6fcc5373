//! Every backbone against PyTorch, torchvision, timm and Keras, by figures that a script has stored: no Python runs here.
//!
//! `tests/parity/goldens.py` says what the figures are. The engine's error against float64 may be at most twice that of
//! PyTorch in float32 on the same input, which is stored beside them, and no tensor's gradient may be away by more than a
//! thousandth of its norm.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod audio;
mod bf16;
mod golden;
mod keras;
mod network;
mod rule;
mod tuning;

use golden::{FLOOR, Golden, STEP_FLOOR, Trajectory};
use network::{Mode, Net};
use tl_engine::backbone::find;

/// How much larger than PyTorch's an error may be.
const FACTOR: f64 = 2.0;

/// How much more is granted to running statistics.
const STATISTICS: f64 = 3.0;

/// A rounding of float32 is no error, even where PyTorch was luckier.
const ROUNDING: f64 = 1.0 / (1u64 << 22) as f64;

/// What no gradient of a tensor may be away, whatever PyTorch's error: the script takes no input for which twice that is
/// more.
const MOST: f64 = 1e-3;

/// Golden files that there must be at least, and inputs in each.
const FILES: usize = 25;
const INPUTS: usize = 3;

/// One comparison: what, the error found, and what is allowed.
struct Line {
    what: String,
    found: f64,
    allowed: f64,
}

impl Line {
    fn new(what: String, found: f64, own: f64) -> Self {
        Self { what, found, allowed: FACTOR * own }
    }

    /// Two lines for the errors of many tensors: the one in the middle, and the largest.
    fn of_tensors(what: &str, errors: &[(&str, f64)], own: [f64; 2]) -> [Self; 2] {
        let (middle, (name, largest)) = (errors.len() / 2, errors[errors.len() - 1]);
        // As numpy does.
        let median = (errors[middle].1 + errors[(errors.len() - 1) / 2].1) / 2.0;
        let own = own.map(|e| e.max(ROUNDING));
        let [middle, mut last] = [(median, "median"), (largest, name)].map(|(e, of)| (e, format!("{what}, {of}")));
        last.1.push_str(" (largest)");
        [Self::new(middle.1, middle.0, own[0]), Self::new(last.1, last.0, own[1].min(MOST / FACTOR))]
    }
}

fn compare(golden: &Golden) -> Vec<Line> {
    let mut net = Net::build(golden);
    let mut out = Vec::new();
    let mut columns = (0..).map(|i| column(golden, i));
    let mut first = None;
    let both = [(Mode::Eval, "eval", &golden.eval, &golden.float32.eval)];
    let modes: Vec<_> =
        both.into_iter().chain([(Mode::Train, "train", &golden.train, &golden.float32.train)]).collect();
    for (i, given) in golden.inputs.iter().enumerate() {
        for (mode, name, want, own) in modes.iter().filter(|m| !m.2.is_empty()) {
            let (got, want, what) = (net.pass(*mode, given, golden.shape[0]), &want[i], format!("{given} {name}"));
            let scale = want.logits.iter().fold(0.0f64, |s, v| s.max(v.abs()));
            assert_eq!(want.logits.len(), got.logits.len());
            let away = want.logits.iter().zip(&got.logits).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
            // A few numbers, which either library may hit by chance: the loss moves as the logits do.
            let luck = own.iter().fold(4.0 * ROUNDING, |luck, o| luck.max(o[0]));
            out.push(Line::new(format!("{what} logits"), away / scale, luck));
            out.push(Line::new(format!("{what} loss"), (got.loss - want.loss).abs() / want.loss, luck.max(own[i][1])));
            let (found, reference) = (net.gradients(&got), columns.next().unwrap());
            let errors = golden::errors(&found, &reference, FLOOR);
            out.extend(Line::of_tensors(&format!("{what} gradients"), &errors, [own[i][2], own[i][3]]));
            if i == 0 {
                first = Some(got);
            }
        }
    }
    let (found, reference) = (net.step(&first.unwrap()), columns.next().unwrap());
    let errors = golden::errors(&found, &reference, STEP_FLOOR);
    out.extend(Line::of_tensors("step", &errors, golden.float32.step));
    if let Some(own) = golden.float32.statistics {
        let found = net.statistics();
        // Sums travel around the running mean, so that any reduction can add them: where a network starts with means
        // far from its data's, as these fills do, their squares hide some of the variance for the first steps.
        let errors = golden::errors(&found, &golden.statistics, FLOOR);
        let own = own.map(|e| STATISTICS * e.max(ROUNDING));
        out.extend(Line::of_tensors("statistics", &errors, own));
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
    let mut wrong = Vec::new();
    for (name, golden) in &goldens {
        assert!(find(&golden.backbone).is_some(), "no backbone `{}`", golden.backbone);
        assert_eq!(golden.inputs.len(), INPUTS, "{name}");
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
    assert!(goldens.len() >= FILES, "{} golden files", goldens.len());
}

#[test]
fn losses_of_a_fine_tuning_are_pytorchs_step_by_step() {
    let mut followed = 0;
    for (name, mut golden) in golden::all() {
        let Some(Trajectory { losses, float32 }) = golden.trajectory.take() else { continue };
        let mut net = Net::build(&golden);
        // In which step rounding shows is chance in either library: the largest that PyTorch has shown is the measure.
        let own = losses.iter().zip(&float32).fold(0.0f64, |own, (want, error)| own.max(*error).max(ROUNDING * want));
        for (k, (want, error)) in losses.iter().zip(&float32).enumerate() {
            // On more than the single step.
            let got = net.pass(Mode::Train, "input", 2 * golden.shape[0]);
            net.step_of(&got, k, losses.len());
            let found = (got.loss - want).abs();
            println!("{name}: step {k}: loss {:.6}, error {found:.2e}, PyTorch's {error:.2e}", got.loss);
            assert!(
                found <= FACTOR * own,
                "{name}: step {k}: {} instead of {want}, allowed {:.2e}",
                got.loss,
                FACTOR * own
            );
        }
        assert!(losses.len() >= 10 && losses[losses.len() - 1] < 0.8 * losses[0], "{name}: nothing was learnt");
        followed += 1;
    }
    assert!(followed > 0);
}
