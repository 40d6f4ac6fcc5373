//! How well two kinds of sample find each other by their embeddings.

use std::fmt::Write as _;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How many of the nearest are looked at.
pub const DEPTHS: [usize; 3] = [1, 5, 10];

/// Parts of samples that have one that they go with among their nearest, by [`DEPTHS`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Samples of `[data]` among those of `[data.pairs]`.
    pub to_pairs: [f64; 3],
    /// Those of `[data.pairs]` among those of `[data]`.
    pub from_pairs: [f64; 3],
}

/// What two networks learn from, where a pair may lack a half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairing {
    /// Samples that have their other half.
    pub whole: usize,
    /// Samples that have none, and halves that go with no sample.
    pub alone: [usize; 2],
}

impl Pairing {
    /// For people.
    pub fn sentence(&self) -> String {
        let Self { whole, alone: [samples, halves] } = self;
        format!(
            "learned from {whole} samples with their other half; masked: what {samples} samples without one lack, and \
             {halves} halves without a sample"
        )
    }
}

impl Retrieval {
    /// Looks both ways. Rows have length one; `ours[i]` goes with `theirs[j]` where their keys are equal.
    pub fn new(ours: &[Vec<f32>], theirs: &[Vec<f32>], keys: [&[usize]; 2]) -> Self {
        let [own, other] = keys;
        Self { to_pairs: recall(ours, theirs, own, other), from_pairs: recall(theirs, ours, other, own) }
    }

    /// The mean of both ways, by depth.
    pub fn mean(&self) -> [f64; 3] {
        std::array::from_fn(|d| (self.to_pairs[d] + self.from_pairs[d]) / 2.0)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = format!("{:>24}", "");
        for depth in DEPTHS {
            let _ = write!(out, "  recall@{depth:<2}");
        }
        for (name, parts) in [("find their other half", self.to_pairs), ("are found by it", self.from_pairs)] {
            let _ = write!(out, "\n{name:>24}");
            for part in parts {
                let _ = write!(out, "  {part:>9.3}");
            }
        }
        out + "\n"
    }
}

fn recall(from: &[Vec<f32>], to: &[Vec<f32>], keys: &[usize], their_keys: &[usize]) -> [f64; 3] {
    let before = |(row, key): (&Vec<f32>, &usize)| {
        let like: Vec<f64> = to.iter().map(|other| cosine(row, other)).collect();
        let best = like.iter().zip(their_keys).filter(|(_, k)| *k == key).map(|(l, _)| *l).fold(-2.0, f64::max);
        // What is as near as the right one stands before it: embeddings that are all the same find nothing.
        like.iter().zip(their_keys).filter(|(l, k)| *k != key && **l >= best).count()
    };
    let before: Vec<usize> = from.par_iter().zip(keys).map(before).collect();
    DEPTHS.map(|depth| before.iter().filter(|b| **b < depth).count() as f64 / before.len().max(1) as f64)
}

/// The product of two rows of length one.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// For each of `classes` the mean of the rows that have its key, of length one; nothing where none has.
pub fn prototypes(rows: &[Vec<f32>], keys: &[usize], classes: usize) -> Vec<Option<Vec<f32>>> {
    let width = rows.first().map_or(0, Vec::len);
    let mean = |class: usize| {
        let mut sum = vec![0.0f64; width];
        let own = rows.iter().zip(keys).filter(|(_, key)| **key == class);
        own.for_each(|(row, _)| sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v)));
        let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        (length > 0.0).then(|| sum.iter().map(|v| (v / length) as f32).collect())
    };
    (0..classes).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_counts_what_stands_before_the_nearest_that_goes_with_it() {
        let at = |degrees: f64| vec![libm::cos(degrees.to_radians()) as f32, libm::sin(degrees.to_radians()) as f32];
        let ours = [at(0.0), at(90.0)];
        // The first has its own nearest; the second has six nearer than its own.
        let theirs: Vec<Vec<f32>> = [5.0, 170.0, 89.0, 88.0, 87.0, 86.0, 85.0, 84.0].into_iter().map(at).collect();
        let found = Retrieval::new(&ours, &theirs, [&[0, 1], &[0, 1, 2, 3, 4, 5, 6, 7]]);
        assert_eq!(found.to_pairs, [0.5, 0.5, 1.0]);
        assert_eq!(found.from_pairs[0], 2.0 / 8.0, "six go with none");
        let twice = Retrieval::new(&ours, &theirs, [&[0, 1], &[0, 1, 1, 0, 0, 0, 0, 0]]);
        assert_eq!(twice.to_pairs, [1.0, 1.0, 1.0], "the nearest of those that it goes with");
        assert!(found.to_text().contains("recall@10"));
    }

    #[test]
    fn embeddings_that_are_all_the_same_find_nothing() {
        let same = vec![vec![1.0f32, 0.0]; 20];
        let keys: Vec<usize> = (0..20).collect();
        assert_eq!(Retrieval::new(&same, &same, [&keys, &keys]).mean(), [0.0; 3]);
    }

    #[test]
    fn a_prototype_is_the_mean_direction_of_its_class() {
        let rows = [vec![1.0, 0.0], vec![0.0, 1.0], vec![-1.0, 0.0]];
        let found = prototypes(&rows, &[0, 0, 2], 3);
        let half = 0.5f32.sqrt();
        assert_eq!(found, [Some(vec![half, half]), None, Some(vec![-1.0, 0.0])]);
    }
}
