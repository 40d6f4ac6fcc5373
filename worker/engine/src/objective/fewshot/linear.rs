//! Logistic regression on features, a baseline: Σ −log p + λ/2·‖W‖² with a bias that is not penalised, as scikit-learn's
//! `LogisticRegression(C = 1/λ)` minimises it.
//!
//! A minimum lies in the span of what is shown, so W is kept as one coefficient for each shown sample and class, and only
//! products between samples are needed. Newton's method with steps by conjugate gradients in the space of W (as LIBLINEAR's
//! trust region, Lin, Weng and Keerthi, 2008, with a line search in its place), in f64: how long features are changes little,
//! where a gradient's own steps would be too many.

use tl_proto::catalog::{Entry, entry, number};

use super::{Learns, Method};
use crate::nn::{host, tensor};

/// Most steps: a dozen are usual, twice as many where features are far apart.
const STEPS: usize = 100;
/// It ends once a step lowers the sum by no more than about this part of it: so near, the next would be a rounding.
const CLOSE: f64 = 1e-10;
/// What part of the squared gradient a step may leave, as far as the sum is a parabola.
const LEFT: f64 = 1e-4;
/// How often a step is halved that does not lower the sum; then no number does.
const HALVINGS: usize = 40;

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

/// A place, or a way to go: coefficients by shown sample and class, then biases; and what products make of it: scores without
/// biases, then biases. `at · to` of two is the product of the W and biases that they stand for.
#[derive(Clone)]
struct Vector {
    at: Vec<f64>,
    to: Vec<f64>,
}

impl Vector {
    fn dot(&self, other: &Self) -> f64 {
        dot(&self.at, &other.to)
    }

    /// This and `part` times another.
    fn and(&self, part: f64, other: &Self) -> Self {
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + part * b).collect();
        Self { at: sum(&self.at, &other.at), to: sum(&self.to, &other.to) }
    }
}

impl Problem<'_> {
    fn coefficients(&self) -> usize {
        self.labels.len() * self.way
    }

    fn vector(&self, at: Vec<f64>) -> Vector {
        let (n, way) = (self.labels.len(), self.way);
        let mut to = vec![0.0_f64; at.len()];
        for (i, to) in to[..n * way].chunks_exact_mut(way).enumerate() {
            for (k, own) in self.products[i * n..(i + 1) * n].iter().zip(at.chunks_exact(way)) {
                to.iter_mut().zip(own).for_each(|(t, c)| *t += k * c);
            }
        }
        to[n * way..].copy_from_slice(&at[n * way..]);
        Vector { at, to }
    }

    /// Probabilities by shown sample and class, and the sum that is minimised.
    fn judged(&self, x: &Vector) -> (Vec<f64>, f64) {
        let (scores, bias) = x.to.split_at(self.coefficients());
        let mut sum = 0.5 * self.penalty * dot(&x.at[..scores.len()], scores);
        let mut chances = Vec::with_capacity(scores.len());
        for (scores, label) in scores.chunks_exact(self.way).zip(self.labels) {
            let z: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = z.iter().map(|z| libm::exp(z - largest)).collect();
            let total = e.iter().fold(0.0, |sum, e| sum + e);
            sum += libm::log(total) + largest - z[*label];
            chances.extend(e.iter().map(|e| e / total));
        }
        (chances, sum)
    }

    /// `errors` by shown sample and class, with the penalty on `x` and followed by their sums by class.
    fn pulled(&self, mut errors: Vec<f64>, x: &Vector) -> Vector {
        let mut sums = vec![0.0_f64; self.way];
        errors.chunks_exact(self.way).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, e)| *s += e));
        errors.iter_mut().zip(&x.at).for_each(|(e, x)| *e += self.penalty * x);
        errors.extend(sums);
        self.vector(errors)
    }

    /// The gradient at `x`, where probabilities are these.
    fn slope(&self, x: &Vector, chances: &[f64]) -> Vector {
        let mut errors = chances.to_vec();
        self.labels.iter().enumerate().for_each(|(i, label)| errors[i * self.way + label] -= 1.0);
        self.pulled(errors, x)
    }

    /// How the gradient changes along `way`, where probabilities are these.
    fn bent(&self, way: &Vector, chances: &[f64]) -> Vector {
        let (scores, bias) = way.to.split_at(self.coefficients());
        let mut errors = Vec::with_capacity(scores.len());
        for (scores, p) in scores.chunks_exact(self.way).zip(chances.chunks_exact(self.way)) {
            let moved: Vec<f64> = p.iter().zip(scores.iter().zip(bias)).map(|(p, (s, b))| p * (s + b)).collect();
            let mean = moved.iter().fold(0.0, |sum, m| sum + m);
            errors.extend(moved.iter().zip(p).map(|(m, p)| m - p * mean));
        }
        self.pulled(errors, way)
    }

    /// The way down to the bottom of the parabola that lies against the sum, near enough, by conjugate gradients.
    fn step(&self, slope: &Vector, chances: &[f64]) -> Vector {
        let none = Vector { at: vec![0.0; slope.at.len()], to: vec![0.0; slope.to.len()] };
        let (mut step, mut rest) = (none.clone(), none.and(-1.0, slope));
        let (mut way, mut left) = (rest.clone(), rest.dot(&rest));
        let enough = LEFT * left;
        for _ in 0..slope.at.len() {
            let bent = self.bent(&way, chances);
            let curve = way.dot(&bent);
            // What is left of rounding may have any sign.
            if curve <= 0.0 || left <= 0.0 {
                break;
            }
            step = step.and(left / curve, &way);
            rest = rest.and(-left / curve, &bent);
            let now = rest.dot(&rest);
            if now <= enough {
                break;
            }
            way = rest.and(now / left, &way);
            left = now;
        }
        step
    }

    /// Where the sum is least.
    fn minimum(&self) -> Vec<f64> {
        let mut x = self.vector(vec![0.0; self.coefficients() + self.way]);
        let (mut chances, mut sum) = self.judged(&x);
        for _ in 0..STEPS {
            let slope = self.slope(&x, &chances);
            let step = self.step(&slope, &chances);
            let falls = -slope.dot(&step);
            if falls <= 0.0 {
                break;
            }
            let tried = |part: f64| {
                let next = x.and(part, &step);
                let (chances, lower) = self.judged(&next);
                // Armijo's rule.
                (lower <= sum - 1e-4 * part * falls).then_some((next, chances, lower))
            };
            let mut parts = std::iter::successors(Some(1.0_f64), |part| Some(part / 2.0)).take(HALVINGS);
            let Some(found) = parts.find_map(tried) else { break };
            (x, chances, sum) = found;
            if falls <= CLOSE * sum {
                break;
            }
        }
        x.at
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
        let mut x = problem.minimum();
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

    /// The largest derivative by a weight, over the length of the longest feature, and by a bias, of what was fitted.
    fn slopes(shown: &[Vec<f64>], counts: &[usize], penalty: f64) -> [f64; 2] {
        let fitted = Fitted::new(shown.to_vec(), counts, penalty);
        let (way, n) = (counts.len(), shown.len());
        let labels: Vec<usize> = counts.iter().enumerate().flat_map(|(c, n)| std::iter::repeat_n(c, *n)).collect();
        let weight = |c: usize, k: usize| -> f64 {
            fitted.shown.iter().zip(fitted.coefficients.chunks_exact(way)).map(|(row, own)| row[k] * own[c]).sum()
        };
        let chances: Vec<Vec<f64>> = shown
            .iter()
            .map(|row| {
                let scores = fitted.scores(row);
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = e.iter().sum();
                e.iter().map(|e| e / total).collect()
            })
            .collect();
        let error_of = |i: usize, c: usize| chances[i][c] - f64::from(u8::from(labels[i] == c));
        let longest = shown.iter().map(|row| dot(row, row).sqrt()).fold(1.0, f64::max);
        let mut slopes = [0.0f64; 2];
        for c in 0..way {
            slopes[1] = slopes[1].max((0..n).map(|i| error_of(i, c)).sum::<f64>().abs());
            for k in 0..shown[0].len() {
                let of_samples: f64 = shown.iter().enumerate().map(|(i, row)| error_of(i, c) * row[k]).sum();
                let slope = of_samples + penalty * weight(c, k);
                slopes[0] = slopes[0].max(slope.abs() / longest);
            }
        }
        slopes
    }

    /// Where the derivative of the strictly convex sum by every weight and bias is zero, there is its only minimum.
    #[test]
    fn a_fit_is_the_minimum_however_long_features_are() {
        let shown = [[1.0, 0.2, -0.3], [0.8, -0.1, 0.4], [-0.5, 0.9, 0.1], [-0.2, 1.1, -0.6], [0.1, -0.7, 1.3]];
        for (scale, penalty) in [(1.0, 0.5), (60.0, 1.0), (200.0, 1.0), (1e-3, 1.0), (30.0, 1e-3), (60.0, 1e5)] {
            let shown: Vec<Vec<f64>> = shown.iter().map(|row| row.iter().map(|v| scale * v).collect()).collect();
            let slopes = slopes(&shown, &[2, 2, 1], penalty);
            assert!(slopes.iter().all(|s| *s < 1e-6), "{scale} {penalty}: {slopes:?}");
        }
    }

    #[test]
    fn many_long_features_of_several_classes_are_fitted_too() {
        let number = |i: usize| ((i * 7919 + 104_729) % 1009) as f64 / 1009.0;
        // 5 classes of 20, of 16 numbers each, those of a class about its own middle, some hundred long.
        let row = |i: usize| -> Vec<f64> {
            (0..16).map(|k| 30.0 * (number(17 * (i / 20) + k) + number(331 * i + 13 * k))).collect()
        };
        let shown: Vec<Vec<f64>> = (0..100).map(row).collect();
        let slopes = slopes(&shown, &[20; 5], 1.0);
        assert!(slopes.iter().all(|s| *s < 1e-6), "{slopes:?}");
    }

    #[test]
    fn what_is_shown_is_likely_what_it_is() {
        let shown = vec![vec![1.0, 0.2], vec![0.8, -0.1], vec![-0.5, 0.9]];
        let fitted = Fitted::new(shown.clone(), &[2, 1], 0.5);
        let margin = |row: &[f64]| {
            let scores = fitted.scores(row);
            scores[0] - scores[1]
        };
        assert!(margin(&shown[0]) > 0.0 && margin(&shown[1]) > 0.0 && margin(&shown[2]) < 0.0);
    }
}
