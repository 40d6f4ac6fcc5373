//! Checks of a whole new job against itself and the catalog, when it is submitted or probed: of one that was accepted, only
//! `check_known.rs` asks anything. Pure; nothing is opened.

use super::{
    ClassWeights, JobSpec, Sampling, SpecError,
    check_adapter::check_adapters,
    check_augment::check_augment,
    check_model::{check_model, check_untrained},
    check_pairs::{TOWER, check_pairs},
    check_params::check_params,
    check_pipeline::check_steps,
    check_source::check_source,
    check_stage::{check_norms, check_stage, monitor},
    check_tasks::{check_monitor, check_tasks},
    episodes::check_episodes,
    nets::check_nets,
};
use crate::catalog::{Catalog, Entry};

pub(super) type Checked = Result<(), SpecError>;

/// Most characters of a label for people.
pub(super) const MAX_LABEL: usize = 100;

/// What to do about what is written out when a file is read, and was not.
const WRITTEN_OUT: &str = "`tlctl submit FILE` does so (for a step: `job = \"FILE.toml\"`); a program sends the job as \
                           `tlctl check --output json` prints it";

/// Checks a new job, and every step of a pipeline. For one that goes on there is [`check_known()`](super::check_known()).
///
/// # Errors
/// The first thing that cannot stand, as one sentence and a hint.
pub fn check(spec: &JobSpec, catalog: &Catalog) -> Checked {
    check_shape(spec)?;
    if spec.job.kind != JobSpec::PIPELINE {
        return check_run(spec, catalog);
    }
    let steps = spec.steps();
    for (id, inner, _) in &steps {
        check_run(inner, catalog).map_err(|e| in_step(id, e))?;
        // What trains nothing leaves nothing.
        let leaves = |kind: &str| !catalog.objectives.iter().any(|o| o.name == kind && o.untrained);
        for source in inner.model.iter().chain(inner.nets.values()).filter_map(|m| m.weights.as_deref()) {
            let named = source.strip_prefix("step:").and_then(|name| steps.iter().find(|(id, ..)| *id == name));
            require(named.is_none_or(|(_, step, _)| leaves(&step.job.kind)), || {
                (
                    format!("step `{id}` takes weights from `{source}`, which leaves no model"),
                    "name another step".into(),
                )
            })?;
        }
    }
    Ok(())
}

/// Checks what needs no catalog: everything that the phases of a job, their order and their gangs are made from.
///
/// # Errors
/// The first thing that cannot stand, as one sentence and a hint.
pub fn check_shape(spec: &JobSpec) -> Checked {
    require(spec.recipe.is_none(), || {
        ("`recipe` is written out as stages when a job file is read".into(), WRITTEN_OUT.into())
    })?;
    let written_out = spec.job.baseline.is_empty() && spec.job.seeds.is_empty();
    require(written_out, || {
        ("`job.baseline` and `job.seeds` are written out as steps when a job file is read".into(), WRITTEN_OUT.into())
    })?;
    require(spec.schema == 1, || (format!("schema {} is not known", spec.schema), "write `schema = 1`".into()))?;
    label("job.name", &spec.job.name)?;
    label("job.project", &spec.job.project)?;
    if spec.job.kind == JobSpec::PIPELINE {
        return check_steps(spec);
    }
    require(spec.step.is_empty() && spec.compare.is_none(), || {
        (
            "only a pipeline has `[[step]]`, and only one or a job with `baseline` has `[compare]`".into(),
            "write `kind = \"pipeline\"`, or `baseline = [\"scratch\"]` in `[job]`".into(),
        )
    })?;
    within("cluster.threads", f64::from(spec.cluster.threads), 0.0, 1024.0)?;
    within("checkpoint.keep", f64::from(spec.checkpoint.keep), 1.0, 100.0)?;
    spec.stage.iter().try_for_each(|s| label("stage.name", &s.name))?;
    check_split(spec)
}

/// Checks that every rank of the smallest gang has something to do.
fn check_split(spec: &JobSpec) -> Checked {
    let data = spec.data.as_ref().ok_or_else(|| missing("[data]"))?;
    let ranks = spec.cluster.ranks.min;
    within("data.batch", f64::from(data.batch), 1.0, 1_048_576.0)?;
    require(data.train_per_class != Some(0), || {
        ("`data.train_per_class` cannot be 0".into(), "leave it out to take all of them".into())
    })?;
    let grains = spec.grains();
    require(grains <= data.batch && grains <= 1024, || {
        (format!("{grains} grains do not fit a batch of {}", data.batch), "lower `data.grains`".into())
    })?;
    check_norms(spec, data.batch)?;
    require(data.batch >= ranks, || {
        (
            format!("a batch of {} is smaller than {ranks} ranks", data.batch),
            "raise `data.batch` or lower `cluster.ranks`".into(),
        )
    })?;
    require(grains >= ranks, || {
        (
            format!("{grains} grains cannot feed {ranks} ranks"),
            format!("set `data.grains = {ranks}` or more (part of the result: the same on every cluster)"),
        )
    })
}

fn check_run(spec: &JobSpec, catalog: &Catalog) -> Checked {
    let objective = found(Catalog::find(&catalog.objectives, "job kind", &spec.job.kind))?;
    check_params("objective", objective, &spec.objective)?;
    check_nets(spec, objective)?;
    for (name, params) in &spec.modifiers {
        check_params(
            &format!("modifiers.{name}"),
            found(Catalog::find(&catalog.modifiers, "modifier", name))?,
            params,
        )?;
    }
    check_adapters(spec, catalog)?;
    check_mixed(spec, catalog)?;
    let data = spec.data.as_ref().ok_or_else(|| missing("[data]"))?;
    let format = found(Catalog::find(&catalog.formats, "data format", &data.format))?;
    check_params("data.params", format, &data.params)?;
    require(!data.train.is_empty() || objective.untrained, || {
        ("the job has no `data.train`".into(), "say where the training samples are: add `data.train = …`".into())
    })?;
    check_target(spec, objective, catalog)?;
    check_pairs(spec, objective, catalog)?;
    check_episodes(spec, objective)?;
    check_source(spec, objective, catalog)?;
    check_tasks(spec, objective, catalog)?;
    let model = spec.model.as_ref().ok_or_else(|| missing("[model]"))?;
    for net in std::iter::once(model).chain(spec.nets.values()) {
        check_model(net, catalog)?;
        require(!net.random || !objective.untrained, || {
            (format!("`{}` trains nothing, and random values say nothing", spec.job.kind), "remove `random`".into())
        })?;
    }
    for (role, net) in spec.nets.iter().filter(|(role, _)| *role != TOWER) {
        check_untrained(role, net)?;
    }
    spec.check_places()?;
    found(Catalog::find(&catalog.optimizers, "optimizer", &spec.optimizer.name))?;
    check_augment("data.augment", &data.augment)?;
    check_class_weights("data.class_weights", data.class_weights.as_ref())?;
    let twice = data.sampling == Sampling::Balanced && matches!(data.class_weights, Some(ClassWeights::Rule(_)));
    require(!twice, || {
        (
            "`class_weights = \"balanced\"` and `sampling = \"balanced\"` make up for rare classes twice".into(),
            "keep one of them".into(),
        )
    })?;
    let o = &spec.optimizer;
    within("optimizer.weight_decay", o.weight_decay, 0.0, 10.0)?;
    within("optimizer.momentum", o.momentum, 0.0, 0.9999)?;
    within("optimizer.beta1", o.beta1, 0.0, 0.9999)?;
    within("optimizer.beta2", o.beta2, 0.0, 0.99999)?;
    within("optimizer.eps", o.eps, 1e-12, 1.0)?;
    if let Some(clip) = o.clip_norm {
        within("optimizer.clip_norm", clip, 1e-6, 1e6)?;
    }
    // What is frozen can be measured by episodes.
    let measured = objective.untrained || data.episodes.is_some();
    require(!spec.stage.is_empty() || measured, || missing("[[stage]]").into_parts())?;
    require(spec.stage.is_empty() || !objective.untrained, || {
        (format!("`{}` trains nothing, and the job has stages", spec.job.kind), "remove `[[stage]]`".into())
    })?;
    spec.stage.iter().try_for_each(|s| check_stage(s, catalog))?;
    for (key, name) in spec.monitors() {
        check_monitor(spec, key, name)?;
    }
    if let Some(stop) = &spec.stop {
        monitor("stop.monitor", &stop.monitor)?;
        within("stop.min_delta", stop.min_delta, 0.0, 1e3)?;
        if let Some(factor) = stop.plateau_factor {
            within("stop.plateau_factor", factor, 1e-6, 0.999)?;
        }
    }
    Ok(())
}

/// Checks that samples which are mixed have others to be mixed with: those of their grain.
fn check_mixed(spec: &JobSpec, catalog: &Catalog) -> Checked {
    let mixes = |name: &&String| catalog.modifiers.iter().any(|e| e.mixes && e.name == **name);
    // Of episodes, nothing is mixed at all.
    let data = spec.data.as_ref().filter(|data| data.episodes.is_none());
    let (Some(name), Some(data)) = (spec.modifiers.keys().find(mixes), data) else { return Ok(()) };
    let grains = spec.grains();
    require(grains < data.batch, || {
        let message = format!(
            "`modifiers.{name}` mixes samples of a grain, and {grains} grains of a batch of {} have one each",
            data.batch
        );
        (message, "lower `data.grains`, or raise `data.batch`".into())
    })
}

/// Checks the data of another domain: there if the kind of job learns from it, and only then.
fn check_target(spec: &JobSpec, objective: &Entry, catalog: &Catalog) -> Checked {
    let target = spec.data.as_ref().and_then(|d| d.of_target());
    let wanted = objective.data.iter().any(|role| role == "target");
    require(wanted || target.is_none(), || {
        (format!("`{}` has no use for `data.target`", spec.job.kind), "`kind = \"adapt\"` learns from it".into())
    })?;
    if let Some((_, monitor)) = spec.monitors().find(|(_, m)| m.starts_with("target.")).filter(|_| target.is_none()) {
        let message = format!("`{monitor}` is watched, and there is no `data.target`");
        return Err(SpecError::new(message, "watch `val.accuracy` or `val.loss`"));
    }
    let Some(target) = target else {
        return require(!wanted, || {
            let hint =
                "add `[data.target]` with `train`, a folder of samples without labels, and `val` if some have them";
            (format!("`{}` needs `[data.target]`", spec.job.kind), hint.into())
        });
    };
    let format = found(Catalog::find(&catalog.formats, "data format", &target.format))?;
    check_params("data.target.params", format, &target.params)
}

impl JobSpec {
    /// Metrics that decisions are taken by, with their keys.
    pub(super) fn monitors(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let stages = self.stage.iter().flat_map(|s| {
            let plateau = s.plateau.iter().map(|p| ("plateau.monitor", p.monitor.as_str()));
            plateau.chain(s.advance.iter().map(|a| ("advance.monitor", a.monitor.as_str())))
        });
        self.stop.iter().map(|s| ("stop.monitor", s.monitor.as_str())).chain(stages)
    }
}

pub(super) fn require(holds: bool, otherwise: impl FnOnce() -> (String, String)) -> Checked {
    if holds {
        return Ok(());
    }
    let (message, hint) = otherwise();
    Err(SpecError::new(message, hint))
}

/// Checks what classes count, which the job calls `at`.
pub(super) fn check_class_weights(at: &str, weights: Option<&ClassWeights>) -> Checked {
    let Some(ClassWeights::Each(weights)) = weights else { return Ok(()) };
    weights.iter().try_for_each(|w| within(at, *w, 0.0, 1e6))?;
    require(weights.iter().any(|w| *w > 0.0), || {
        (format!("`{at}` weighs nothing"), "write `class_weights = \"balanced\"`".into())
    })
}

/// A label for people: there, short, and nothing that a terminal would obey.
fn label(key: &str, text: &str) -> Checked {
    require(!text.trim().is_empty() && text.chars().count() <= MAX_LABEL, || {
        (format!("`{key}` must have 1 to {MAX_LABEL} characters"), "give it a short name".into())
    })?;
    require(!text.chars().any(char::is_control), || {
        (format!("`{key}` has a line break or another control character"), "give it a name of one plain line".into())
    })
}

/// What is wrong with a step says with which.
pub(super) fn in_step(id: &str, mut e: SpecError) -> SpecError {
    e.message = format!("step `{id}`: {}", e.message);
    e
}

pub(super) fn within(key: &str, value: f64, min: f64, max: f64) -> Checked {
    require(value.is_finite() && (min..=max).contains(&value), || {
        (format!("{key} cannot be {value}"), format!("it takes a number from {min} to {max}"))
    })
}

pub(super) fn found<T>(result: Result<T, (String, String)>) -> Result<T, SpecError> {
    result.map_err(|(message, hint)| SpecError::new(message, hint))
}

fn missing(section: &str) -> SpecError {
    SpecError::new(format!("the job has no `{section}`"), format!("add a `{section}` section"))
}

impl SpecError {
    fn into_parts(self) -> (String, String) {
        (self.message, self.hint)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        catalog::entry,
        spec::{Views, parse},
    };

    fn catalog() -> Catalog {
        Catalog {
            backbones: vec![entry("small_cnn", "")],
            objectives: vec![entry("finetune", "")],
            formats: vec![entry("generated", "")],
            optimizers: vec![entry("adamw", "")],
            schedules: vec![entry("constant", "")],
            ..Catalog::default()
        }
    }

    /// A job that nothing is wrong with.
    pub(in crate::spec) const GOOD: &str = r#"
schema = 1
job = { name = "t", kind = "finetune" }
cluster = { ranks = "1..2" }
data = { format = "generated", train = "shapes", val = "shapes", batch = 8 }
model = { backbone = "small_cnn" }
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.1
"#;

    fn refusal(text: &str) -> SpecError {
        match parse(text) {
            Ok(spec) => check(&spec, &catalog()).unwrap_err(),
            Err(e) => e,
        }
    }

    #[test]
    fn a_good_job_passes() {
        check(&parse(GOOD).unwrap(), &catalog()).unwrap();
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_key() {
        let e = refusal(&GOOD.replace("epochs", "epocs"));
        assert_eq!(e.to_string(), "line 9, column 1: unknown key `epocs`");
        assert_eq!(e.hint, "did you mean `epochs`?");
    }

    #[test]
    fn numbers_out_of_range_and_unknown_names_are_refused() {
        for (from, to, part) in [
            ("lr = 0.1", "lr = -1.0", "lr cannot be -1"),
            ("batch = 8", "batch = 0", "data.batch cannot be 0"),
            ("small_cnn", "smal_cnn", "there is no backbone `smal_cnn`"),
            ("\"finetune\"", "\"finetun\"", "there is no job kind `finetun`"),
            ("\"1..2\"", "\"9..10\"", "a batch of 8 is smaller than 9 ranks"),
            ("\"1..2\"", "3", "2 grains cannot feed 3 ranks"),
            ("\"1..2\"", "\"2..1\"", "must be at least 1, ascending"),
            ("lr = 0.1", "lr = nan", "lr cannot be NaN"),
            ("name = \"t\"", "name = \" \"", "`job.name` must have 1 to 100 characters"),
            ("name = \"t\"", "name = \"\\u001b[31m\"", "`job.name` has a line break or another control character"),
            ("name = \"all\"", "name = \"a\\nb\"", "`stage.name` has a line break or another control character"),
        ] {
            let e = refusal(&GOOD.replace(from, to));
            assert!(e.message.contains(part), "{to}: {e}");
            assert!(!e.hint.is_empty() || e.at.is_some(), "{to}: no hint");
        }
    }

    #[test]
    fn training_samples_are_named_where_something_trains_and_may_be_elsewhere() {
        let without = |text: &str| text.replace("train = \"shapes\", ", "");
        let e = refusal(&without(GOOD));
        assert!(e.message == "the job has no `data.train`" && !e.hint.is_empty(), "{e}");
        let mut catalog = catalog();
        catalog.objectives.push(Entry { untrained: true, ..entry("judge", "") });
        let judged = GOOD.replace("\"finetune\"", "\"judge\"").split("[[stage]]").next().unwrap().to_owned();
        let check = |text: &str| check(&parse(text).unwrap(), &catalog).map_err(|e| e.message);
        assert_eq!(check(&without(&judged)), Ok(()));
        // Older files name some.
        assert_eq!(check(&judged), Ok(()));
    }

    #[test]
    fn overrides_reach_into_lists_and_refuse_what_is_not_there() {
        let spec = JobSpec::from_toml(GOOD, &["stage.0.lr=0.5".into(), "job.name=other".into()]).unwrap();
        assert_eq!((spec.stage[0].lr.top(), spec.job.name.as_str()), (0.5, "other"));
        assert!(JobSpec::from_toml(GOOD, &["stage.7.lr=0.5".into()]).is_err());
        assert!(
            JobSpec::from_toml(GOOD, &["stage.0.lrr=0.5".into()]).unwrap_err().message.contains("unknown key `lrr`")
        );
    }

    #[test]
    fn a_job_written_as_toml_reads_back_as_the_same_job() {
        let mut spec = parse(GOOD).unwrap();
        spec.stage[0].lr = (1e-7 / 3.0).into();
        spec.data.as_mut().unwrap().augment.views = Views::Fresh;
        spec.objective.insert("temperature".into(), 4.5.into());
        assert_eq!(parse(&spec.to_toml()).unwrap(), spec);
    }

    #[test]
    fn classes_are_made_up_for_once() {
        let with = |more: &str| refusal(&GOOD.replace("batch = 8", &format!("batch = 8, {more}"))).message;
        let both = "class_weights = \"balanced\", sampling = \"balanced\"";
        assert!(with(both).contains("twice"));
        assert!(with("class_weights = \"rare\"").contains("`class_weights` takes \"balanced\""));
        assert!(with("class_weights = [0, 0]").contains("weighs nothing"));
        assert!(with("class_weights = [-1, 1]").contains("cannot be -1"));
    }

    #[test]
    fn augmentation_that_would_change_nothing_is_refused() {
        let with =
            |augment: &str| refusal(&GOOD.replace("batch = 8", &format!("batch = 8, augment = {{ {augment} }}")));
        assert!(with("flip = true").message.contains("changes nothing with one view"));
        assert!(with("flip = true, views = 3").message.contains("only two different ones"));
    }

    #[test]
    fn samples_that_are_mixed_have_others_in_their_grain() {
        let mut catalog = catalog();
        catalog.modifiers = vec![Entry { mixes: true, ..entry("mixup", "") }, entry("ema", "")];
        let with = |modifier: &str, batch: &str| {
            let job = format!("{GOOD}[modifiers.{modifier}]\n").replace("batch = 8", batch);
            check(&parse(&job).unwrap(), &catalog).map_err(|e| e.message)
        };
        let alone = with("mixup", "batch = 8, grains = 8").unwrap_err();
        assert!(alone.contains("`modifiers.mixup`") && alone.contains("8 grains of a batch of 8"), "{alone}");
        assert_eq!(with("mixup", "batch = 8, grains = 7"), Ok(()));
        assert_eq!(with("mixup", "batch = 8"), Ok(()));
        assert_eq!(with("ema", "batch = 8, grains = 8"), Ok(()));
    }

    #[test]
    fn labels_and_counts_have_limits() {
        let long = "x".repeat(101);
        for (from, to, part) in [
            ("name = \"all\"", format!("name = \"{long}\""), "`stage.name` must have 1 to 100"),
            ("name = \"t\"", "name = \"t\", project = \"\"".into(), "`job.project` must have 1 to 100"),
            ("\"1..2\"", "2, threads = 1025".into(), "cluster.threads cannot be 1025"),
            ("batch = 8", "batch = 8, train_per_class = 0".into(), "`data.train_per_class` cannot be 0"),
            ("[[stage]]", "checkpoint = { keep = 101 }\n[[stage]]".into(), "checkpoint.keep cannot be 101"),
        ] {
            let e = refusal(&GOOD.replace(from, &to));
            assert!(e.message.contains(part) && !e.hint.is_empty(), "{to}: {e}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", cut in 0usize..300) {
            let _ = parse(&text);
            let mut job: String = GOOD.chars().take(cut).collect();
            job.push_str(&text);
            let _ = parse(&job);
        }
    }

    proptest::proptest! {
        /// A damaged job file is a job, or an error with a sentence.
        #[test]
        fn damaged_job_files_are_refused_without_a_panic(
            at in 0usize..512, drop in 0usize..24, put in "[\\PC\n\"\\[\\]{}=.]{0,12}",
        ) {
            let mut chars: Vec<char> = GOOD.chars().collect();
            let at = at % chars.len();
            let end = (at + drop).min(chars.len());
            chars.splice(at..end, put.chars());
            let text: String = chars.into_iter().collect();
            if let Err(e) = parse(&text).and_then(|spec| check(&spec, &catalog())) {
                assert!(!e.message.is_empty());
            }
            let _ = JobSpec::from_toml(GOOD, &[put]);
        }
    }
}
