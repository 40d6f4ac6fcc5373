//! Checks of a pipeline that need no catalog: what its phases, their order and its comparison are made from.

use std::collections::BTreeSet;

use super::{
    CompareSection, JobSpec, Metric, SpecError,
    check::{Checked, check_shape, in_step, require},
};
use crate::catalog::nearest_hint;

/// Most steps of a pipeline.
pub(super) const MAX_STEPS: usize = 64;
/// Most characters of the id of a step.
pub(super) const MAX_ID: usize = 40;
/// Most gates of a step.
const MAX_GATES: usize = 8;

/// Checks the steps of a pipeline: names, order, gates, whose models they take, and what is compared.
pub(super) fn check_steps(spec: &JobSpec) -> Checked {
    require(!spec.step.is_empty(), || {
        ("a pipeline needs at least one `[[step]]`".into(), "add one, with `id` and `job = \"FILE.toml\"`".into())
    })?;
    require(spec.step.len() <= MAX_STEPS, || (format!("a pipeline has at most {MAX_STEPS} steps"), "split it".into()))?;
    let mut seen = BTreeSet::new();
    for step in &spec.step {
        let id = step.id.as_str();
        // It becomes a part of other names: of phases, and of files on the nodes.
        require(is_plain(id), || {
            (format!("step id `{id}` must be letters, digits, `-` or `_`, at most {MAX_ID}"), "rename the step".into())
        })?;
        for need in &step.needs {
            // Needing only earlier steps is what makes the graph acyclic.
            require(seen.contains(need.as_str()), || {
                let known: Vec<&str> = seen.iter().copied().collect();
                (format!("step `{id}` needs `{need}`, which is no earlier step"), nearest_hint(need, &known))
            })?;
        }
        require(seen.insert(id), || (format!("two steps are called `{id}`"), "rename one".into()))?;
        let inner = step.spec.as_deref().ok_or_else(|| {
            SpecError::new(format!("step `{id}` has no job"), "write `job = \"FILE.toml\"` or `[step.spec]`")
        })?;
        require(step.set.is_empty(), || {
            (
                format!("step `{id}` has `set` beside a job that is written out"),
                "`set` replaces keys of the file in `job`; write them into the job itself".into(),
            )
        })?;
        require(inner.job.kind != JobSpec::PIPELINE, || {
            (format!("step `{id}` is a pipeline itself"), "make its steps steps of this one".into())
        })?;
        require(inner.job.baseline.is_empty() && inner.job.seeds.is_empty(), || {
            (
                format!("step `{id}` has `baseline` or `seeds` of its own"),
                "write baselines as steps with a `[compare]`; `seeds` belong into the pipeline's `[job]`".into(),
            )
        })?;
        check_shape(inner).map_err(|e| in_step(id, e))?;
        require(step.gate.0.len() <= MAX_GATES, || {
            (format!("step `{id}` has {} gates", step.gate.0.len()), format!("keep at most {MAX_GATES}"))
        })?;
        step.gate.0.iter().try_for_each(|g| g.check(inner)).map_err(|e| in_step(id, e))?;
        let nets = inner.model.iter().chain(inner.nets.values());
        for source in nets.filter_map(|m| m.weights.as_deref()?.strip_prefix("step:")) {
            require(step.needs.iter().any(|n| n == source), || {
                (
                    format!("step `{id}` takes weights from `{source}` but does not need it"),
                    format!("add `needs = [\"{source}\"]`"),
                )
            })?;
        }
    }
    check_groups(spec)?;
    spec.compare.as_ref().map_or(Ok(()), |compare| check_compare(spec, compare))
}

/// Checks that the name of a group is no step's outside of it.
fn check_groups(spec: &JobSpec) -> Checked {
    for name in spec.step.iter().filter_map(|s| s.group.as_deref()) {
        let stranger = spec.step.iter().any(|s| s.id == name && s.group.as_deref() != Some(name));
        require(is_plain(name) && !stranger, || {
            let rule = "and no step's outside of it";
            (
                format!("the name `{name}` of a group must be letters, digits, `-` or `_`, at most {MAX_ID}, {rule}"),
                "rename the group".into(),
            )
        })?;
    }
    Ok(())
}

fn check_compare(spec: &JobSpec, compare: &CompareSection) -> Checked {
    require(!compare.candidate.is_empty(), || {
        ("`[compare]` names no candidate".into(), "write `candidate = \"STEP\"`".into())
    })?;
    for name in [&compare.candidate].into_iter().chain(&compare.baselines) {
        let members = spec.members(name);
        require(!members.is_empty(), || {
            let names = spec.step.iter().flat_map(|s| [Some(s.id.as_str()), s.group.as_deref()]);
            let known: BTreeSet<&str> = names.flatten().collect();
            let known: Vec<&str> = known.into_iter().collect();
            (format!("`compare` names step `{name}`, which is not there"), nearest_hint(name, &known))
        })?;
        for (id, inner, _) in spec.steps().into_iter().filter(|(id, _, _)| members.contains(id)) {
            Metric::find("compare.metric", &compare.metric, inner).map_err(|e| in_step(id, e))?;
        }
        check_seeds(spec, &compare.candidate, name)?;
    }
    require(compare.baselines.iter().collect::<BTreeSet<_>>().len() == compare.baselines.len(), || {
        ("`compare` names a baseline twice".into(), "name each of them once".into())
    })?;
    require(!compare.baselines.contains(&compare.candidate), || {
        (format!("`compare` measures `{}` against itself", compare.candidate), "name other steps as baselines".into())
    })
}

/// What runs with several seeds is compared seed by seed.
fn check_seeds(spec: &JobSpec, candidate: &str, name: &str) -> Checked {
    let seeds = |name: &str| spec.runs(name).iter().map(|(seed, _)| seed.to_string()).collect::<Vec<_>>();
    let (own, others) = (seeds(candidate), seeds(name));
    let several = own.len().max(others.len()) > 1;
    require(own == others || !several, || {
        let (own, others) = (own.join(", "), others.join(", "));
        let message = format!("`compare` takes pairs of one seed: `{candidate}` has {own}, and `{name}` has {others}");
        (message, "give the steps of both the same seeds (`job.seed`)".into())
    })
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    !name.is_empty() && name.len() <= MAX_ID && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{StepSection, check::tests::GOOD, parse};

    /// A pipeline of good jobs, by their ids and what they need.
    fn pipeline(steps: &[(&str, &[&str])]) -> JobSpec {
        let inner = parse(GOOD).unwrap();
        let mut spec = inner.clone();
        spec.job.kind = JobSpec::PIPELINE.into();
        let step = |(id, needs): &(&str, &[&str])| StepSection {
            id: (*id).into(),
            needs: needs.iter().map(|n| (*n).into()).collect(),
            spec: Some(Box::new(inner.clone())),
            ..StepSection::default()
        };
        spec.step = steps.iter().map(step).collect();
        spec
    }

    fn compare(metric: &str, candidate: &str, baselines: &[&str]) -> Option<CompareSection> {
        let baselines = baselines.iter().map(|b| (*b).into()).collect();
        Some(CompareSection { metric: metric.into(), candidate: candidate.into(), baselines })
    }

    #[test]
    fn what_phases_are_made_from_is_checked_without_a_catalog() {
        let with = |change: &dyn Fn(&mut JobSpec)| {
            let mut spec = pipeline(&[("a", &[]), ("b", &["a"])]);
            change(&mut spec);
            check_shape(&spec).map_err(|e| e.message)
        };
        assert_eq!(with(&|_| {}), Ok(()));
        let inner = |s: &mut JobSpec, change: &dyn Fn(&mut JobSpec)| change(s.step[1].spec.as_mut().unwrap());
        type Change<'a> = &'a dyn Fn(&mut JobSpec);
        let rows: [(&str, Change<'_>); 21] = [
            ("two steps are called `a`", &|s| s.step[1].id = "a".into()),
            ("no earlier step", &|s| s.step[1].needs = vec!["c".into()]),
            ("no earlier step", &|s| s.step[0].needs = vec!["b".into()]),
            ("needs at least one", &|s| s.step.clear()),
            ("has no job", &|s| s.step[0].spec = None),
            ("at most 64 steps", &|s| s.step = vec![s.step[0].clone(); 65]),
            ("is a pipeline itself", &|s| inner(s, &|i| i.job.kind = JobSpec::PIPELINE.into())),
            ("step `b`: 2 grains cannot feed 3 ranks", &|s| inner(s, &|i| i.cluster.ranks.min = 3)),
            ("does not need it", &|s| inner(s, &|i| i.model.as_mut().unwrap().weights = Some("step:c".into()))),
            ("which is not there", &|s| s.compare = compare("val.accuracy", "z", &["a"])),
            ("against itself", &|s| s.compare = compare("val.accuracy", "a", &["b", "a"])),
            ("names a baseline twice", &|s| s.compare = compare("val.accuracy", "b", &["a", "a"])),
            ("step `a` has 9 gates", &|s| s.step[0].gate.0 = vec!["val.loss < 1".parse().unwrap(); 9]),
            ("names no candidate", &|s| s.compare = compare("val.accuracy", "", &["a"])),
            ("has a metric `accuracy`", &|s| s.compare = compare("accuracy", "b", &["a"])),
            ("step `b`: the gate `val.accuracy > 1` never holds", &|s| {
                s.step[1].gate.0 = vec!["val.loss < 1".parse().unwrap(), "val.accuracy > 1".parse().unwrap()];
            }),
            ("the name `b` of a group", &|s| s.step[0].group = Some("b".into())),
            ("the name `a/b` of a group", &|s| s.step[0].group = Some("a/b".into())),
            ("`set` beside", &|s| s.step[0].set = [("job.seed".to_owned(), 3.into())].into()),
            ("labels of that domain", &|s| {
                let target =
                    Some(crate::spec::TargetSection { train: "x".into(), val: Some("x".into()), ..Default::default() });
                inner(s, &|i| i.data.as_mut().unwrap().target = target.clone());
                s.step[1].gate.0 = vec!["target.loss < 1".parse().unwrap()];
            }),
            ("`seeds` of its own", &|s| inner(s, &|i| i.job.seeds = vec![1, 2])),
        ];
        for (part, change) in rows {
            assert!(with(change).is_err_and(|message| message.contains(part)), "{part}: {:?}", with(change));
        }
    }

    #[test]
    fn groups_are_compared_as_steps_are() {
        let mut spec = pipeline(&[("a", &[]), ("b", &[]), ("c", &[])]);
        (spec.step[0].group, spec.step[1].group) = (Some("a".into()), Some("a".into()));
        spec.step.push(StepSection { id: "d".into(), ..spec.step[2].clone() });
        (spec.step[2].group, spec.step[3].group) = (Some("c".into()), Some("c".into()));
        let seeds = |spec: &mut JobSpec, seeds: [u32; 4]| {
            let inner = spec.step.iter_mut().filter_map(|s| s.spec.as_mut());
            inner.zip(seeds).for_each(|(inner, seed)| inner.job.seed = seed);
        };
        seeds(&mut spec, [1, 2, 2, 1]);
        spec.compare = compare("val.loss", "a", &["c"]);
        check_shape(&spec).unwrap();
        seeds(&mut spec, [1, 2, 3, 1]);
        let other = check_shape(&spec).unwrap_err().message;
        assert!(other.contains("`a` has 1, 2, and `c` has 1, 3"), "{other}");
        spec.step.truncate(3);
        let fewer = check_shape(&spec).unwrap_err().message;
        assert!(fewer.contains("`a` has 1, 2, and `c` has 3"), "{fewer}");
        spec.step[2].group = None;
        spec.compare = compare("val.loss", "b", &["c"]);
        spec.step[1].group = None;
        check_shape(&spec).unwrap();
        (spec.step[1].group, spec.compare) = (Some("a".into()), compare("val.loss", "a", &[]));
        check_shape(&spec).unwrap();
        assert_eq!((spec.members("a"), spec.members("c"), spec.main_step()), (vec!["a", "b"], vec!["c"], "a"));
        spec.compare = None;
        assert_eq!(spec.main_step(), "c");
    }
}
