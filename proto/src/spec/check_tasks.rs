//! Checks of `[tasks.NAME]`: there for kinds of job that learn several tasks at once, and only then.

use std::collections::BTreeSet;

use super::{
    DataSection, JobSpec, MAIN, SpecError, TaskSection,
    check::{Checked, check_class_weights, found, require, within},
    check_model::check_head,
    check_params::check_params,
};
use crate::catalog::{Catalog, Entry, nearest_hint};

/// The method that takes weights from the job.
pub(super) const FIXED: &str = "fixed";

/// What gives the learned variances a rate of their own.
const VARIANCE_LR: &str = "variance_lr";

/// Most tasks beside the first.
const MOST: usize = 100;

pub(super) fn check_tasks(spec: &JobSpec, objective: &Entry, catalog: &Catalog) -> Checked {
    require(objective.tasks || spec.tasks.is_empty(), || {
        let kinds: Vec<String> =
            catalog.objectives.iter().filter(|o| o.tasks).map(|o| format!("`{}`", o.name)).collect();
        let hint = format!("kinds that learn several tasks: {}", kinds.join(", "));
        (format!("`{}` has no use for `[tasks]`", spec.job.kind), hint)
    })?;
    let (Some(data), true) = (&spec.data, objective.tasks) else { return Ok(()) };
    require(spec.tasks.len() <= MOST, || {
        (format!("{} tasks are more than {MOST}", spec.tasks.len()), "leave some out".into())
    })?;
    // It is a part of the stage's highest rate, which a search puts others in place of.
    let own_rate = spec.objective.get(VARIANCE_LR).and_then(serde_json::Value::as_f64).is_some_and(|rate| rate > 0.0);
    if let Some(stage) = spec.stage.iter().find(|s| own_rate && s.lr_find.is_some()) {
        return Err(SpecError::new(
            format!("`objective.{VARIANCE_LR}` is given, and stage `{}` looks for a rate (`lr_find`)", stage.name),
            "remove one of them: a search moves all rates together",
        ));
    }
    let random = spec.model.as_ref().is_some_and(|m| m.random);
    let fixed = objective.method(&spec.objective).name == FIXED;
    for (name, task) in &spec.tasks {
        check_task(name, task, data, spec.grains(), catalog)?;
        require(!random || !task.head.keep, || {
            let hint = "do not keep it, or leave `model.random` out";
            (format!("`tasks.{name}.head` is kept, and `model.random` begins with random values"), hint.into())
        })?;
        require(fixed || task.weight == 1.0, || {
            let method = &objective.method(&spec.objective).name;
            let hint = format!("remove it, or write `objective.method = \"{FIXED}\"`");
            (format!("`tasks.{name}.weight` is given, and `{method}` learns the weights"), hint)
        })?;
    }
    Ok(())
}

fn check_task(name: &str, task: &TaskSection, data: &DataSection, grains: u32, catalog: &Catalog) -> Checked {
    let at = |key: &str| format!("tasks.{name}.{key}");
    // It becomes a part of the names of tensors and of figures.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    require(!name.is_empty() && name.len() <= 40 && name.chars().all(plain), || {
        (format!("task `{name}` must be letters, digits, `-` or `_`, 40 at most"), "rename the task".into())
    })?;
    require(name != MAIN, || {
        (format!("a task cannot be called `{MAIN}`: that is what the task of `[data]` is called"), "rename it".into())
    })?;
    require(task.weight.is_finite() && task.weight > 0.0 && task.weight <= 1e6, || {
        (format!("`{}` cannot be {}", at("weight"), task.weight), "it takes a number above 0, up to 1000000".into())
    })?;
    check_head(&at("head"), &task.head)?;
    check_class_weights(&at("class_weights"), task.class_weights.as_ref())?;
    check_classes(name, task)?;
    if task.train.is_none() {
        for (set, key) in [
            (task.format.is_some(), "format"),
            (task.val.is_some(), "val"),
            (!task.params.is_empty(), "params"),
            (task.batch.is_some(), "batch"),
        ] {
            require(!set, || {
                let said = format!("`{}` is given and `{}` is not", at(key), at("train"));
                (said, "give the task samples of its own, or leave both out: then it shares those of `[data]`".into())
            })?;
        }
        return require(!task.classes.is_empty(), || {
            let hint = format!("set `{}` to other classes of the same samples, or `{}`", at("classes"), at("train"));
            (format!("task `{name}` learns the same as `[data]`"), hint)
        });
    }
    require(task.val.is_some(), || {
        (format!("`{}` is missing", at("val")), "a task with samples of its own is judged by others of them".into())
    })?;
    let format = found(Catalog::find(&catalog.formats, "data format", task.format.as_ref().unwrap_or(&data.format)))?;
    check_params(&at("params"), format, &task.params)?;
    let batch = task.batch.unwrap_or(data.batch);
    within(&at("batch"), f64::from(batch), 1.0, 1_048_576.0)?;
    require(batch >= grains, || {
        let hint = "raise it, or lower `data.grains`: each grain of a step has samples of every task".to_owned();
        (format!("`{}` is {batch}, less than the {grains} grains of a step", at("batch")), hint)
    })
}

/// Every class of samples goes to one class of the task, if any is named.
fn check_classes(name: &str, task: &TaskSection) -> Checked {
    if task.classes.is_empty() {
        return Ok(());
    }
    require(task.classes.len() > 1, || {
        (format!("task `{name}` has one class, of which there is nothing to learn"), "give it two or more".into())
    })?;
    let mut seen = BTreeSet::new();
    for (class, of) in &task.classes {
        require(!class.is_empty() && !of.is_empty(), || {
            (format!("class `{class}` of task `{name}` is made of no classes"), "name those that it is made of".into())
        })?;
        for one in of {
            require(seen.insert(one.as_str()), || {
                (format!("`{one}` is named twice in `tasks.{name}.classes`"), "each class goes to one of them".into())
            })?;
        }
    }
    Ok(())
}

/// A metric of one task: which task, of those that there are.
pub(super) fn check_monitor(spec: &JobSpec, key: &str, name: &str) -> Checked {
    let Some(rest) = name.strip_prefix("tasks.") else { return Ok(()) };
    let task = rest.rsplit_once('.').map_or(rest, |(task, _)| task);
    let known: Vec<&str> = spec.task_names().collect();
    require(!spec.tasks.is_empty() && known.contains(&task), || {
        (format!("`{key}` watches task `{task}`, which is not there"), nearest_hint(task, &known))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::entry, spec::parse};

    const PARITY: &str = "classes = { even = [\"0\", \"2\"], odd = [\"1\"] }";

    fn check(kind: &str, tasks: &str) -> Result<(), String> {
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"{kind}\" }}\n\
             data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8, grains = 4 }}\n{tasks}"
        );
        let methods = vec![entry("fixed", ""), entry("uncertainty", "")];
        let multitask = Entry { tasks: true, methods, ..entry("multitask", "") };
        let objectives = vec![entry("finetune", ""), multitask];
        let catalog = Catalog { objectives, formats: vec![entry("generated", "")], ..Catalog::default() };
        let spec = parse(&text).map_err(|e| e.message)?;
        let objective = catalog.objectives.iter().find(|o| o.name == spec.job.kind).unwrap();
        check_tasks(&spec, objective, &catalog).map_err(|e| format!("{}; {}", e.message, e.hint))
    }

    #[test]
    fn tasks_share_samples_or_bring_their_own() {
        check("multitask", &format!("[tasks.parity]\n{PARITY}\n")).unwrap();
        check("multitask", "[tasks.b]\ntrain = \"b\"\nval = \"b\"\nbatch = 4\nweight = 0.5\n").unwrap();
        check("multitask", "").unwrap();
        let e = check("finetune", &format!("[tasks.parity]\n{PARITY}\n")).unwrap_err();
        assert!(e.contains("`finetune` has no use for `[tasks]`; kinds that learn several tasks: `multitask`"), "{e}");
    }

    #[test]
    fn what_is_no_task_is_refused_with_a_hint() {
        for (tasks, part) in [
            (format!("[tasks.main]\n{PARITY}"), "cannot be called `main`"),
            (format!("[tasks.\"a.b\"]\n{PARITY}"), "task `a.b` must be letters"),
            ("[tasks.p]".into(), "learns the same as `[data]`"),
            (format!("[tasks.p]\nweight = 0\n{PARITY}"), "`tasks.p.weight` cannot be 0"),
            (format!("[tasks.p]\nweight = -1\n{PARITY}"), "cannot be -1"),
            (format!("[tasks.p]\nbatch = 4\n{PARITY}"), "`tasks.p.batch` is given and `tasks.p.train` is not"),
            ("[tasks.p]\ntrain = \"b\"".into(), "`tasks.p.val` is missing"),
            ("[tasks.p]\ntrain = \"b\"\nval = \"b\"\nbatch = 3".into(), "less than the 4 grains"),
            ("[tasks.p]\ntrain = \"b\"\nval = \"b\"\nformat = \"idxs\"".into(), "no data format `idxs`"),
            ("[tasks.p]\nclasses = { a = [\"0\"] }".into(), "has one class"),
            ("[tasks.p]\nclasses = { a = [\"0\"], b = [] }".into(), "class `b` of task `p` is made of no classes"),
            ("[tasks.p]\nclasses = { a = [\"0\"], b = [\"1\", \"0\"] }".into(), "`0` is named twice"),
            (format!("[tasks.p]\nhead = {{ dropout = 2.0 }}\n{PARITY}"), "tasks.p.head.dropout cannot be 2"),
            (format!("[tasks.p]\nclass_weights = [0, 0]\n{PARITY}"), "`tasks.p.class_weights` weighs nothing"),
            (
                format!("[tasks.p]\nweight = 2\n{PARITY}\n[objective]\nmethod = \"uncertainty\""),
                "`uncertainty` learns the weights",
            ),
            (
                format!(
                    "[tasks.p]\nhead = {{ keep = true }}\n{PARITY}\n[model]\nbackbone = \"b\"\nweights = \"w\"\nrandom = true"
                ),
                "`tasks.p.head` is kept",
            ),
        ] {
            let e = check("multitask", &tasks).unwrap_err();
            let (message, hint) = e.split_once("; ").unwrap();
            assert!(message.contains(part) && !hint.is_empty(), "{tasks}: {e}");
        }
    }

    #[test]
    fn a_rate_of_the_variances_and_a_search_for_rates_exclude_each_other() {
        let job = |rate: &str, find: &str| {
            let stage = format!("[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\n{find}");
            let objective = format!("[objective]\nmethod = \"uncertainty\"\n{rate}");
            check("multitask", &format!("[tasks.parity]\n{PARITY}\n{objective}\n{stage}\n"))
        };
        let (rate, find) = ("variance_lr = 0.05", "lr_find = {}");
        job(rate, "").unwrap();
        job("", find).unwrap();
        job("variance_lr = 0.0", find).unwrap();
        let e = job(rate, find).unwrap_err();
        assert!(e.contains("`objective.variance_lr` is given, and stage `s` looks") && e.contains("remove one"), "{e}");
    }

    #[test]
    fn a_task_that_is_watched_is_there() {
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"multitask\" }}\n\
             data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8 }}\n[tasks.parity]\n{PARITY}\n"
        );
        let spec = parse(&text).unwrap();
        let monitor = |name: &str| check_monitor(&spec, "stop.monitor", name).map_err(|e| e.message);
        for name in ["val.loss", "tasks.main.accuracy", "tasks.parity.loss"] {
            monitor(name).unwrap();
        }
        assert!(monitor("tasks.party.loss").unwrap_err().contains("task `party`, which is not there"));
    }
}
