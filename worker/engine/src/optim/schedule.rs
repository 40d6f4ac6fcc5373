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
        assert_eq!(
            [factor("cosine", 0, 10, 3), factor("cosine", 2, 10, 3), factor("cosine", 3, 10, 3)],
            [0.25, 0.75, 1.0]
        );
    }
}
