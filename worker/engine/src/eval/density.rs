//! Soft neighbourhood density (Saito et al., ICCV 2021): how densely predictions lie together, without labels. Each
//! prediction, as a direction, looks at all others: softmax of cosines over 0.05; the mean entropy of what it sees. Higher
//! is better: one that has many near it is not torn between classes. (A network that says the same of all is the densest:
//! watch it beside the accuracy where labels are.)
//!
//! A sample does not see itself. The authors' code gives it the cosine −1 instead, e⁻²⁰ to e⁻⁴⁰ of its neighbours.

use rayon::prelude::*;

use super::softmax;

/// What cosines are divided by.
const TEMPERATURE: f64 = 0.05;
/// The most samples whose neighbours are looked at: the work goes with the square of their number.
pub const SAMPLES: usize = 4096;

/// The density of predictions, given as logits, in nats; 0 for less than two.
pub fn density(logits: &[Vec<f32>]) -> f64 {
    if logits.len() < 2 {
        return 0.0;
    }
    let directions: Vec<Vec<f64>> = logits.par_iter().map(|row| direction(row)).collect();
    // Each alone, then added in order: the same bits for any number of threads.
    let each: Vec<f64> = (0..directions.len()).into_par_iter().map(|i| entropy(i, &directions)).collect();
    each.iter().sum::<f64>() / each.len() as f64
}

/// The probabilities of a row, over their norm.
fn direction(logits: &[f32]) -> Vec<f64> {
    let p = softmax(logits);
    let norm = p.iter().map(|p| p * p).sum::<f64>().sqrt();
    p.into_iter().map(|p| p / norm).collect()
}

/// Entropy of what one sees of the others: ln Z − Σ e·s / Z.
fn entropy(own: usize, directions: &[Vec<f64>]) -> f64 {
    let (mut total, mut weighed) = (0.0, 0.0);
    for (_, other) in directions.iter().enumerate().filter(|(i, _)| *i != own) {
        let cosine: f64 = directions[own].iter().zip(other).map(|(a, b)| a * b).sum();
        // No cosine is above one: nothing overflows.
        let below = (cosine - 1.0) / TEMPERATURE;
        let e = libm::exp(below);
        total += e;
        weighed += e * below;
    }
    libm::log(total) - weighed / total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `neighbor_density` of the authors in f64: similarities over T, −1/T on the diagonal, softmax, entropy.
    #[test]
    fn it_is_the_entropy_of_softmaxed_cosines() {
        let logits: Vec<Vec<f32>> = (0..7u8)
            .map(|i| (0..4u8).map(|c| f32::from(i * 13 % 7) * 0.4 - f32::from(c * i % 5) * 0.7).collect())
            .collect();
        let unit: Vec<Vec<f64>> = logits
            .iter()
            .map(|row| {
                let e: Vec<f64> = row.iter().map(|v| f64::from(*v).exp()).collect();
                let norm = e.iter().map(|v| v * v).sum::<f64>().sqrt();
                e.into_iter().map(|v| v / norm).collect()
            })
            .collect();
        let mut want = 0.0;
        for i in 0..7 {
            let s =
                |j: usize| if i == j { -1.0 } else { unit[i].iter().zip(&unit[j]).map(|(a, b)| a * b).sum::<f64>() };
            let e: Vec<f64> = (0..7).map(|j| (s(j) / 0.05).exp()).collect();
            let z: f64 = e.iter().sum();
            want -= e.iter().map(|e| e / z * (e / z).ln()).sum::<f64>() / 7.0;
        }
        let got = density(&logits);
        assert!((got - want).abs() < 1e-6 && want > 0.1, "{got} {want}");
    }

    #[test]
    fn clusters_are_denser_than_pairs_and_one_alone_has_no_neighbours() {
        let row = |class: usize, by: f32| {
            let mut row = vec![by; 3];
            row[class] += 9.0;
            row
        };
        let clusters: Vec<Vec<f32>> = (0..12).map(|i| row(i % 3, 0.0)).collect();
        // Of four in a cluster, three are seen, all alike.
        assert!((density(&clusters) - 3f64.ln()).abs() < 1e-3, "{}", density(&clusters));
        let pairs: Vec<Vec<f32>> = (0..6).map(|i| row(i % 3, 0.0)).collect();
        assert!(density(&pairs) < density(&clusters));
        assert_eq!((density(&clusters[..1]), density(&[])), (0.0, 0.0));
    }
}
