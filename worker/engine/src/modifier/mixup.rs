//! Mixup (Zhang et al., 2018): a sample and its target are blended with another one's, λ ~ Beta(α, α) per grain.

use tl_proto::catalog::{Entry, entry, number};

use super::{Mix, Modifier, beta};

fn describe() -> Entry {
    Entry {
        params: vec![number("alpha", 0.2, 0.001, 100.0, "of the Beta distribution that the weight is drawn from")],
        ..entry("mixup", "blends each sample and its target with its mirror image in the grain")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    mix: Some(|params, rng, step, grain, _| {
        let (keep, _) = beta(rng, step, grain, describe().number(params, "alpha"));
        Mix { keep: keep as f32, patch: None }
    }),
    ..Modifier::new(describe)
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::rng::Philox;

    #[test]
    fn weights_follow_the_beta_distribution() {
        let rng = Philox::new(1, "mixup");
        let draw = |alpha: f64, step| {
            let params = [("alpha".to_owned(), alpha.into())].into();
            f64::from((MODIFIER.mix.unwrap())(&params, &rng, step, 0, 8).keep)
        };
        for alpha in [0.2, 1.0, 4.0] {
            let draws: Vec<f64> = (0..4000).map(|k| draw(alpha, k)).collect();
            let mean = draws.iter().sum::<f64>() / 4000.0;
            let var = draws.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / 4000.0;
            assert!(
                (mean - 0.5).abs() < 0.03 && (var - 0.25 / (2.0 * alpha + 1.0)).abs() < 0.015,
                "{alpha}: {mean} {var}"
            );
        }
    }

    #[test]
    fn rows_are_blended_with_their_mirror_image() {
        assert_eq!(Mix { keep: 0.75, patch: None }.targets(&[0.0, 4.0, 8.0], 1), [2.0, 4.0, 6.0]);
    }
}
