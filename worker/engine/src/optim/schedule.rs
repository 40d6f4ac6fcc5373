//! Learning-rate schedules: functions of the step within the stage.

use tl_proto::catalog::{Entry, entry};

/// One schedule: the part of the stage that is done, in `[0, 1)`, to a factor.
pub struct Schedule {
    /// Name in the job file.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// The factor.
    pub factor: fn(done: f64) -> f64,
}

/// Every schedule.
pub const ALL: &[Schedule] = &[
    Schedule { name: "constant", doc: "the same rate throughout", factor: |_| 1.0 },
    Schedule {
        name: "cosine",
        doc: "half a cosine, down to zero",
        factor: |d| 0.5 * (1.0 + libm::cos(std::f64::consts::PI * d)),
    },
    Schedule {
        name: "one_cycle",
        doc: "up from a 25th in a quarter of the stage, then down to a 100000th, along cosines",
        // Smith and Topin, 2018, with fastai's defaults; momentum stays as it is.
        factor: |d| {
            let along = |from: f64, to: f64, part: f64| {
                from + (to - from) * 0.5 * (1.0 - libm::cos(std::f64::consts::PI * part))
            };
            if d < 0.25 { along(1.0 / 25.0, 1.0, d / 0.25) } else { along(1.0, 1e-5, (d - 0.25) / 0.75) }
        },
    },
    Schedule {
        name: "step",
        doc: "a tenth after each third of the stage",
        factor: |d| [1.0, 0.1, 0.01][(d * 3.0).min(2.0) as usize],
    },
];

/// The factor at `step` of `total`, after a linear rise over `warmup` steps.
pub fn factor(name: &str, step: u64, total: u64, warmup: u64) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / (warmup + 1) as f64;
    }
    let schedule = ALL.iter().find(|s| s.name == name).unwrap_or(&ALL[0]);
    (schedule.factor)((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64)
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(|s| entry(s.name, s.doc)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_their_known_values() {
        assert_eq!(factor("constant", 7, 10, 0), 1.0);
        assert!((factor("cosine", 5, 10, 0) - 0.5).abs() < 1e-12);
        assert_eq!(factor("step", 3, 9, 0), 0.1);
        // fastai's combined_cos(.25, 1/25, 1, 1e-5) at the start, half-way up, at the top and half-way down.
        for (step, want) in [(0, 0.04), (125, 0.52), (250, 1.0), (625, 0.500_005)] {
            assert!((factor("one_cycle", step, 1000, 0) - want).abs() < 1e-12, "{step}");
        }
        assert_eq!(
            [factor("cosine", 0, 10, 3), factor("cosine", 2, 10, 3), factor("cosine", 3, 10, 3)],
            [0.25, 0.75, 1.0]
        );
    }
}
