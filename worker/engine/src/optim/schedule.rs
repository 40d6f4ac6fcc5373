//! Learning-rate schedules: functions of the step within the stage. A new one is an entry of [`ALL`].

use tl_proto::{
    catalog::{Entry, entry},
    spec::{CycleSection, StageSection},
};

use super::Rate;

/// One schedule: a stage and the part of it that is done, in `[0, 1)`, to a factor.
pub struct Schedule {
    /// Name in the job file.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// The factor.
    pub factor: fn(&StageSection, done: f64) -> f64,
}

/// Every schedule.
pub const ALL: &[Schedule] = &[
    Schedule { name: "constant", doc: "the same rate throughout", factor: |_, _| 1.0 },
    Schedule {
        name: "cosine",
        doc: "half a cosine, down to zero",
        factor: |_, d| 0.5 * (1.0 + libm::cos(std::f64::consts::PI * d)),
    },
    Schedule {
        name: "one_cycle",
        doc: "up from a 25th in a quarter of the stage, then down to a 100000th, along cosines; `stage.cycle` shapes it",
        factor: |stage, d| {
            let c = stage.cycle.clone().unwrap_or_default();
            up_and_down(&c, d, [1.0 / c.div, 1.0, 1.0 / c.div_final])
        },
    },
    Schedule {
        name: "step",
        doc: "a tenth after each third of the stage",
        factor: |_, d| [1.0, 0.1, 0.01][(d * 3.0).min(2.0) as usize],
    },
    Schedule {
        name: "plateau",
        doc: "a tenth after ten epochs in which the validation loss did not improve; `stage.plateau` shapes it",
        // The factor is part of the state: it depends on what the epochs came to.
        factor: |_, _| 1.0,
    },
];

/// Along a half cosine from the first value to the second in the first part of the stage, then on to the third.
fn up_and_down(cycle: &CycleSection, done: f64, [first, top, last]: [f64; 3]) -> f64 {
    let along =
        |from: f64, to: f64, part: f64| from + (to - from) * 0.5 * (1.0 - libm::cos(std::f64::consts::PI * part));
    if done < cycle.pct_start {
        along(first, top, done / cycle.pct_start)
    } else {
        along(top, last, (done - cycle.pct_start) / (1.0 - cycle.pct_start).max(1e-12))
    }
}

/// The rate at `step` of `total` where the whole rate is `lr`, after a linear rise over the stage's warm-up.
pub fn rate(stage: &StageSection, lr: f64, step: u64, total: u64) -> Rate {
    let warmup = u64::from(stage.warmup);
    if step < warmup {
        return (lr * ((step + 1) as f64 / (warmup + 1) as f64)).into();
    }
    let schedule = ALL.iter().find(|s| s.name == stage.schedule).unwrap_or(&ALL[0]);
    let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    let momentum = stage.cycle.as_ref().and_then(|c| Some(up_and_down(c, done, c.momentum?)));
    Rate { lr: lr * (schedule.factor)(stage, done), momentum }
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(|s| entry(s.name, s.doc)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(schedule: &str, warmup: u32) -> StageSection {
        StageSection { schedule: schedule.into(), warmup, ..StageSection::new("s", 1, &["*"], 1.0) }
    }

    #[test]
    fn schedules_have_their_known_values() {
        let factor = |name: &str, step, total, warmup| rate(&stage(name, warmup), 1.0, step, total).lr;
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

    #[test]
    fn a_cycle_moves_rate_and_momentum_against_each_other() {
        // fastai's combined_cos(.3, lr/5, lr, lr/1e5) and combined_cos(.3, .95, .85, .95).
        let cycle = CycleSection { pct_start: 0.3, div: 5.0, div_final: 1e5, momentum: Some([0.95, 0.85, 0.95]) };
        let stage = StageSection { cycle: Some(cycle), ..stage("one_cycle", 0) };
        for (step, lr, momentum) in [(0, 0.002, 0.95), (150, 0.006, 0.9), (300, 0.01, 0.85), (650, 0.005_000_05, 0.9)] {
            let got = rate(&stage, 0.01, step, 1000);
            assert!((got.lr - lr).abs() < 1e-12, "{step}: {got:?}");
            assert!((got.momentum.unwrap() - momentum).abs() < 1e-12, "{step}: {got:?}");
        }
    }
}
