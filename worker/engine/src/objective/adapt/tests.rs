//! Methods against their formulas written out in f64, with gradients by finite differences.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use tl_proto::spec::Params;

use super::{super::Batch, METHODS, OBJECTIVE, Widths, method};
use crate::nn::{
    Fill, host, tensor,
    testing::{self, check_loss},
};

const N: usize = 4;
const D: usize = 3;
const CLASSES: usize = 3;

fn params(text: &str) -> Params {
    serde_json::from_str(text).unwrap()
}

/// Features and logits of `N` samples of each domain; the second is shifted.
fn given() -> (Tensor, Tensor) {
    let shifted = |width: usize, by: f32| {
        let mut values = host(&testing::input(&[2 * N, width])).unwrap().to_vec();
        values[N * width..].iter_mut().for_each(|v| *v = *v * 1.5 + by);
        tensor(values, &[2 * N, width]).unwrap()
    };
    (shifted(D, 0.7), shifted(CLASSES, -0.4))
}

/// The method's own tensors, with constants moved off their trivial values.
fn own(given: &Params) -> BTreeMap<String, Tensor> {
    let own = (method(given).own)(given, Widths { features: D, classes: CLASSES, ..Widths::default() }).unwrap();
    let value = |o: crate::nn::Own| {
        let noise = host(&testing::input(&o.shape)).unwrap().to_vec();
        let values = noise.iter().map(|v| match o.fill {
            Fill::Constant(c) => c + 0.3 * v,
            Fill::Uniform(bound) => bound * v,
        });
        (o.name, tensor(values.collect(), &o.shape).unwrap())
    };
    own.into_iter().map(value).collect()
}

/// The target probabilities of the samples with labels.
fn targets() -> Tensor {
    let one = |i: usize| f32::from(u8::from(i % CLASSES == i / CLASSES % 2));
    tensor((0..N * CLASSES).map(one).collect(), &[N, CLASSES]).unwrap()
}

/// What a method, or the whole objective, makes of a batch.
fn of_batch<T>(
    of: impl Fn(&Batch<'_>) -> T,
    [features, logits]: [&Tensor; 2],
    averaged: Option<&Tensor>,
    own: &BTreeMap<String, Tensor>,
    progress: f64,
) -> T {
    let (targets, taps) = (&targets(), &[]);
    let (teacher, paired, present, weights) = (None, None, None, None);
    of(&Batch { features, logits, targets, teacher, taps, averaged, paired, present, weights, own, progress })
}

fn loss(given: &Params, features: &Tensor, logits: &Tensor, own: &BTreeMap<String, Tensor>, progress: f64) -> Tensor {
    of_batch(|batch| (method(given).loss)(given, batch).unwrap().unwrap(), [features, logits], None, own, progress)
}

fn value(t: &Tensor) -> f64 {
    f64::from(host(t).unwrap()[0])
}

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    let width = t.dims()[1];
    host(t).unwrap().chunks(width).map(|r| r.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// Numbers in order as rows of so many.
fn cut(values: &[f64], width: usize) -> Vec<Vec<f64>> {
    values.chunks(width).map(<[f64]>::to_vec).collect()
}

fn softmax(row: &[f64], t: f64) -> Vec<f64> {
    let e: Vec<f64> = row.iter().map(|v| (v / t).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

fn certainty(p: &[Vec<f64>]) -> Vec<f64> {
    let w: Vec<f64> = p.iter().map(|p| 1.0 + p.iter().map(|p| p * p.ln()).sum::<f64>().exp()).collect();
    let mean = w.iter().sum::<f64>() / w.len() as f64;
    w.iter().map(|w| w / mean).collect()
}

#[test]
fn coral_is_the_distance_of_covariances() {
    let (features, logits) = given();
    let rows = rows(&features);
    let moments = |rows: &[Vec<f64>]| {
        let mean: Vec<f64> = (0..D).map(|i| rows.iter().map(|r| r[i]).sum::<f64>() / N as f64).collect();
        let cov = |i: usize, j: usize| {
            rows.iter().map(|r| (r[i] - mean[i]) * (r[j] - mean[j])).sum::<f64>() / (N as f64 - 1.0)
        };
        let cov: Vec<f64> = (0..D * D).map(|k| cov(k / D, k % D)).collect();
        (mean, cov)
    };
    let ((ms, cs), (mt, ct)) = (moments(&rows[..N]), moments(&rows[N..]));
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let paper = apart(&cs, &ct) / (4.0 * (D * D) as f64);
    let domainbed = apart(&ms, &mt) / D as f64 + apart(&cs, &ct) / (D * D) as f64;
    for (variant, want) in [("paper", paper), ("domainbed", domainbed)] {
        let given = params(&format!(r#"{{"method": "coral", "variant": "{variant}"}}"#));
        let got = value(&loss(&given, &features, &logits, &own(&given), 0.0));
        assert!((got - want).abs() < 1e-5 * want, "{variant}: {got} {want}");
    }
    // Of logits it is the same of other rows: with each other's place taken, the value stays.
    let given = params(r#"{"method": "coral", "at": "logits"}"#);
    let got = value(&loss(&given, &logits, &features, &own(&given), 0.0));
    assert!((got - paper).abs() < 1e-5 * paper, "{got} {paper}");
    assert!((OBJECTIVE.features)(&params(r#"{"method": "coral"}"#)) && !(OBJECTIVE.features)(&given));
}

/// The estimate of what the means of five kernels differ by, over squared distances of which `mean` is the mean.
fn mmd(rows: &[Vec<f64>], mean: f64, linear: bool) -> f64 {
    let kernel = |i: usize, j: usize| {
        let d2 = squared(&rows[i], &rows[j]);
        (-3..=1).map(|u| (-d2 / (2.0 * 2f64.powi(u) * mean)).exp()).sum::<f64>()
    };
    let n = N as f64;
    let mut sum = 2.0 / (n - 1.0);
    for i in 0..N {
        if linear {
            let next = (i + 1) % N;
            sum += (kernel(i, next) + kernel(N + i, N + next) - kernel(i, N + next) - kernel(next, N + i)) / n;
            continue;
        }
        for j in 0..N {
            if i != j {
                sum += (kernel(i, j) + kernel(N + i, N + j)) / (n * (n - 1.0));
            }
            sum -= 2.0 * kernel(i, N + j) / (n * n);
        }
    }
    sum
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[test]
fn mmd_is_the_sum_over_pairs_of_five_kernels_whose_width_is_held() {
    let (features, logits) = given();
    let (x, all) = (rows(&features), 2 * N);
    let mean = (0..all * all).map(|k| squared(&x[k / all], &x[k % all])).sum::<f64>() / (all * all) as f64;
    for estimator in ["linear", "quadratic"] {
        let given = params(&format!(r#"{{"method": "mmd", "estimator": "{estimator}"}}"#));
        let var = Var::from_tensor(&features).unwrap();
        let got = loss(&given, var.as_tensor(), &logits, &own(&given), 0.0);
        check_loss(estimator, &got, &var, |x| mmd(&cut(x, D), mean, estimator == "linear"));
    }
}

#[test]
fn a_class_that_no_sample_is_of_leaves_gradients_finite() {
    let logits = [[0.0f32, -400.0, -1.0], [1.0, -500.0, 0.0]].concat().repeat(N);
    let var = Var::from_tensor(&tensor(logits, &[2 * N, CLASSES]).unwrap()).unwrap();
    let given = params(r#"{"method": "mcc"}"#);
    let loss = loss(&given, &self::given().0, var.as_tensor(), &own(&given), 0.0);
    let grads = loss.backward().unwrap();
    let slopes = host(&grads.get(&var).unwrap().contiguous().unwrap()).unwrap().to_vec();
    assert!(value(&loss).is_finite() && slopes.iter().all(|g| g.is_finite()), "{slopes:?}");
}

#[test]
fn mcc_is_what_lies_off_the_diagonal_for_certainties_that_are_held() {
    let (features, logits) = given();
    let predicted = |z: &[Vec<f64>]| z[N..].iter().map(|r| softmax(r, 2.5)).collect::<Vec<_>>();
    let w = certainty(&predicted(&rows(&logits)));
    let formula = |z: &[f64]| {
        let p = predicted(&cut(z, CLASSES));
        let torn = |i: usize| {
            let row: Vec<f64> = (0..CLASSES).map(|j| (0..N).map(|s| w[s] * p[s][i] * p[s][j]).sum()).collect();
            1.0 - row[i] / row.iter().sum::<f64>()
        };
        (0..CLASSES).map(torn).sum::<f64>() / CLASSES as f64
    };
    let given = params(r#"{"method": "mcc"}"#);
    let var = Var::from_tensor(&logits).unwrap();
    let got = loss(&given, &features, var.as_tensor(), &own(&given), 0.0);
    check_loss("mcc", &got, &var, formula);
}

/// The discriminator in f64: two hidden layers with batch-norm, one number.
fn judged(x: &[Vec<f64>], own: &BTreeMap<String, Tensor>) -> Vec<f64> {
    let vector = |name: &str| host(&own[name]).unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let times = |x: &[Vec<f64>], w: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let out = |r: &Vec<f64>| (0..w[0].len()).map(|j| r.iter().zip(w).map(|(v, w)| v * w[j]).sum()).collect();
        x.iter().map(out).collect()
    };
    let mut x = x.to_vec();
    for layer in ["0", "1"] {
        x = times(&x, &rows(&own[&format!("domain.{layer}.weight")]));
        let (scale, shift) = (vector(&format!("domain.{layer}.scale")), vector(&format!("domain.{layer}.shift")));
        let n = x.len() as f64;
        for j in 0..scale.len() {
            let mean = x.iter().map(|r| r[j]).sum::<f64>() / n;
            let var = x.iter().map(|r| (r[j] - mean) * (r[j] - mean)).sum::<f64>() / n;
            x.iter_mut().for_each(|r| r[j] = ((r[j] - mean) / (var + 1e-5).sqrt() * scale[j] + shift[j]).max(0.0));
        }
    }
    let bias = vector("domain.2.bias")[0];
    times(&x, &rows(&own["domain.2.weight"])).into_iter().map(|r| r[0] + bias).collect()
}

#[test]
fn adversaries_lose_what_their_discriminator_loses() {
    let (features, logits) = given();
    let bce = |z: &[f64]| -> Vec<f64> {
        let one = |(i, z): (usize, &f64)| (1.0 + (if i < N { -z } else { *z }).exp()).ln();
        z.iter().enumerate().map(one).collect()
    };
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let given = params(r#"{"method": "dann", "hidden": 5}"#);
    let tensors = own(&given);
    let got = value(&loss(&given, &features, &logits, &tensors, 0.5));
    let want = mean(&bce(&judged(&rows(&features), &tensors)));
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    let p: Vec<Vec<f64>> = rows(&logits).iter().map(|r| softmax(r, 1.0)).collect();
    let outer = |(f, p): (Vec<f64>, &Vec<f64>)| p.iter().flat_map(|p| f.iter().map(move |f| p * f)).collect();
    let x: Vec<Vec<f64>> = rows(&features).into_iter().zip(&p).map(|(f, p)| outer((f, p))).collect();
    for (entropy, weights) in [(true, certainty(&p)), (false, vec![1.0; 2 * N])] {
        let given = params(&format!(r#"{{"method": "cdan", "hidden": 5, "entropy": {entropy}}}"#));
        let tensors = own(&given);
        let got = value(&loss(&given, &features, &logits, &tensors, 0.5));
        let each: Vec<f64> = bce(&judged(&x, &tensors)).iter().zip(&weights).map(|(l, w)| l * w).collect();
        assert!((got - mean(&each)).abs() < 1e-5, "{got} {}", mean(&each));
    }
}

#[test]
fn certain_predictions_are_labels_and_the_mean_goes_over_all() {
    let (features, logits) = given();
    let average = (testing::input(&[N, CLASSES]) * 2.0).unwrap();
    for averaged in [None, Some(&average)] {
        let speaks = averaged.map_or_else(|| rows(&logits)[N..].to_vec(), rows);
        let likeliest = |r: &Vec<f64>| {
            let p = softmax(r, 1.0);
            (0..CLASSES).map(|c| (c, p[c])).fold((0, 0.0), |best, one| if one.1 > best.1 { one } else { best })
        };
        let said: Vec<(usize, f64)> = speaks.iter().map(likeliest).collect();
        let mut sorted: Vec<f64> = said.iter().map(|(_, p)| *p).collect();
        sorted.sort_by(f64::total_cmp);
        let threshold = (sorted[1] + sorted[2]) / 2.0;
        let given = params(&format!(r#"{{"method": "self_training", "threshold": {threshold}}}"#));
        let formula = |z: &[f64]| {
            let one = |(z, (label, p)): (&Vec<f64>, &(usize, f64))| {
                if *p > threshold { -softmax(z, 1.0)[*label].ln() } else { 0.0 }
            };
            cut(z, CLASSES)[N..].iter().zip(&said).map(one).sum::<f64>() / N as f64
        };
        let var = Var::from_tensor(&logits).unwrap();
        let (seen, own) = ([&features, var.as_tensor()], own(&given));
        let got = of_batch(|batch| (method(&given).loss)(&given, batch).unwrap().unwrap(), seen, averaged, &own, 0.0);
        check_loss("self_training", &got, &var, formula);
    }
}

/// The labels are all that is learned, whatever comes of the other domain, which passes the network all the same.
#[test]
fn statistics_add_no_loss_to_that_of_the_labels() {
    let (statistics, direct) = (params(r#"{"method": "statistics"}"#), params(r#"{"method": "direct"}"#));
    assert!((OBJECTIVE.looks)(&statistics) && !(OBJECTIVE.coupled)(&statistics) && !(OBJECTIVE.looks)(&direct));
    let (features, logits) = given();
    let (var, own) = (Var::from_tensor(&logits).unwrap(), own(&statistics));
    let of = |given: &Params| {
        let seen = [&features, var.as_tensor()];
        of_batch(|batch| (OBJECTIVE.loss)(given, batch).unwrap(), seen, None, &own, 0.0)
    };
    let loss = of(&statistics);
    assert_eq!(value(&loss), value(&of(&direct)));
    let grads = loss.backward().unwrap();
    let slopes = host(&grads.get(&var).unwrap().contiguous().unwrap()).unwrap().to_vec();
    let (source, target) = slopes.split_at(N * CLASSES);
    assert!(source.iter().any(|g| *g != 0.0) && target.iter().all(|g| *g == 0.0), "{slopes:?}");
}

/// The sum of the labels' loss, and the method's for each sample with a label.
#[test]
fn a_method_counts_beside_the_labels_as_the_job_says() {
    let (features, logits) = given();
    let given = params(r#"{"method": "coral", "trade_off": 0.3}"#);
    let coral = value(&loss(&given, &features, &logits, &own(&given), 0.0));
    let labels = host(&targets()).unwrap().to_vec();
    let formula = |z: &[f64]| {
        let p = cut(z, CLASSES)[..N].iter().flat_map(|r| softmax(r, 1.0)).collect::<Vec<f64>>();
        let hard: f64 = p.iter().zip(&labels).map(|(p, t)| -f64::from(*t) * p.ln()).sum();
        hard + N as f64 * 0.3 * coral
    };
    let var = Var::from_tensor(&logits).unwrap();
    let (seen, own) = ([&features, var.as_tensor()], own(&given));
    let got = of_batch(|batch| (OBJECTIVE.loss)(&given, batch).unwrap(), seen, None, &own, 0.0);
    check_loss("coral beside labels", &got, &var, formula);
}

/// What flows back is the slope of the loss; through a reversal, −λ times the slope.
#[test]
fn gradients_are_those_of_finite_differences() {
    for given in [
        r#"{"method": "coral"}"#,
        r#"{"method": "coral", "variant": "domainbed"}"#,
        r#"{"method": "dann", "hidden": 5}"#,
        r#"{"method": "cdan", "hidden": 5}"#,
    ] {
        let adversary = given.contains("hidden");
        let (name, given) = (given, params(given));
        let (features, logits) = self::given();
        let tensors = own(&given);
        let var = Var::from_tensor(&features).unwrap();
        let of = |x: &Tensor, progress: f64| loss(&given, x, &logits, &tensors, progress);
        let progress = 0.1;
        let grads = of(var.as_tensor(), progress).backward().unwrap();
        let got = host(&grads.get(&var).unwrap().contiguous().unwrap()).unwrap().to_vec();
        let lambda = 2.0 / (1.0 + (-10.0 * progress).exp()) - 1.0;
        let sign = if adversary { -lambda } else { 1.0 };
        let values = host(&features).unwrap().to_vec();
        let largest = got.iter().fold(0.0f64, |a, g| a.max(f64::from(g.abs())));
        assert!(largest > 1e-4, "{name}");
        for i in 0..values.len() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                value(&of(&tensor(values, features.dims()).unwrap(), progress))
            };
            let want = sign * (moved(4e-3) - moved(-4e-3)) / 8e-3;
            let error = (f64::from(got[i]) - want).abs();
            assert!(error < 0.02 * largest, "{name}[{i}]: {} {want}", got[i]);
        }
    }
}

/// What a discriminator sees of predictions is given to it: features alone learn to deceive it.
#[test]
fn nothing_is_learned_through_the_predictions_that_a_discriminator_sees() {
    for entropy in [true, false] {
        let given = params(&format!(r#"{{"method": "cdan", "hidden": 5, "entropy": {entropy}}}"#));
        let (features, logits) = self::given();
        let [features, logits] = [features, logits].map(|t| Var::from_tensor(&t).unwrap());
        let loss = loss(&given, features.as_tensor(), logits.as_tensor(), &own(&given), 0.5);
        let grads = loss.backward().unwrap();
        assert!(grads.get(&logits).is_none() && grads.get(&features).is_some(), "entropy: {entropy}");
    }
}

#[test]
fn methods_have_names_of_their_own_and_documents() {
    let names: std::collections::BTreeSet<String> = METHODS.iter().map(|m| (m.entry)().name).collect();
    assert_eq!(names.len(), METHODS.len());
    assert!(METHODS.iter().all(|m| !(m.entry)().doc.is_empty()));
}
