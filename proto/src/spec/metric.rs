//! What the report of a job says in numbers, by name: gates and comparisons are about these.

use super::{JobSpec, SpecError, TOWER};
use crate::catalog::nearest_hint;

/// A number of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// A part of one, of which more is better, and which people read in per cent; else a loss.
    pub is_part: bool,
    judged: Judged,
}

/// Which jobs report it: by what they are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    ByAnything,
    ByClasses,
    ByPairs,
    InTarget,
}

const fn part(name: &'static str, judged: Judged) -> Metric {
    Metric { name, is_part: true, judged }
}

const fn loss(name: &'static str, judged: Judged) -> Metric {
    Metric { name, is_part: false, judged }
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    part("val.accuracy", Judged::ByAnything),
    part("val.macro_f1", Judged::ByClasses),
    loss("val.loss", Judged::ByAnything),
    part("val.recall_1", Judged::ByPairs),
    part("val.recall_5", Judged::ByPairs),
    part("val.recall_10", Judged::ByPairs),
    part("target.accuracy", Judged::InTarget),
    loss("target.loss", Judged::InTarget),
];

impl Judged {
    /// Why a job has no such number.
    fn lacks(self, spec: &JobSpec) -> Option<&'static str> {
        let data = spec.data.as_ref();
        let episodes = data.is_some_and(|d| d.episodes.is_some());
        let pairs = data.is_some_and(|d| d.pairs.is_some()) && spec.nets.contains_key(TOWER);
        let target = data.and_then(|d| d.target.as_ref()).is_some_and(|t| t.val.is_some());
        match self {
            Self::ByClasses if episodes => Some("for episodes, which have no classes in common"),
            Self::ByClasses if pairs => Some("for pairs, which have no classes"),
            Self::ByPairs if !pairs => Some("without two networks that learn from pairs"),
            Self::InTarget if !target => Some("without samples of the target that have labels (`data.target.val`)"),
            _ => None,
        }
    }
}

impl Metric {
    /// The metric of a name, where `spec` reports it.
    ///
    /// # Errors
    /// One that no report has, or that the report of this job has not.
    pub fn find(key: &str, name: &str, spec: &JobSpec) -> Result<Self, SpecError> {
        let names: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
        let found = METRICS.iter().find(|m| m.name == name).copied();
        let found = found.ok_or_else(|| {
            SpecError::new(format!("`{key}`: no report has a metric `{name}`"), nearest_hint(name, &names))
        })?;
        match found.judged.lacks(spec) {
            None => Ok(found),
            Some(why) => {
                Err(SpecError::new(format!("`{key}`: there is no `{name}` {why}"), "use `val.accuracy` or `val.loss`"))
            }
        }
    }

    /// The largest value that it can have; the least is 0.
    pub fn most(self) -> f64 {
        if self.is_part { 1.0 } else { f64::INFINITY }
    }

    /// How much better `a` is than `b`, as people read it: in points of a hundred, or in what the loss is in.
    pub fn gain(self, a: f64, b: f64) -> f64 {
        if self.is_part { 100.0 * (a - b) } else { b - a }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    #[test]
    fn a_metric_is_one_that_the_job_reports() {
        let find = |data: &str, nets: &str, name: &str| {
            let job = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"f\" }}\n\
                 data = {{ format = \"g\", train = \"a\", val = \"a\", batch = 1{data} }}\n{nets}"
            );
            Metric::find("gate", name, &parse(&job).unwrap()).map(|m| m.is_part).map_err(|e| e.message)
        };
        let (pairs, tower) = (", pairs = { format = \"g\", train = \"a\" }", "nets = { tower = { backbone = \"b\" } }");
        assert_eq!(find("", "", "val.macro_f1"), Ok(true));
        assert_eq!(find(pairs, tower, "val.recall_5"), Ok(true));
        assert_eq!(find(", target = { train = \"b\", val = \"b\" }", "", "target.loss"), Ok(false));
        for (data, nets, name, part) in [
            ("", "", "val.recal_1", "no report has a metric `val.recal_1`"),
            ("", "", "val.recall_1", "without two networks that learn from pairs"),
            (pairs, "", "val.recall_1", "without two networks"),
            (pairs, tower, "val.macro_f1", "for pairs"),
            (", episodes = {}", "", "val.macro_f1", "for episodes"),
            (", target = { train = \"b\" }", "", "target.accuracy", "without samples of the target that have labels"),
        ] {
            let message = find(data, nets, name).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
