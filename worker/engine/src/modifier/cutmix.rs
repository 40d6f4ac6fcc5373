//! CutMix (Yun et al., 2019): a box of each picture comes from another one, and the target by the box's share. As in
//! timm: side √(1−λ) with λ ~ Beta(α, α), centre anywhere, clipped at the border, then λ by what is left of the box.

use tl_proto::catalog::{Entry, entry, number};

use super::{Mix, Modifier, Patch, beta};

fn describe() -> Entry {
    Entry {
        params: vec![number("alpha", 1.0, 0.001, 100.0, "of the Beta distribution that the box's share is drawn from")],
        ..entry("cutmix", "pastes a box of each sample's mirror image in the grain, and shares the target by area")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    mix: Some(|params, rng, step, grain, side| {
        let (keep, mut draws) = beta(rng, step, grain, describe().number(params, "alpha"));
        let half = (side as f64 * libm::sqrt(1.0 - keep)) as usize / 2;
        let mut bounds = || {
            let centre = draws.below(side as u64) as usize;
            centre.saturating_sub(half)..(centre + half).min(side)
        };
        let (rows, columns) = (bounds(), bounds());
        let share = (rows.len() * columns.len()) as f64 / (side * side) as f64;
        Mix { keep: (1.0 - share) as f32, patch: Some(Patch { side, rows, columns }) }
    }),
    ..Modifier::new(describe)
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::rng::Philox;

    #[test]
    fn the_target_is_shared_as_the_picture_is() {
        let (side, rng) = (16, Philox::new(3, "cutmix"));
        let width = 3 * side * side;
        // Three pictures, each of one value, so that every pixel tells where it comes from.
        let pixels: Vec<f32> = [1.0, 2.0, 3.0].iter().flat_map(|v| vec![*v; width]).collect();
        let mut shares = Vec::new();
        for step in 0..200 {
            let mix = (MODIFIER.mix.unwrap())(&[].into(), &rng, step, 0, side);
            let mixed = mix.pictures(&pixels, side);
            let own = mixed[..width].iter().filter(|v| **v == 1.0).count();
            let other = mixed[..width].iter().filter(|v| **v == 3.0).count();
            assert_eq!(own + other, width);
            assert_eq!(mix.keep, own as f32 / width as f32, "step {step}");
            assert!(mixed[width..2 * width].iter().all(|v| *v == 2.0), "the middle one mirrors itself");
            let targets = mix.targets(&[1.0, 0.0, 0.0], 1);
            assert_eq!((targets[0], targets[2]), (mix.keep, 1.0 - mix.keep));
            shares.push(mix.keep);
        }
        assert!(shares.iter().any(|s| *s < 0.4) && shares.iter().any(|s| *s > 0.9), "{shares:?}");
    }

    #[test]
    fn a_larger_picture_gets_the_same_box() {
        let mix = Mix { keep: 0.75, patch: Some(Patch { side: 4, rows: 0..2, columns: 2..4 }) };
        let pixels: Vec<f32> = [1.0, 2.0].iter().flat_map(|v| vec![*v; 3 * 64]).collect();
        let mixed = mix.pictures(&pixels, 8);
        let line = |row: usize| mixed[row * 24..(row + 1) * 24].iter().copied().step_by(3).collect::<Vec<f32>>();
        assert_eq!(line(3), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(line(4), [1.0; 8]);
    }
}
