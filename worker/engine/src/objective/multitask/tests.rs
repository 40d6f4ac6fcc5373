//! Losses and rules against formulas in f64.

use candle_core::Var;

use super::*;
use crate::nn::{host, tensor, testing};

/// A job's `[objective]`.
fn params(text: &str) -> Params {
    serde_json::from_str(text).unwrap()
}

/// −Σ t·log softmax(z), and its gradient.
fn reference(z: &[f32], t: &[f32], classes: usize) -> (f64, Vec<f64>) {
    let (mut loss, mut gradient) = (0.0, Vec::new());
    for (z, t) in z.chunks_exact(classes).zip(t.chunks_exact(classes)) {
        let total: f64 = z.iter().map(|v| f64::from(*v).exp()).sum();
        for (z, t) in z.iter().zip(t) {
            let p = f64::from(*z).exp() / total;
            loss -= f64::from(*t) * p.ln();
            gradient.push(p - f64::from(*t));
        }
    }
    (loss, gradient)
}

/// Two tasks of other sizes, one of them as a part of a step that has more samples of it than the grain: what a grain
/// gives, and its gradients: of both logits and of the own tensor.
fn run(given: &Params, s: [f32; 2], moved: Option<(usize, f32)>) -> (f64, Vec<f64>, [Vec<f32>; 3]) {
    let (mut a, b) = (host(&testing::input(&[3, 4])).unwrap().to_vec(), testing::input(&[2, 3]));
    let mut s = s.to_vec();
    match moved {
        Some((at, by)) if at < 12 => a[at] += by,
        Some((at, by)) => s[at - 12] += by,
        None => {}
    }
    let (a, b) = (Var::from_tensor(&tensor(a, &[3, 4]).unwrap()).unwrap(), Var::from_tensor(&b).unwrap());
    let targets = |n: usize, classes: usize| {
        let one = |i: usize| f32::from(u8::from(i % classes == (i / classes) % 2));
        tensor((0..n * classes).map(one).collect(), &[n, classes]).unwrap()
    };
    let (ta, tb) = (targets(3, 4), targets(2, 3));
    let s = Var::from_tensor(&tensor(s, &[2]).unwrap()).unwrap();
    let own = [(LOG_VARIANCES.to_owned(), s.as_tensor().clone())].into();
    let each = [(&a, &ta), (&b, &tb)]
        .map(|(logits, targets)| Task { logits: logits.as_tensor(), targets, classes: None })
        .into();
    let tasks = Tasks { each, scales: &[1.0, 3.5], weights: &[0.5, 2.0], samples: 3, own: &own };
    let (loss, alone) = loss(given, &tasks).unwrap();
    let grads = loss.backward().unwrap();
    let of = |v: &Var| grads.get(v).map(|g| host(&g.contiguous().unwrap()).unwrap().to_vec()).unwrap_or_default();
    (f64::from(loss.to_scalar::<f32>().unwrap()), alone, [of(&a), of(&b), of(&s)])
}

/// What [`run`] compares with: each task's sum and its gradient.
fn references() -> [(f64, Vec<f64>); 2] {
    let one = |shape: [usize; 2]| {
        let z = host(&testing::input(&shape)).unwrap().to_vec();
        let t: Vec<f32> = (0..z.len()).map(|i| f32::from(u8::from(i % shape[1] == (i / shape[1]) % 2))).collect();
        reference(&z, &t, shape[1])
    };
    [one([3, 4]), one([2, 3])]
}

fn close(got: &[f32], want: impl Iterator<Item = f64>) {
    let want: Vec<f64> = want.collect();
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() < 1e-5 * (1.0 + w.abs()), "{g} for {w}");
    }
}

#[test]
fn fixed_weights_and_counts_of_the_step_scale_each_task() {
    let [(la, da), (lb, db)] = references();
    for method in ["fixed", "gradnorm"] {
        let (loss, alone, [a, b, own]) = run(&params(&format!("{{\"method\": \"{method}\"}}")), [0.3, -0.4], None);
        assert!((loss - (0.5 * la + 2.0 * 3.5 * lb)).abs() < 1e-4, "{loss}");
        assert!((alone[0] - la).abs() < 1e-5 && (alone[1] - lb).abs() < 1e-5, "neither weighed nor scaled");
        close(&a, da.iter().map(|d| 0.5 * d));
        close(&b, db.iter().map(|d| 7.0 * d));
        assert!(own.is_empty());
    }
}

#[test]
fn uncertain_tasks_count_less_and_the_gradients_are_those_of_the_formula() {
    let given = params("{\"method\": \"uncertainty\"}");
    let [(la, da), (lb, db)] = references();
    let s = [0.3f32, -0.4];
    let e = s.map(|s| (-f64::from(s)).exp());
    let (loss, _, [a, b, own]) = run(&given, s, None);
    let want = e[0] * la + e[1] * 3.5 * lb + 3.0 * f64::from(s[0] + s[1]) / 2.0;
    assert!((loss - want).abs() < 1e-4, "{loss} for {want}");
    close(&a, da.iter().map(|d| e[0] * d));
    close(&b, db.iter().map(|d| e[1] * 3.5 * d));
    close(&own, [1.5 - e[0] * la, 1.5 - e[1] * 3.5 * lb].into_iter());
    // And by moving each number.
    for (at, got) in a.iter().copied().enumerate().chain([(12, own[0]), (13, own[1])]) {
        let at_by = |by| run(&given, s, Some((at, by))).0;
        let want = (at_by(1e-2) - at_by(-1e-2)) / 2e-2;
        assert!((f64::from(got) - want).abs() < 3e-3 * (1.0 + want.abs()), "{at}: {got} for {want}");
    }
    let counts = weights_of(&s);
    assert!((counts[0] - e[0]).abs() < 1e-12 && (counts[1] - e[1]).abs() < 1e-12);
}

#[test]
fn one_task_is_what_fine_tuning_does_bit_by_bit() {
    let targets = tensor(vec![0.0, 1.0, 0.0, 0.0, 0.5, 0.5], &[2, 3]).unwrap();
    for text in ["{}", "{\"label_smoothing\": 0.1}"] {
        let given = params(text);
        let logits = Var::from_tensor(&testing::input(&[2, 3])).unwrap();
        let own = BTreeMap::new();
        let each = vec![Task { logits: logits.as_tensor(), targets: &targets, classes: None }];
        let tasks = Tasks { each, scales: &[1.0], weights: &[1.0], samples: 2, own: &own };
        let (ours, _) = loss(&given, &tasks).unwrap();
        let batch = super::super::Batch::plain(logits.as_tensor(), &targets, &own);
        let theirs = (Objective::find("finetune").loss)(&given, &batch).unwrap();
        let bits = |t: &Tensor| {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&ours), bits(&theirs));
        let gradient = |t: &Tensor| bits(t.backward().unwrap().get(&logits).unwrap());
        assert_eq!(gradient(&ours), gradient(&theirs));
    }
}

#[test]
fn gradnorm_moves_weights_as_its_loss_asks() {
    let balance = Balance { alpha: 1.5, rate: 0.01 };
    let (norms, losses, first) = ([2.0, 0.5, 1.1], [1.0, 2.0, 0.4], [2.0, 2.5, 2.0]);
    let before = [0.8, 1.4, 0.8];
    let mut weights = before;
    balance.step(&mut weights, &norms, &losses, &first);
    // Σ |w·g − target| over the mean norm, by moving each weight; targets do not move.
    let alone: Vec<f64> = norms.iter().zip(before).map(|(n, w)| n / w).collect();
    let mean = norms.iter().sum::<f64>() / 3.0;
    let progress: Vec<f64> = losses.iter().zip(first).map(|(l, f)| l / f).collect();
    let average = progress.iter().sum::<f64>() / 3.0;
    let target: Vec<f64> = progress.iter().map(|p| mean * (p / average).powf(1.5)).collect();
    let cost = |w: &[f64; 3]| (0..3).map(|t| (w[t] * alone[t] - target[t]).abs()).sum::<f64>() / mean;
    let slope = |t: usize| {
        let moved = |by: f64| {
            let mut w = before;
            w[t] += by;
            cost(&w)
        };
        (moved(1e-6) - moved(-1e-6)) / 2e-6
    };
    let stepped: Vec<f64> = (0..3).map(|t| before[t] - 0.01 * slope(t)).collect();
    let total: f64 = stepped.iter().sum();
    for t in 0..3 {
        let want = stepped[t] * 3.0 / total;
        assert!((weights[t] - want).abs() < 1e-8, "{t}: {} for {want}", weights[t]);
    }
    assert!((weights.iter().sum::<f64>() - 3.0).abs() < 1e-12);
}

#[test]
fn gradnorm_evens_gradients_out_and_neither_loses_a_task_nor_divides_by_zero() {
    // Norms that are proportional to weights, one task ten times the other: at the same progress both end alike.
    let balance = Balance { alpha: 1.5, rate: 0.01 };
    let mut weights = [1.0, 1.0];
    for _ in 0..2000 {
        let norms = [10.0 * weights[0], weights[1]];
        balance.step(&mut weights, &norms, &[1.0, 3.0], &[2.0, 6.0]);
    }
    let ratio = 10.0 * weights[0] / weights[1];
    assert!((0.7..1.4).contains(&ratio), "{weights:?}");
    // The task that is behind pulls.
    let mut weights = [1.0, 1.0];
    balance.step(&mut weights, &[1.0, 1.0], &[1.0, 2.0], &[2.0, 2.0]);
    assert!(weights[1] > 1.0 && weights[0] < 1.0);
    for (norms, losses, first) in [
        ([0.0, 0.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [0.0, 0.0], [1.0, 1.0]),
        ([1.0, f64::NAN], [1.0, 1.0], [0.0, 1.0]),
    ] {
        let mut weights = [1.2, 0.8];
        balance.step(&mut weights, &norms, &losses, &first);
        assert_eq!(weights, [1.2, 0.8]);
    }
    let wild = Balance { alpha: 0.0, rate: 1.0 };
    let mut weights = [1.0, 1.0];
    for _ in 0..50 {
        let norms = [1e6 * weights[0], weights[1]];
        wild.step(&mut weights, &norms, &[1.0, 1.0], &[1.0, 1.0]);
        assert!(weights.iter().all(|w| *w > 0.0 && w.is_finite()), "{weights:?}");
    }
}
