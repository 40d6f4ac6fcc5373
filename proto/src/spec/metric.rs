//! What the report of a job says in numbers, by name: gates and comparisons are about these.

use std::collections::BTreeMap;

use super::{JobSpec, SpecError, TOWER};
use crate::catalog::nearest_hint;

/// A number of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    what: What,
    judged: Judged,
}

/// What the number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A part of one, of which more is better, and which people read in per cent.
    Part,
    /// A loss: less is better.
    Loss,
    /// Points of a hundred that are lost: less is better, and below 0 some are gained.
    Lost,
    /// How far two domains are apart, from 0 to 2: less is better.
    Apart,
}

/// Which jobs report it: by what they are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    ByAnything,
    ByClasses,
    ByPairs,
    ByTask,
    InTarget,
    BySource,
    Adapting,
}

const fn metric(what: What, judged: Judged) -> Metric {
    Metric { what, judged }
}

/// Every metric but those of tasks.
const METRICS: &[(&str, Metric)] = &[
    ("val.accuracy", metric(What::Part, Judged::ByAnything)),
    ("val.macro_f1", metric(What::Part, Judged::ByClasses)),
    ("val.loss", metric(What::Loss, Judged::ByAnything)),
    ("val.recall_1", metric(What::Part, Judged::ByPairs)),
    ("val.recall_5", metric(What::Part, Judged::ByPairs)),
    ("val.recall_10", metric(What::Part, Judged::ByPairs)),
    ("target.accuracy", metric(What::Part, Judged::InTarget)),
    ("target.loss", metric(What::Loss, Judged::InTarget)),
    ("source.after", metric(What::Part, Judged::BySource)),
    ("source.forgotten", metric(What::Lost, Judged::BySource)),
    ("shift.a_distance", metric(What::Apart, Judged::Adapting)),
];

/// `TASK` and `WHAT` of `tasks.TASK.WHAT`.
fn of_task(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("tasks.")?.rsplit_once('.')
}

impl Judged {
    /// Why a job has no such number.
    fn lacks(self, name: &str, spec: &JobSpec) -> Option<&'static str> {
        let data = spec.data.as_ref();
        let episodes = data.is_some_and(|d| d.episodes.is_some());
        let pairs = data.is_some_and(|d| d.pairs.is_some()) && spec.nets.contains_key(TOWER);
        let target = data.and_then(|d| d.target.as_ref());
        let task = || of_task(name).is_some_and(|(task, _)| spec.task_names().any(|known| known == task));
        match self {
            Self::ByClasses if episodes => Some("for episodes, which have no classes in common"),
            Self::ByClasses if pairs => Some("for pairs, which have no classes"),
            Self::ByPairs if !pairs => Some("without two networks that learn from pairs"),
            Self::ByTask if !task() => Some("where no task is called so"),
            Self::InTarget if target.is_none_or(|t| t.val.is_none()) => {
                Some("without samples of the target that have labels (`data.target.val`)")
            }
            Self::BySource if data.is_none_or(|d| d.source.is_none()) => Some("without `data.source`"),
            Self::Adapting if target.is_none() => Some("without `data.target`"),
            _ => None,
        }
    }
}

impl Metric {
    /// The metric of a name, whoever reports it.
    pub fn named(name: &str) -> Option<Self> {
        let plain = METRICS.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric);
        plain.or_else(|| match of_task(name)?.1 {
            "accuracy" => Some(metric(What::Part, Judged::ByTask)),
            "loss" => Some(metric(What::Loss, Judged::ByTask)),
            _ => None,
        })
    }

    /// The metric of a name, where `spec` reports it.
    ///
    /// # Errors
    /// One that no report has, or that the report of this job has not.
    pub fn find(key: &str, name: &str, spec: &JobSpec) -> Result<Self, SpecError> {
        let nearest = || {
            let mut names: Vec<String> = METRICS.iter().map(|(name, _)| (*name).to_owned()).collect();
            if !spec.tasks.is_empty() {
                names.extend(spec.task_names().flat_map(|t| ["accuracy", "loss"].map(|w| format!("tasks.{t}.{w}"))));
            }
            nearest_hint(name, &names.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let found = Self::named(name)
            .ok_or_else(|| SpecError::new(format!("`{key}`: no report has a metric `{name}`"), nearest()))?;
        match found.judged.lacks(name, spec) {
            None => Ok(found),
            Some(why) => {
                let usual = || "use `val.accuracy` or `val.loss`".to_owned();
                let hint = if found.judged == Judged::ByTask { nearest() } else { usual() };
                Err(SpecError::new(format!("`{key}`: there is no `{name}` {why}"), hint))
            }
        }
    }

    /// What a report says by this name. Where there is one task, it is what the first of several is called elsewhere.
    pub fn value(name: &str, figures: &BTreeMap<String, f64>) -> Option<f64> {
        let only = || figures.get(&format!("val.{}", name.strip_prefix("tasks.main.")?));
        figures.get(name).or_else(only).copied()
    }

    /// A part of one, which people read in per cent.
    pub fn is_part(self) -> bool {
        self.what == What::Part
    }

    /// Whether differences are in points of a hundred.
    pub fn in_points(self) -> bool {
        matches!(self.what, What::Part | What::Lost)
    }

    /// Whether labels of another domain say it, by which nothing may be decided.
    pub(super) fn is_of_target(self) -> bool {
        self.judged == Judged::InTarget
    }

    /// The least and the largest value that it can have.
    pub fn range(self) -> [f64; 2] {
        match self.what {
            What::Part => [0.0, 1.0],
            What::Loss => [0.0, f64::INFINITY],
            What::Lost => [-100.0, 100.0],
            What::Apart => [0.0, 2.0],
        }
    }

    /// What it is, for people.
    pub(super) fn kind(self) -> &'static str {
        match self.what {
            What::Part => "a part of one",
            What::Loss => "a loss, and not below 0",
            What::Lost => "in points of a hundred",
            What::Apart => "a distance from 0 to 2",
        }
    }

    /// How much better `a` is than `b`, as people read it: in points of a hundred, or in what the number is in.
    pub fn gain(self, a: f64, b: f64) -> f64 {
        if self.is_part() { 100.0 * (a - b) } else { b - a }
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
            Metric::find("gate", name, &parse(&job).unwrap())
                .map(Metric::is_part)
                .map_err(|e| format!("{}; {}", e.message, e.hint))
        };
        let (pairs, tower) = (", pairs = { format = \"g\", train = \"a\" }", "nets = { tower = { backbone = \"b\" } }");
        assert_eq!(find("", "", "val.macro_f1"), Ok(true));
        assert_eq!(find(pairs, tower, "val.recall_5"), Ok(true));
        assert_eq!(find(", target = { train = \"b\", val = \"b\" }", "", "target.loss"), Ok(false));
        let tasks = "[tasks.parity]\nclasses = { even = [\"0\"], odd = [\"1\"] }";
        assert_eq!(find("", tasks, "tasks.parity.accuracy"), Ok(true));
        assert_eq!(find("", tasks, "tasks.main.loss"), Ok(false));
        assert_eq!(find("", "", "tasks.main.loss"), Ok(false), "its only task is the first");
        assert_eq!(find(", source = { val = \"b\" }", "", "source.after"), Ok(true));
        assert_eq!(find(", source = { val = \"b\" }", "", "source.forgotten"), Ok(false));
        assert_eq!(find(", target = { train = \"b\" }", "", "shift.a_distance"), Ok(false));
        for (data, nets, name, part) in [
            ("", tasks, "tasks.party.loss", "where no task is called so; did you mean `tasks.parity.loss`?"),
            ("", tasks, "tasks.parity.f1", "no report has a metric `tasks.parity.f1`"),
            ("", "", "source.after", "without `data.source`"),
            ("", "", "shift.a_distance", "without `data.target`"),
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
    #[test]
    fn the_only_task_of_a_report_is_its_first() {
        let figures = |names: &[(&str, f64)]| -> BTreeMap<String, f64> {
            names.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect()
        };
        let single = figures(&[("val.accuracy", 0.5)]);
        assert_eq!(Metric::value("tasks.main.accuracy", &single), Some(0.5));
        assert_eq!(Metric::value("tasks.other.accuracy", &single), None);
        let several = figures(&[("val.accuracy", 0.5), ("tasks.main.accuracy", 0.25)]);
        assert_eq!(Metric::value("tasks.main.accuracy", &several), Some(0.25));
        assert_eq!(Metric::value("val.loss", &several), None);
    }

    #[test]
    fn what_is_forgotten_is_in_points_of_which_less_is_better() {
        let gain = |name: &str| Metric::named(name).unwrap().gain(3.0, 5.0);
        assert_eq!((gain("source.forgotten"), gain("source.after")), (2.0, -200.0));
    }
}
