//! What the report of a job says in numbers, by name: gates and comparisons are about these.

use super::{JobSpec, SpecError};
use crate::catalog::nearest_hint;

/// A number of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// A part of one, of which more is better, and which people read in per cent; else a loss.
    pub is_part: bool,
}

const fn part(name: &'static str) -> Metric {
    Metric { name, is_part: true }
}

const fn loss(name: &'static str) -> Metric {
    Metric { name, is_part: false }
}

/// Every metric.
pub const METRICS: &[Metric] =
    &[part("val.accuracy"), part("val.macro_f1"), loss("val.loss"), part("target.accuracy"), loss("target.loss")];

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
        let labelled = spec.data.as_ref().and_then(|d| d.target.as_ref()).is_some_and(|t| t.val.is_some());
        if name.starts_with("target.") && !labelled {
            let hint = "add `data.target.val`, or use `val.accuracy`";
            return Err(SpecError::new(
                format!("`{key}`: there is no `{name}` without samples of the target that have labels"),
                hint,
            ));
        }
        Ok(found)
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
