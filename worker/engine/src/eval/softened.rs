//! What a temperature does to the probabilities of a teacher.

use serde::{Deserialize, Serialize};

use super::softmax;

/// Probabilities at one temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Softened {
    /// The temperature.
    pub temperature: f64,
    /// Mean probability over samples of the likeliest class, of the second, and so on.
    pub mean: Vec<f64>,
}

/// The same rows of logits at temperatures 1, 2 and 8, and at the job's.
pub fn softened(logits: &[Vec<f32>], temperature: f64) -> Vec<Softened> {
    let mut all = vec![1.0, 2.0, 8.0, temperature];
    all.sort_by(f64::total_cmp);
    all.dedup();
    let classes = logits.iter().map(Vec::len).max().unwrap_or(0);
    let one = |temperature: f64| {
        let mut mean = vec![0.0; classes];
        for row in logits {
            let cooled: Vec<f32> = row.iter().map(|v| (f64::from(*v) / temperature) as f32).collect();
            let mut p = softmax(&cooled);
            p.sort_by(|a, b| b.total_cmp(a));
            mean.iter_mut().zip(p).for_each(|(m, p)| *m += p / logits.len() as f64);
        }
        Softened { temperature, mean }
    };
    all.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_sorted_before_they_are_averaged() {
        let all = softened(&[vec![0.0, 2.0], vec![4.0, 0.0]], 2.0);
        assert_eq!(all.iter().map(|s| s.temperature).collect::<Vec<_>>(), [1.0, 2.0, 8.0]);
        let sure = |z: f64| 1.0 / (1.0 + (-z).exp());
        let want = (sure(1.0) + sure(2.0)) / 2.0;
        assert!((all[1].mean[0] - want).abs() < 1e-12 && (all[1].mean[1] - (1.0 - want)).abs() < 1e-12);
    }
}
