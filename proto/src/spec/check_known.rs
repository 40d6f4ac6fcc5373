//! What is asked of a job that was accepted, before a rank goes on with it: that this release has what the job names. How a job
//! should be is asked of new ones only, in `check.rs`: none may end because a newer release is stricter.

use super::{
    JobSpec, Params,
    check::{Checked, found},
    check_params::check_words,
    nets::check_nets,
};
use crate::catalog::{Catalog, Entry};

/// Checks that the catalog has what one job, or one step of a pipeline, names: what a rank does not know it must not pass over.
/// What [`check()`](super::check()) refuses for another reason is fine.
///
/// # Errors
/// The first name that is not known, as one sentence and a hint.
pub fn check_known(spec: &JobSpec, catalog: &Catalog) -> Checked {
    let objective = found(Catalog::find(&catalog.objectives, "job kind", &spec.job.kind))?;
    check_words("objective", objective, &spec.objective)?;
    check_nets(spec, objective)?;
    for (name, params) in &spec.modifiers {
        known(&catalog.modifiers, "modifier", name, (&format!("modifiers.{name}"), params))?;
    }
    for net in spec.model.iter().chain(spec.nets.values()) {
        found(Catalog::find(&catalog.backbones, "backbone", &net.backbone))?;
    }
    found(Catalog::find(&catalog.optimizers, "optimizer", &spec.optimizer.name))?;
    for stage in &spec.stage {
        found(Catalog::find(&catalog.schedules, "schedule", &stage.schedule))?;
    }
    let Some(data) = &spec.data else { return Ok(()) };
    let format = |name: &str, at: &str, params: &Params| known(&catalog.formats, "data format", name, (at, params));
    format(&data.format, "data.params", &data.params)?;
    for (at, beside) in [("data.target.params", data.of_target()), ("data.source.params", data.of_source())] {
        beside.map_or(Ok(()), |beside| format(&beside.format, at, &beside.params))?;
    }
    if let Some(pairs) = &data.pairs {
        format(&pairs.format, "data.pairs.params", &pairs.params)?;
    }
    spec.tasks.iter().try_for_each(|(name, task)| {
        let own = task.format.as_ref().unwrap_or(&data.format);
        format(own, &format!("tasks.{name}.params"), &task.params)
    })
}

/// Checks that an entry of a list is there, with the keys that it is `given`, of which the place in the job comes first.
fn known(list: &[Entry], what: &str, name: &str, given: (&str, &Params)) -> Checked {
    check_words(given.0, found(Catalog::find(list, what, name))?, given.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{choice, entry, number},
        spec::{check, check::tests::GOOD, parse},
    };

    fn catalog() -> Catalog {
        let params = vec![number("alpha", 0.2, 0.0, 1.0, ""), choice("by", &["sample", "grain"], "")];
        Catalog {
            backbones: vec![entry("small_cnn", "")],
            objectives: vec![Entry { methods: vec![entry("plain", "")], ..entry("finetune", "") }],
            modifiers: vec![Entry { mixes: true, params, ..entry("mixup", "") }],
            formats: vec![entry("generated", "")],
            optimizers: vec![entry("adamw", "")],
            schedules: vec![entry("constant", "")],
        }
    }

    #[test]
    fn what_only_rules_refuse_is_no_reason_to_end_a_job_that_was_accepted() {
        check(&parse(GOOD).unwrap(), &catalog()).unwrap();
        for (from, to) in [
            ("name = \"t\"", "name = \"a\\tb\""),
            ("name = \"all\"", "name = \"a\\nb\""),
            ("batch = 8 }", "batch = 8, grains = 8 }\nmodifiers = { mixup = {} }"),
            ("batch = 8 }", "batch = 8 }\nmodifiers = { mixup = { alpha = 2 } }"),
            ("lr = 0.1", "lr = 0.1\nlayer_decay = 0.001"),
            ("\"1..2\"", "3"),
        ] {
            assert!(GOOD.contains(from));
            let spec = parse(&GOOD.replace(from, to)).unwrap();
            check(&spec, &catalog()).unwrap_err();
            check_known(&spec, &catalog()).unwrap();
        }
    }

    #[test]
    fn what_this_release_does_not_have_is_not_passed_over() {
        for (from, to, part) in [
            ("\"finetune\"", "\"distil\"", "there is no job kind `distil`"),
            ("small_cnn", "resnet18", "there is no backbone `resnet18`"),
            ("\"generated\"", "\"table\"", "there is no data format `table`"),
            ("lr = 0.1", "lr = 0.1\nschedule = \"cosine\"", "there is no schedule `cosine`"),
            ("batch = 8 }", "batch = 8 }\noptimizer = { name = \"lion\" }", "there is no optimizer `lion`"),
            ("batch = 8 }", "batch = 8 }\nobjective = { method = \"new\" }", "`objective.method` cannot be"),
            ("batch = 8 }", "batch = 8 }\nmodifiers = { swa = {} }", "there is no modifier `swa`"),
            ("batch = 8 }", "batch = 8 }\nmodifiers = { mixup = { beta = 1 } }", "unknown key `modifiers.mixup.beta`"),
            ("batch = 8 }", "batch = 8 }\nmodifiers = { mixup = { by = \"x\" } }", "`modifiers.mixup.by` cannot be"),
            ("batch = 8", "batch = 8, target = { format = \"idx\", train = \"a\" }", "there is no data format `idx`"),
            ("batch = 8", "batch = 8, pairs = { format = \"wav\", train = \"a\" }", "there is no data format `wav`"),
            ("batch = 8 }", "batch = 8 }\ntasks = { b = { format = \"csv\" } }", "there is no data format `csv`"),
            ("batch = 8 }", "batch = 8 }\nnets = { tower = { backbone = \"bert\" } }", "has no use for `nets.tower`"),
        ] {
            assert!(GOOD.contains(from));
            let error = check_known(&parse(&GOOD.replace(from, to)).unwrap(), &catalog()).unwrap_err();
            assert!(error.message.contains(part), "{to}: {error}");
        }
    }
}
