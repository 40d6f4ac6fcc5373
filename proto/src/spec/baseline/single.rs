//! The first of several tasks alone, on the same network in the same stages: what the others help it, or cost it.

use super::{
    super::{JobSpec, Rates, SpecError},
    Baseline,
};

pub(super) const BASELINE: Baseline = Baseline {
    name: "single",
    doc: "the first task alone, in the same stages",
    kinds: &["multitask"],
    has_stage: false,
    make: |given, job| {
        job.job.kind = "finetune".into();
        job.tasks.clear();
        job.objective.clear();
        for stage in &mut job.stage {
            stage.train = stage.train.iter().filter_map(|rule| alone(rule)).collect();
            if let Rates::Rules(rules) = &mut stage.lr {
                *rules = rules.iter().filter_map(|(rule, lr)| Some((alone(rule)?, *lr))).collect();
            }
        }
        // Only other heads were trained there.
        job.stage.retain(|stage| !stage.train.is_empty());
        if job.stage.is_empty() {
            let message = format!("`{}` would train nothing: no stage trains the first task", given.name);
            return Err(SpecError::new(
                message,
                "name `head` or `tasks.main.head` in a stage, or leave the baseline out",
            ));
        }
        monitors(job).filter(|m| m.starts_with("tasks.")).for_each(|m| {
            *m = format!("val.{}", m.rsplit('.').next().unwrap_or_default());
        });
        Ok(())
    },
};

/// What a rule names where the first task is the only one; nothing if it is about another.
fn alone(rule: &str) -> Option<String> {
    let Some(rest) = rule.strip_prefix("tasks.") else { return Some(rule.to_owned()) };
    rest.strip_prefix("main.").map(str::to_owned)
}

fn monitors(job: &mut JobSpec) -> impl Iterator<Item = &mut String> {
    let stages = job.stage.iter_mut().flat_map(|s| {
        let plateau = s.plateau.iter_mut().map(|p| &mut p.monitor);
        plateau.chain(s.advance.iter_mut().map(|a| &mut a.monitor))
    });
    job.stop.iter_mut().map(|s| &mut s.monitor).chain(stages)
}
