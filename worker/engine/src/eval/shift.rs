//! How far apart two domains lie in the features of a network.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    matrix::{Matrix, dot, normalise},
    pca,
};
use crate::num::rng::Philox;

/// The most samples of each domain that a distance is worked out from: each half is judged by what was learned on the other.
pub const COMPARED: usize = 500;
/// The most samples of each domain that are shown.
const SHOWN: usize = 250;
/// Weight of ½‖w‖² beside the mean of the losses.
const DECAY: f64 = 1e-2;
/// Steps of the classifier, and rounds of the search for the largest step that is safe.
const STEPS: usize = 400;
const ROUNDS: usize = 20;

/// Two domains as a network sees them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Apart {
    /// Proxy A-distance (Ben-David et al., 2007): 2·(1 − 2ε) for the error ε of a linear classifier that tells the domains
    /// apart by features, on samples that it has not learned from: the mean over both halves. 0: it cannot; 2: it always can.
    pub a_distance: f64,
    /// Samples of each domain that it is of, all of such as are learned from; 0 where an earlier release has not said so.
    #[serde(default)]
    pub samples: usize,
    /// Part that is right of the validation samples.
    pub source_accuracy: f64,
    /// The same in the other domain, where it has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_accuracy: Option<f64>,
    /// Samples of both domains in the plane in which their features spread most.
    pub points: [Vec<[f32; 2]>; 2],
    /// The part of the variance that it shows.
    pub shown: f64,
}

/// Before anything was learned, and at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// Not known of runs that began in a release that did not look, or that looked at other samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Apart>,
    /// Of the model that goes out.
    pub after: Apart,
}

impl Shift {
    /// What was seen before goes with what was seen after where both are of samples that are learned from.
    pub fn new(before: Option<Apart>, after: Apart) -> Self {
        Self { before: before.filter(|before| before.samples > 0), after }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let line = |when: &str, a: &Apart| {
            let target =
                a.target_accuracy.map_or(String::new(), |t| format!(", {:.1} % in the other domain", 100.0 * t));
            let own = 100.0 * a.source_accuracy;
            let of = if a.samples == 0 { String::new() } else { format!(" ({} samples of each domain)", a.samples) };
            format!("{when}: A-distance {:.3}{of}; {own:.1} % right of the validation samples{target}\n", a.a_distance)
        };
        let before = self.before.as_ref().map_or(String::new(), |before| line("before", before));
        before + &line("after", &self.after)
    }
}

/// What rows of features of two domains come to; accuracies are for the caller to fill in.
pub fn apart(source: &[Vec<f32>], target: &[Vec<f32>], seed: u32) -> Apart {
    let each = source.len().min(target.len());
    let pick = |rows: &'_ [Vec<f32>], which: u64, n: usize| -> Vec<usize> {
        Philox::new(seed, "domains").permutation(rows.len(), which).into_iter().take(n).collect()
    };
    let n = each.min(COMPARED);
    let (s, t) = (pick(source, 0, n), pick(target, 1, n));
    let rows = |s: &[usize], t: &[usize]| -> Vec<&[f32]> {
        s.iter().map(|i| &source[*i][..]).chain(t.iter().map(|i| &target[*i][..])).collect()
    };
    let a_distance = if n < 2 { 0.0 } else { 2.0 - 4.0 * crossed(&rows(&s, &[]), &rows(&[], &t)) };
    let shown = n.min(SHOWN);
    let (mut points, part) = pca::plane(&rows(&s[..shown], &t[..shown]));
    // As exact as a picture needs.
    points.iter_mut().flatten().for_each(|v| *v = (*v * 1e3).round() / 1e3);
    let theirs = points.split_off(shown);
    // A guess is as good as a classifier that is worse than one.
    Apart { a_distance: a_distance.max(0.0), samples: n, points: [points, theirs], shown: part, ..Apart::default() }
}

/// The part of the rows of two domains, as many of each, that is got wrong where each half is judged by what was learned on
/// the other.
fn crossed(source: &[&[f32]], target: &[&[f32]]) -> f64 {
    let n = source.len();
    let half = n / 2;
    let rows = |of: Range<usize>| [&source[of.clone()], &target[of]].concat();
    let (first, second) = (rows(0..half), rows(half..n));
    let both = wrong(&first, half, &second, n - half) + wrong(&second, n - half, &first, half);
    both as f64 / (2 * n).max(1) as f64
}

/// How many of `held` a logistic regression gets wrong that has learned from `known`; the first rows of both are the one
/// domain. Columns are scaled to mean 0 and deviation 1 first. Nesterov's method with a fixed step.
fn wrong(known: &[&[f32]], first: usize, held: &[&[f32]], held_first: usize) -> usize {
    let (mut x, mut y) = (Matrix::new(known.iter().copied()), Matrix::new(held.iter().copied()));
    let (mean, deviation) = x.moments();
    x.scale(&mean, &deviation);
    y.scale(&mean, &deviation);
    let n = known.len() as f64;
    let mut v: Vec<f64> = {
        let mut stream = Philox::new(0, "curvature").stream(0, 0);
        (0..x.width).map(|_| f64::from(stream.normal())).collect()
    };
    normalise(&mut v);
    let mut largest = 0.0;
    for _ in 0..ROUNDS {
        v = x.times_t(&x.times(&v));
        largest = normalise(&mut v) / n;
    }
    // The search comes from below. The curvature of a logistic loss is at most a quarter; a column of ones is the offset.
    let curvature = 0.25 * (1.5 * largest).max(1.0) + DECAY;
    let ratio = (DECAY / curvature).sqrt();
    let momentum = (1.0 - ratio) / (1.0 + ratio);
    let (mut w, mut offset) = (vec![0.0; x.width], 0.0);
    let (mut ahead, mut ahead_offset) = (w.clone(), offset);
    for _ in 0..STEPS {
        let off = |(i, z): (usize, f64)| {
            let p = 1.0 / (1.0 + libm::exp(-(z + ahead_offset)));
            (p - if i < first { 1.0 } else { 0.0 }) / n
        };
        let residual: Vec<f64> = x.times(&ahead).into_iter().enumerate().map(off).collect();
        let slope = x.times_t(&residual);
        for ((w, ahead), g) in w.iter_mut().zip(&mut ahead).zip(&slope) {
            let next = *ahead - (g + DECAY * *ahead) / curvature;
            *ahead = next + momentum * (next - *w);
            *w = next;
        }
        let next = ahead_offset - residual.iter().sum::<f64>() / curvature;
        ahead_offset = next + momentum * (next - offset);
        offset = next;
    }
    y.rows().enumerate().filter(|(i, row)| (dot(row, &w) + offset > 0.0) != (*i < held_first)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` rows of normal numbers, the first column moved by `by`.
    fn rows(n: usize, by: f32, purpose: &str) -> Vec<Vec<f32>> {
        let mut stream = Philox::new(3, purpose).stream(0, 0);
        let row = |_| -> Vec<f32> { (0..6).map(|c| stream.normal() * 2.0 + if c == 0 { by } else { 5.0 }).collect() };
        (0..n).map(row).collect()
    }

    #[test]
    fn a_distance_is_that_of_the_best_line_between_two_clouds() {
        let source = rows(900, 5.0, "source");
        // Normal clouds that are δ deviations apart: the best line errs with probability Φ(−δ/2).
        for (delta, want) in [(0.0, 0.0), (1.0, 2.0 - 4.0 * 0.308_537), (2.0, 2.0 - 4.0 * 0.158_655), (40.0, 2.0)] {
            let seen = apart(&source, &rows(700, 5.0 + 2.0 * delta, "target"), 1);
            let got = seen.a_distance;
            // 1000 samples are held out, half of them at a time.
            assert!((got - want).abs() < 0.2 && seen.samples == COMPARED, "{delta}: {got} {want}");
        }
        assert_eq!(apart(&source, &source, 1), apart(&source, &source, 1));
    }

    #[test]
    fn each_half_is_judged_by_what_was_learned_on_the_other() {
        // The first half is parted at 0, where all of the second lies right; the second at 4, above all of the first.
        let (source, target) = ([[-1.0f32], [-1.0], [-1.0], [-1.0]], [[1.0f32], [1.0], [9.0], [9.0]]);
        let (source, target) = (source.each_ref().map(|r| &r[..]), target.each_ref().map(|r| &r[..]));
        assert_eq!(crossed(&source, &target), 0.25);
        // Of three, one is judged by what two have shown, and two by one.
        assert_eq!(crossed(&source[1..], &target[1..]), 1.0 / 6.0);
    }

    #[test]
    fn a_distance_says_of_how_many_samples_it_is() {
        let seen = apart(&rows(30, 0.0, "source"), &rows(21, 90.0, "target"), 1);
        let (known, earlier) = (Shift { before: None, after: seen.clone() }, Apart { samples: 0, ..seen });
        assert_eq!(Shift::new(Some(earlier.clone()), known.after.clone()), known, "of other samples");
        assert!(Shift::new(Some(known.after.clone()), known.after.clone()).before.is_some());
        assert!(known.to_text().contains("A-distance 2.000 (21 samples of each domain); 0.0 % right"));
        assert!(
            Shift { before: Some(earlier), ..known }.to_text().starts_with("before: A-distance 2.000; 0.0 % right")
        );
    }

    #[test]
    fn points_are_those_of_each_domain() {
        let (source, target) = (rows(30, 0.0, "source"), rows(20, 90.0, "target"));
        let seen = apart(&source, &target, 1);
        assert_eq!(seen.points.each_ref().map(Vec::len), [20, 20]);
        let mean = |p: &[[f32; 2]]| p.iter().map(|p| p[0]).sum::<f32>() / p.len() as f32;
        assert!((mean(&seen.points[0]) - mean(&seen.points[1])).abs() > 80.0 && seen.shown > 0.9);
        assert_eq!(apart(&[], &target, 1).a_distance, 0.0);
    }
}
