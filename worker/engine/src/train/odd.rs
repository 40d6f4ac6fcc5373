//! What a look at a job says of parts that do nothing, or that are dearer than they look, or that do too little; it refuses
//! what cannot be meant.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::spec::{JobSpec, MAIN, ModelSection, Params, StageSection, TOWER};

use super::{
    Config,
    net::{self, Net},
    origin::Source,
    probe::later,
    stage::Stage,
};
use crate::{
    Result,
    backbone::TaskHead,
    data::sampler::{grain, grains_of},
    modifier,
    nn::{ParamId, Store},
    objective::Objective,
    weights,
};

/// The most of an average, at the end of a stage, that may be what the first step came to.
const MUCH: f64 = 0.1;

/// One of so many samples of a step may stay as it is where samples are mixed.
const FEW: usize = 8;

/// Every parameter that some stage trains.
pub(super) fn trained(net: &Net, store: &Store, spec: &JobSpec) -> Result<BTreeSet<ParamId>> {
    let mut trained = BTreeSet::new();
    for section in &spec.stage {
        trained.extend(Stage::resolve(net, store, section)?.layout.trained().map(|(id, _)| id));
    }
    Ok(trained)
}

/// New heads that no stage trains: what they give stays as it was drawn. Of a network with one head it is not said: a job
/// that trains no head means it.
pub(super) fn untaught(net: &Net, spec: &JobSpec, trained: &BTreeSet<ParamId>) -> Vec<String> {
    let own = |net: &Net| -> Vec<ParamId> {
        (net.network.head..net.network.units.len()).flat_map(|unit| net.network.unit_params(unit)).collect()
    };
    let keeps = spec.model.as_ref().is_some_and(|model| model.head.keep);
    // What it is the head of, how rules name it, whether it came with the weights, and its parameters.
    let mut heads: Vec<(String, String, bool, Vec<ParamId>)> = Vec::new();
    if let Some(tower) = &net.tower {
        let kept = spec.nets.get(TOWER).is_some_and(|tower| tower.head.keep);
        heads.push(("`model`".into(), "head".into(), keeps, own(net)));
        heads.push((format!("`{TOWER}`"), "tower.head".into(), kept, own(&tower.0)));
    }
    if !net.network.tasks.is_empty() {
        heads.push((format!("task `{MAIN}`"), format!("tasks.{MAIN}.head"), keeps, own(net)));
    }
    for task in &net.network.tasks {
        let kept = spec.tasks.get(&task.name).is_some_and(|section| section.head.keep);
        heads.push((
            format!("task `{}`", task.name),
            format!("tasks.{}.head", task.name),
            kept,
            TaskHead::params(task),
        ));
    }
    let heads = heads.into_iter().filter(|(.., kept, params)| !kept && !params.iter().any(|p| trained.contains(p)));
    let say = |(name, rule, ..): (String, String, bool, Vec<ParamId>)| {
        format!("the head of {name} is new, and no stage trains it: add `{rule}` to a stage's `train`")
    };
    heads.map(say).collect()
}

/// Modifiers that hold a network to where it began, where nothing that came with its weights is trained.
pub(super) fn idle_holds(net: &Net, spec: &JobSpec, trained: &BTreeSet<ParamId>) -> Option<String> {
    let holding = spec.modifiers.keys().filter(|name| modifier::find(name).is_some_and(|m| m.hold.is_some()));
    let names: Vec<String> = holding.map(|name| format!("`modifiers.{name}`")).collect();
    let params = &net.network.initial.params;
    if names.is_empty() || trained.iter().any(|id| net.loaded.contains(&params[id.0].name)) {
        return None;
    }
    Some(format!(
        "no stage trains anything that came with the weights: {} can hold nothing to where it began",
        names.join(" and ")
    ))
}

/// Heads that are kept, the source's and teachers' too, whose outputs have other names or another order beside their weights
/// than the classes of the job. `spec` has paths of this machine; weights that are not there yet are passed over.
///
/// # Errors
/// A head for other classes.
pub(super) fn relabelled(
    spec: &JobSpec,
    config: &Config,
    classes: &[String],
    source: Option<&Source>,
) -> Result<Vec<String>> {
    let model = spec.model.as_ref();
    let mut heads: Vec<(&ModelSection, &[String])> = Vec::new();
    heads.extend(model.filter(|model| model.head.keep).map(|model| (model, classes)));
    heads.extend(model.zip(source).map(|(model, source)| (model, source.val.dataset.classes())));
    let teachers = spec.nets_of("teacher").into_iter().filter(|_| Objective::find(&spec.job.kind).has_teacher());
    heads.extend(teachers.map(|(_, section)| (section, classes)));
    let mut said = Vec::new();
    // What begins anew has no head of theirs, and an adapter may bring one, of which nothing lies beside the weights.
    let theirs = |model: &ModelSection| !model.random && model.adapter.is_none() && !later(model, config);
    for (model, classes) in heads.into_iter().filter(|(model, _)| theirs(model)) {
        let Some(path) = net::weights_path(model, &config.inputs)? else { continue };
        if let Some(text) = weights::relabelled(&path, classes)?.filter(|text| !said.contains(text)) {
            said.push(text);
        }
    }
    Ok(said)
}

/// What it takes to learn which parameters matter to the source.
pub(super) fn importance(spec: &JobSpec, source: Option<&Source>) -> Option<String> {
    let all = source?.train.as_ref()?.count();
    let wanted = spec.modifiers.iter().filter_map(|(name, params)| {
        let how = (modifier::find(name)?.hold?)(params).importance?;
        Some((how.samples.min(all), name))
    });
    let (samples, name) = wanted.max()?;
    Some(format!(
        "`modifiers.{name}` runs {samples} samples of `data.source.train` forward and backward, one by one, before the first \
         step"
    ))
}

/// An average of the weights that, once so many steps of a stage have moved it, is still much of what the first of them
/// came to. Of few steps, each is much of any mean.
pub(super) fn lagging(modifiers: &BTreeMap<String, Params>, stage: &str, steps: u64) -> Option<String> {
    let held = modifier::held(modifiers, steps)?;
    if held <= MUCH.max(1.0 / steps.max(1) as f64) {
        return None;
    }
    let averages = |name: &&String| modifier::find(name).is_some_and(|m| m.average.is_some());
    let name = modifiers.keys().find(averages)?;
    Some(format!(
        "the average of `modifiers.{name}`, which is judged and handed on, is after the {steps} steps of stage `{stage}` \
         still {:.0} % what the first of them came to: have it keep less in a step (`warmup = 1` does so at first), or \
         train for longer",
        100.0 * held
    ))
}

/// Of a stage of so many steps at most, that its rate still rises for half of them or more.
pub(super) fn warm_up(stage: &StageSection, steps: u64) -> Option<String> {
    let (name, warmup) = (&stage.name, u64::from(stage.warmup));
    let most = warmup > 0 && 2 * warmup >= steps && steps > 0;
    let never = if warmup >= steps { ", and never reaches its rate" } else { "" };
    most.then(|| {
        format!("stage `{name}` warms up for {warmup} steps of its {steps}{never}: lower `warmup`, or train for longer")
    })
}

/// Samples of a full step that a job which mixes them leaves as they are: of an odd number in a grain, the one in the middle
/// is its own mirror image.
pub(super) fn unmixed(modifiers: &BTreeMap<String, Params>, n: usize, batch: usize, grains: usize) -> Option<String> {
    let mixes = |name: &&String| modifier::find(name).is_some_and(|m| m.mix.is_some());
    let name = modifiers.keys().find(mixes)?;
    let step = n.min(batch);
    let count = grains_of(step, batch, grains);
    let alone = (0..count).filter(|s| grain(step, count, *s).len() % 2 == 1).count();
    (alone * FEW > step).then(|| {
        format!(
            "`modifiers.{name}` leaves {alone} of the {step} samples of a step as they are: each is mixed with another of its \
             grain, and in a grain of an odd number one is left; choose `data.grains` so that grains have even numbers"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_that_takes_half_of_its_stage_or_never_ends_is_told() {
        let of = |warmup, steps| warm_up(&StageSection { warmup, ..StageSection::new("s", 1, &["*"], 0.1) }, steps);
        let told = [0, 4, 5, 9].map(|warmup| of(warmup, 10).is_some());
        assert_eq!(told, [false, false, true, true]);
        let never = [9, 10, 500].map(|warmup| of(warmup, 10).unwrap().contains("never reaches its rate"));
        assert_eq!(never, [false, true, true]);
        // A stage that only searches for a rate has no steps.
        assert_eq!((of(0, 0), of(3, 0)), (None, None));
    }

    #[test]
    fn samples_that_have_nothing_to_be_mixed_with_are_told() {
        let of = |name: &str, n, batch, grains| unmixed(&[(name.to_owned(), Params::new())].into(), n, batch, grains);
        // Threes: a third.
        let said = of("mixup", 100, 24, 8).unwrap();
        assert!(said.starts_with("`modifiers.mixup` leaves 8 of the 24 samples"), "{said}");
        // Grains of one and of two.
        assert!(of("cutmix", 100, 12, 8).unwrap().contains("leaves 4 of the 12"));
        // Of few samples, the only step.
        assert!(of("mixup", 6, 24, 8).unwrap().contains("leaves 2 of the 6"));
        for (name, batch, grains) in [("mixup", 32, 8), ("mixup", 8, 4), ("mixup", 81, 9), ("ema", 24, 8)] {
            assert_eq!(of(name, 100, batch, grains), None, "{name} {batch}");
        }
    }
}
