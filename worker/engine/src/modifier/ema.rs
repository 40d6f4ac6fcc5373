//! Exponential moving average of the weights (Polyak and Juditsky, 1992), batch-norm statistics included, as in timm's
//! `ModelEmaV3`: what is judged, kept as the best and handed on at the end of a stage is the average.

use tl_proto::catalog::{Entry, entry, number};

use super::Modifier;

fn describe() -> Entry {
    Entry {
        params: vec![
            number("decay", 0.9998, 0.0, 0.999_999, "part of the average that is kept in each step"),
            number(
                "warmup",
                1.0,
                0.0,
                1e6,
                "let the decay rise as 1 - (1 + steps/warmup)^(-2/3), so that the average of a short run is one of its \
                 steps, too; 0: from the start",
            ),
        ],
        ..entry("ema", "averages weights and batch-norm statistics over steps; a stage hands its average on")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    average: Some(|params, steps| {
        let entry = describe();
        let (decay, warmup) = (entry.number(params, "decay"), entry.number(params, "warmup"));
        if steps == 0 {
            // The first average is what the first step came to.
            return 0.0;
        }
        if warmup == 0.0 { decay } else { decay.min(1.0 - libm::pow(1.0 + steps as f64 / warmup, -2.0 / 3.0)) }
    }),
    ..Modifier::new(describe)
};

#[cfg(test)]
mod tests {
    use tl_proto::spec::Params;

    use super::*;

    #[test]
    fn decays_are_those_of_timm() {
        let decay = |params: &[(&str, f64)], updates| {
            let params: Params = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
            (MODIFIER.average.unwrap())(&params, updates)
        };
        let from_the_start = [("warmup", 0.0)];
        assert_eq!((decay(&[], 0), decay(&from_the_start, 0), decay(&from_the_start, 1)), (0.0, 0.0, 0.9998));
        assert_eq!(decay(&[("decay", 0.9), ("warmup", 0.0)], 7), 0.9);
        // timm.utils.ModelEmaV3(use_warmup=True).get_decay(step) at steps 2, 8 and 1e9; it counts from the step before.
        for (updates, want) in [(1, 0.370_039_475_052_563_4), (7, 0.75), (999_999_999, 0.9998)] {
            assert!((decay(&[], updates) - want).abs() < 1e-12, "{updates}: {}", decay(&[], updates));
        }
    }
}
