//! Logistic regression on features, a baseline: Σ −log p + λ/2·‖W‖² with a bias that is not penalised, as scikit-learn's
//! `LogisticRegression(C = 1/λ)` minimises it.
//!
//! A minimum lies in the span of what is shown, so W is kept as one coefficient for each shown sample and class, and only
//! products between samples are needed. Gradient descent with Nesterov's momentum and restarts (O'Donoghue and Candès,
//! 2015), in f64.

use tl_proto::catalog::{Entry, entry, number};

use super::{Learns, Method};
use crate::nn::{host, tensor};

/// Most steps; where features are far apart, a few dozen are enough.
const STEPS: usize = 2000;
/// The largest element of the gradient at which it ends.
const CLOSE: f64 = 1e-6;

fn describe() -> Entry {
    Entry {
        params: vec![number(
            "penalty",
            1.0,
            1e-6,
            1e6,
            "weight of the squared norm of the weights; scikit-learn's 1/C",
        )],
        ..entry("linear", "logistic regression on the features of the network as it is; a baseline, without stages")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    learns: Learns::Fits(|params, shown| {
        let (d, way) = (shown.support.dim(1)?, shown.counts.len());
        let (support, query) = (host(shown.support)?, host(shown.query)?);
        let fitted = Fitted::new(rows(&support, d), shown.counts, describe().number(params, "penalty"));
        let scores = rows(&query, d).iter().flat_map(|q| fitted.scores(q)).map(|s| s as f32).collect();
        tensor(scores, &[shown.query.dim(0)?, way])
    }),
};

fn rows(values: &[f32], d: usize) -> Vec<Vec<f64>> {
    values.chunks_exact(d.max(1)).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// A classifier: coefficients of shown samples around their mean, and biases.
struct Fitted {
    shown: Vec<Vec<f64>>,
    mean: Vec<f64>,
    /// By shown sample, then class.
    coefficients: Vec<f64>,
    bias: Vec<f64>,
}

/// What is minimised.
struct Problem<'a> {
    /// Products between shown samples.
    products: Vec<f64>,
    labels: &'a [usize],
    way: usize,
    penalty: f64,
}

impl Problem<'_> {
    /// For coefficients followed by biases: p − y of each sample and class, then their sums by class.
    fn errors(&self, x: &[f64]) -> Vec<f64> {
        let (n, way) = (self.labels.len(), self.way);
        let (coefficients, bias) = x.split_at(n * way);
        let mut errors = vec![0.0; n * way + way];
        for i in 0..n {
            let mut z = bias.to_vec();
            for j in 0..n {
                let k = self.products[i * n + j];
                z.iter_mut().zip(&coefficients[j * way..]).for_each(|(z, c)| *z += k * c);
            }
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            z.iter_mut().for_each(|z| *z = libm::exp(*z - largest));
            let total = z.iter().fold(0.0, |sum, e| sum + e);
            for (class, e) in z.iter().enumerate() {
                let error = e / total - if class == self.labels[i] { 1.0 } else { 0.0 };
                errors[i * way + class] = error;
                errors[n * way + class] += error;
            }
        }
        errors
    }

    /// The direction down from `x`: the gradient by W is Σᵢ gᵢ·xᵢ for the gᵢ that this gives.
    fn slope(&self, x: &[f64]) -> Vec<f64> {
        let mut g = self.errors(x);
        let n = self.labels.len() * self.way;
        g[..n].iter_mut().zip(x).for_each(|(g, x)| *g += self.penalty * x);
        g
    }

    /// A bound of the curvature: half the largest eigenvalue of products between samples with a one appended, by the
    /// largest sum of a row, and the penalty.
    fn curvature(&self) -> f64 {
        let n = self.labels.len();
        let row = |i: usize| self.products[i * n..(i + 1) * n].iter().fold(0.0, |sum, k| sum + (k + 1.0).abs());
        0.5 * (0..n).map(row).fold(0.0, f64::max) + self.penalty
    }
}

impl Fitted {
    fn new(mut shown: Vec<Vec<f64>>, counts: &[usize], penalty: f64) -> Self {
        let (n, way) = (shown.len(), counts.len());
        let labels: Vec<usize> = counts.iter().enumerate().flat_map(|(c, n)| std::iter::repeat_n(c, *n)).collect();
        // The bias takes up any shift of the features; without it the problem is rounder.
        let mut mean = vec![0.0; shown.first().map_or(0, Vec::len)];
        shown.iter().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n as f64));
        shown.iter_mut().for_each(|row| row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m));
        let products = shown.iter().flat_map(|a| shown.iter().map(|b| dot(a, b))).collect();
        let problem = Problem { products, labels: &labels, way, penalty };
        let rate = 1.0 / problem.curvature();
        let mut x = vec![0.0; n * way + way];
        let (mut ahead, mut t) = (x.clone(), 1.0);
        for _ in 0..STEPS {
            let slope = problem.slope(&ahead);
            if slope.iter().all(|g| g.abs() <= CLOSE) {
                break;
            }
            let next: Vec<f64> = ahead.iter().zip(&slope).map(|(a, g)| a - rate * g).collect();
            // Momentum that points uphill is forgotten.
            let along = (0..x.len()).fold(0.0, |sum, i| sum + slope[i] * (next[i] - x[i]));
            let faster = 0.5 * (1.0 + libm::sqrt(1.0 + 4.0 * t * t));
            let momentum = if along > 0.0 { 0.0 } else { (t - 1.0) / faster };
            t = if along > 0.0 { 1.0 } else { faster };
            ahead = next.iter().zip(&x).map(|(n, o)| n + momentum * (n - o)).collect();
            x = next;
        }
        let bias = x.split_off(n * way);
        Self { shown, mean, coefficients: x, bias }
    }

    fn scores(&self, query: &[f64]) -> Vec<f64> {
        let centred: Vec<f64> = query.iter().zip(&self.mean).map(|(q, m)| q - m).collect();
        let mut scores = self.bias.clone();
        for (row, own) in self.shown.iter().zip(self.coefficients.chunks_exact(scores.len())) {
            let k = dot(row, &centred);
            scores.iter_mut().zip(own).for_each(|(s, c)| *s += k * c);
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the derivative of the strictly convex sum by every weight and bias is zero, there is its only minimum.
    #[test]
    fn a_fit_is_the_minimum() {
        let shown = vec![
            vec![1.0, 0.2, -0.3],
            vec![0.8, -0.1, 0.4],
            vec![-0.5, 0.9, 0.1],
            vec![-0.2, 1.1, -0.6],
            vec![0.1, -0.7, 1.3],
        ];
        let counts = [2, 2, 1];
        let penalty = 0.5;
        let fitted = Fitted::new(shown.clone(), &counts, penalty);
        let labels = [0, 0, 1, 1, 2];
        let weight = |c: usize, k: usize| -> f64 {
            fitted.shown.iter().zip(fitted.coefficients.chunks_exact(3)).map(|(row, own)| row[k] * own[c]).sum()
        };
        let chances: Vec<Vec<f64>> = shown
            .iter()
            .map(|row| {
                let e: Vec<f64> = fitted.scores(row).iter().map(|s| s.exp()).collect();
                let total: f64 = e.iter().sum();
                e.iter().map(|e| e / total).collect()
            })
            .collect();
        let error_of = |i: usize, c: usize| chances[i][c] - f64::from(u8::from(labels[i] == c));
        for (c, k) in (0..9).map(|at| (at / 3, at % 3)) {
            assert!((0..5).map(|i| error_of(i, c)).sum::<f64>().abs() < 1e-5);
            let slope = (0..5).map(|i| error_of(i, c) * shown[i][k]).sum::<f64>() + penalty * weight(c, k);
            assert!(slope.abs() < 1e-5, "{c} {k}: {slope}");
        }
        assert!(chances[0][0] > 0.5 && chances[4][2] > 0.4, "{chances:?}");
    }
}
