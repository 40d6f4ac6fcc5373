//! What a pipeline has shown: the figures of its candidate and baselines side by side, and whether transfer paid.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    interval::Mean,
    spec::{JobSpec, Metric},
};

/// Metrics by step.
pub type Figures = BTreeMap<String, BTreeMap<String, f64>>;

/// The end of a comparison, in a word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate is better than the best baseline; with several seeds, so is its whole interval.
    Positive,
    /// It is worse; with several seeds, so is its whole interval.
    Negative,
    /// With several seeds: the interval of the difference has both signs.
    Open,
    /// They are the same.
    Equal,
}

/// Candidate and baselines side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What is compared.
    pub metric: String,
    /// What differences are in: points of a hundred (`points`), or the number itself (`loss`).
    pub unit: &'static str,
    /// By what values are multiplied to be in that.
    pub scale: f64,
    /// The candidate first.
    pub rows: Vec<Row>,
    /// The baseline that came closest, or farthest ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// What that comes to, once there are figures of the candidate and of every baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The same as a sentence.
    pub summary: String,
}

/// What a step, or a group of steps with different seeds, came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The step or group.
    pub name: String,
    /// Its runs.
    pub steps: u32,
    /// The mean over those that are done, with its 95 % interval.
    pub value: Option<Mean>,
    /// How much better the candidate is, over the seeds that both have: positive where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<Mean>,
}

impl Comparison {
    /// That of a pipeline with these figures; nothing where it compares nothing.
    pub fn of(spec: &JobSpec, figures: &Figures) -> Option<Self> {
        let asked = spec.compare.as_ref()?;
        let metric = Metric::named(&asked.metric)?;
        let runs = |name: &str| -> Vec<Option<f64>> {
            let value = |step: &str| Metric::value(&asked.metric, figures.get(step)?);
            spec.runs(name).into_iter().map(|(_, step)| value(step)).collect()
        };
        let candidate = runs(&asked.candidate);
        let row = |name: &String, gain: bool| {
            let own = runs(name);
            let values: Vec<f64> = own.iter().copied().flatten().collect();
            // Both in the order of their seeds, which are the same.
            let pairs = candidate.iter().zip(&own).filter_map(|(a, b)| Some(metric.gain((*a)?, (*b)?)));
            let gains: Vec<f64> = if gain && own.len() == candidate.len() { pairs.collect() } else { Vec::new() };
            Row { name: name.clone(), steps: own.len() as u32, value: Mean::of(&values), gain: Mean::of(&gains) }
        };
        let rows: Vec<Row> = std::iter::once(row(&asked.candidate, false))
            .chain(asked.baselines.iter().map(|name| row(name, true)))
            .collect();
        let hardest = |a: &&Row, b: &&Row| gain_of(a).total_cmp(&gain_of(b));
        let best = rows[1..].iter().filter(|r| r.gain.is_some()).min_by(hardest);
        // Only when all is said: a baseline that still runs may be the best one.
        let complete = rows.len() > 1 && rows.iter().all(|r| r.value.is_some_and(|v| v.runs == r.steps as usize));
        let best = best.filter(|_| complete);
        let verdict = best.and_then(|b| b.gain).map(|gain| metric.verdict(gain));
        let unit = if metric.in_points() { "points" } else { "loss" };
        let mut compared = Self {
            metric: asked.metric.clone(),
            unit,
            scale: metric.scale(),
            best: best.map(|b| b.name.clone()),
            verdict,
            rows,
            summary: String::new(),
        };
        compared.summary = compared.sentence(metric);
        Some(compared)
    }

    fn sentence(&self, metric: Metric) -> String {
        let name = &self.metric;
        let best = self.rows.iter().find(|r| Some(&r.name) == self.best.as_ref());
        let (Some(verdict), Some(best), Some(gain)) = (self.verdict, best, best.and_then(|b| b.gain)) else {
            return match &self.rows[..] {
                [own] => {
                    own.value.map(|v| format!("{name} of `{}`: {}", own.name, metric.shown(&v))).unwrap_or_default()
                }
                rows => lacking(rows),
            };
        };
        // One run of each may differ by chance.
        let chance = if gain.half.is_none() { "; several `seeds` would show whether that is chance" } else { "" };
        let how = |amount: f64| metric.amount(amount, gain);
        let against = format!("`{}`, the best baseline", best.name);
        match verdict {
            Verdict::Positive => format!("transfer paid: {} of {name} against {against}{chance}", how(gain.mean)),
            Verdict::Negative => format!("negative transfer: {} of {name} against {against}{chance}", how(gain.mean)),
            Verdict::Equal => format!("transfer made no difference: the same {name} as {against}"),
            Verdict::Open if gain.mean < 0.0 => {
                let seeds = "more seeds would show whether that is chance";
                format!("negative transfer, if any: {} of {name} against {against}; {seeds}", how(gain.mean))
            }
            Verdict::Open => {
                let seeds = "more seeds would show whether that is chance";
                format!("it is open whether transfer paid: {} of {name} against {against}; {seeds}", how(gain.mean))
            }
        }
    }
}

fn gain_of(row: &Row) -> f64 {
    row.gain.map_or(f64::INFINITY, |g| g.mean)
}

/// Why there is no verdict: what has no figure yet, or never had one.
fn lacking(rows: &[Row]) -> String {
    let runs = |r: &Row| r.value.map_or(0, |v| v.runs);
    let lack = rows.iter().filter(|r| runs(r) < r.steps as usize);
    let lack: Vec<String> = lack.map(|r| format!("`{}` has {} of {} runs", r.name, runs(r), r.steps)).collect();
    if lack.is_empty() { String::new() } else { format!("no verdict: {}", lack.join(", ")) }
}

impl Metric {
    /// What a difference comes to. One that is zero in the digits that people see is none.
    fn verdict(self, gain: Mean) -> Verdict {
        let half = gain.half.unwrap_or(0.0);
        let none = |v: f64| (v * 10f64.powi(self.digits() as i32)).round() == 0.0;
        match gain.mean {
            g if none(g) && none(half) => Verdict::Equal,
            g if g - half > 0.0 => Verdict::Positive,
            g if g + half < 0.0 => Verdict::Negative,
            _ => Verdict::Open,
        }
    }

    fn digits(self) -> usize {
        if self.in_points() { 1 } else { 4 }
    }

    fn scale(self) -> f64 {
        if self.is_part() { 100.0 } else { 1.0 }
    }

    /// A value for people.
    pub fn shown(self, value: &Mean) -> String {
        let (scale, digits) = (self.scale(), self.digits());
        let sign = if self.is_part() { " %" } else { "" };
        let half = value.half.map(|h| format!(" ± {:.digits$}", scale * h)).unwrap_or_default();
        format!("{:.digits$}{half}{sign}", scale * value.mean)
    }

    /// A difference for people, with what it is an interval of.
    fn amount(self, amount: f64, gain: Mean) -> String {
        let shown = self.difference(&Mean { mean: amount, ..gain });
        let unit = if self.in_points() { " points" } else { "" };
        let seeds = gain.half.map(|_| format!(" (95 % interval of {} seeds)", gain.runs)).unwrap_or_default();
        format!("{shown}{unit}{seeds}")
    }

    /// A difference for people.
    pub fn difference(self, gain: &Mean) -> String {
        let digits = self.digits();
        let half = gain.half.map(|h| format!(" ± {h:.digits$}")).unwrap_or_default();
        format!("{:+.digits$}{half}", gain.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CompareSection, StepSection, parse};

    /// A pipeline whose candidate is `main`, with so many seeds, and what its steps came to in order.
    fn compared(metric: &str, baselines: &[&str], seeds: usize, values: &[f64]) -> Comparison {
        let mut spec = parse("schema = 1\njob = { name = \"t\", kind = \"pipeline\" }").unwrap();
        let names: Vec<&str> = std::iter::once("main").chain(baselines.iter().copied()).collect();
        let mut figures = Figures::new();
        for i in 0..seeds * names.len() {
            let (name, seed) = (names[i % names.len()], i / names.len());
            let id = if seed == 0 { name.to_owned() } else { format!("{name}-seed{seed}") };
            if let Some(value) = values.get(i) {
                figures.insert(id.clone(), [(metric.to_owned(), *value)].into());
            }
            let mut job = Box::new(spec.clone());
            job.job.seed = seed as u32;
            spec.step.push(StepSection { id, group: Some(name.into()), spec: Some(job), ..StepSection::default() });
        }
        let baselines = baselines.iter().map(|b| (*b).to_owned()).collect();
        spec.compare = Some(CompareSection { metric: metric.into(), candidate: "main".into(), baselines });
        Comparison::of(&spec, &figures).unwrap()
    }

    #[test]
    fn a_single_run_is_measured_against_the_best_baseline_in_points() {
        let paid = compared("val.accuracy", &["scratch", "probe"], 1, &[0.9, 0.5, 0.85]);
        assert_eq!((paid.verdict, paid.best.as_deref()), (Some(Verdict::Positive), Some("probe")));
        assert_eq!(
            paid.summary,
            "transfer paid: +5.0 points of val.accuracy against `probe`, the best baseline; several `seeds` would \
             show whether that is chance"
        );
        let gains: Vec<f64> = paid.rows[1..].iter().map(|r| r.gain.unwrap().mean).collect();
        assert!((gains[0] - 40.0).abs() < 1e-9 && (gains[1] - 5.0).abs() < 1e-9, "{gains:?}");
        let lost = compared("val.accuracy", &["scratch", "probe"], 1, &[0.8, 0.5, 0.85]);
        assert_eq!(lost.verdict, Some(Verdict::Negative));
        assert!(lost.summary.starts_with("negative transfer: -5.0 points"), "{}", lost.summary);
        let same = compared("val.accuracy", &["scratch"], 1, &[0.8, 0.8]);
        assert_eq!(same.verdict, Some(Verdict::Equal));
        let almost = compared("val.accuracy", &["scratch"], 1, &[0.8004, 0.8]);
        assert_eq!(
            almost.summary,
            "transfer made no difference: the same val.accuracy as `scratch`, the best baseline"
        );
        assert_eq!(compared("val.accuracy", &["scratch"], 1, &[0.8006, 0.8]).verdict, Some(Verdict::Positive));
        let spread = compared("val.accuracy", &["scratch"], 2, &[0.9, 0.8, 0.7, 0.8]);
        assert_eq!(spread.verdict, Some(Verdict::Open), "a mean of zero between two that are not");
    }

    #[test]
    fn of_a_loss_less_is_better() {
        let paid = compared("val.loss", &["a", "b"], 1, &[0.5, 0.75, 1.0]);
        assert_eq!((paid.verdict, paid.best.as_deref(), paid.unit), (Some(Verdict::Positive), Some("a"), "loss"));
        assert!(paid.summary.starts_with("transfer paid: +0.2500 of val.loss against `a`, the best baseline"));
        let kept = compared("source.forgotten", &["a"], 1, &[1.0, 4.0]);
        assert!(kept.summary.starts_with("transfer paid: +3.0 points of source.forgotten"), "{}", kept.summary);
        assert_eq!((kept.unit, kept.scale, paid.scale), ("points", 1.0, 1.0));
    }

    #[test]
    fn seeds_are_paired_and_a_difference_within_their_noise_is_open() {
        // The seeds differ by much more than candidate and baseline do within one.
        let paired = compared("val.accuracy", &["scratch"], 3, &[0.50, 0.45, 0.80, 0.76, 0.20, 0.14]);
        assert_eq!(paired.verdict, Some(Verdict::Positive));
        let gain = paired.rows[1].gain.unwrap();
        // 5, 4 and 6 points: a mean of 5, a deviation of 1, and t = 4.303.
        assert!((gain.mean - 5.0).abs() < 1e-9 && (gain.half.unwrap() - 4.302_653 / 3f64.sqrt()).abs() < 1e-5);
        assert!(paired.summary.contains("+5.0 ± 2.5 points (95 % interval of 3 seeds)"), "{}", paired.summary);
        assert!(paired.summary.ends_with("the best baseline"), "{}", paired.summary);
        let open = compared("val.accuracy", &["scratch"], 2, &[0.5, 0.6, 0.7, 0.65]);
        assert_eq!(open.verdict, Some(Verdict::Open));
        assert!(open.summary.starts_with("negative transfer, if any: -2.5 ±"), "{}", open.summary);
    }

    #[test]
    fn pairs_are_those_of_one_seed_whatever_the_order_of_the_steps() {
        let mut spec = parse("schema = 1\njob = { name = \"t\", kind = \"pipeline\" }").unwrap();
        let mut figures = Figures::new();
        for (id, group, seed, value) in [("a", "a", 1, 0.9), ("b", "a", 2, 0.5), ("c", "c", 2, 0.4), ("d", "c", 1, 0.8)]
        {
            let mut job = Box::new(spec.clone());
            (job.job.seed, job.step) = (seed, Vec::new());
            let group = Some(group.into());
            spec.step.push(StepSection { id: id.into(), group, spec: Some(job), ..StepSection::default() });
            figures.insert(id.into(), [("val.accuracy".to_owned(), value)].into());
        }
        let (metric, candidate) = ("val.accuracy".into(), "a".into());
        spec.compare = Some(CompareSection { metric, candidate, baselines: vec!["c".into()] });
        let compared = Comparison::of(&spec, &figures).unwrap();
        assert_eq!(compared.verdict, Some(Verdict::Positive), "both are ahead by 10 points: {}", compared.summary);
    }

    #[test]
    fn there_is_no_verdict_before_all_is_done_and_none_without_baselines() {
        let early = compared("val.accuracy", &["a", "b"], 1, &[0.9, 0.5]);
        assert_eq!((early.verdict, early.rows[2].value), (None, None));
        assert_eq!(early.summary, "no verdict: `b` has 0 of 1 runs");
        let some = compared("val.accuracy", &["a"], 3, &[0.9, 0.5, 0.9, 0.5, 0.9]);
        assert_eq!((some.verdict, some.summary.as_str()), (None, "no verdict: `a` has 2 of 3 runs"));
        let alone = compared("val.accuracy", &[], 2, &[0.5, 0.75]);
        assert_eq!(alone.verdict, None);
        assert!(alone.summary.starts_with("val.accuracy of `main`: 62.5 ± "), "{}", alone.summary);
    }
}
