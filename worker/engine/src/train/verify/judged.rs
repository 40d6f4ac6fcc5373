//! A job that trains nothing has no gradients: what it says is to be the same on any number of ranks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tl_proto::spec::Reduction;

use super::{
    super::{Config, export::Report, run},
    on_ranks,
};
use crate::{Error, Result, link::Deaf};

/// What a comparison of reports came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Ranks that were compared with one.
    pub ranks: usize,
    /// What was judged: samples, pairs, or queries of episodes.
    pub samples: usize,
    /// The first figure that is another one.
    pub differs: Option<String>,
}

impl Judged {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        self.differs.is_none()
    }
}

/// Compares what a job reports on one rank with what it does on two and three.
///
/// # Errors
/// Whatever would stop the job.
pub(super) fn judged(config: &Config) -> Result<Vec<Judged>> {
    let wanted = report(config, 1)?;
    let against = |ranks: usize| -> Result<Judged> {
        let differs = first_other("", &figures(&wanted)?, &figures(&report(config, ranks)?)?);
        Ok(Judged { ranks, samples: wanted.evaluation.samples, differs })
    };
    (2..=3).map(against).collect()
}

/// What a job reports on so many ranks, which know nothing of what others have kept.
fn report(config: &Config, world: usize) -> Result<Report> {
    let folder = config.work.join(format!("judged-{world}"));
    let made = on_ranks(world, |group| {
        let (work, cache) = (folder.join(format!("rank-{}", group.rank())), folder.join("cache"));
        std::fs::create_dir_all(&work).map_err(Error::disk("make a folder"))?;
        let mut spec = config.spec.clone();
        spec.cluster.reduction = Reduction::Ordered;
        run(&Config { spec, look: false, work, cache, resume: Vec::new(), ..config.clone() }, group, &mut Deaf)
    })?;
    std::fs::remove_dir_all(&folder).map_err(Error::disk("remove a folder"))?;
    Ok(made)
}

/// All of a report but for how often a frozen part ran.
fn figures(report: &Report) -> Result<Value> {
    let mut figures = serde_json::to_value(report).map_err(|e| Error::Internal(e.to_string()))?;
    if let Some(all) = figures.as_object_mut() {
        all.remove("prefix");
    }
    Ok(figures)
}

/// Where two values first differ, by the names on the way there.
fn first_other(at: &str, wanted: &Value, got: &Value) -> Option<String> {
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match (wanted, got) {
        (Value::Object(wanted), Value::Object(got)) => {
            let names: BTreeSet<&String> = wanted.keys().chain(got.keys()).collect();
            names.into_iter().find_map(|name| match (wanted.get(name), got.get(name)) {
                (Some(wanted), Some(got)) => first_other(&below(name), wanted, got),
                _ => Some(below(name)),
            })
        }
        (Value::Array(wanted), Value::Array(got)) if wanted.len() == got.len() => {
            let mut pairs = wanted.iter().zip(got).enumerate();
            pairs.find_map(|(i, (wanted, got))| first_other(&below(&i.to_string()), wanted, got))
        }
        _ => (wanted != got).then(|| at.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_figure_that_is_another_one_is_named() {
        let wanted = json!({ "evaluation": { "accuracy": 0.5, "confusion": [[1, 0], [2, 3]] }, "kind": "zero_shot" });
        let other = |path: &str, value: Value| {
            let mut got = wanted.clone();
            *got.pointer_mut(path).unwrap() = value;
            first_other("", &wanted, &got)
        };
        assert_eq!(other("/kind", json!("zero_shot")), None);
        assert_eq!(other("/evaluation/accuracy", json!(0.1 + 0.4)), None);
        assert_eq!(other("/evaluation/accuracy", json!(0.500_000_000_000_000_1)), Some("evaluation.accuracy".into()));
        assert_eq!(other("/evaluation/confusion/1/0", json!(3)), Some("evaluation.confusion.1.0".into()));
        assert_eq!(other("/evaluation/confusion", json!([[1, 0]])), Some("evaluation.confusion".into()));
        assert_eq!(other("/evaluation", json!({ "accuracy": 0.5 })), Some("evaluation.confusion".into()));
    }
}
