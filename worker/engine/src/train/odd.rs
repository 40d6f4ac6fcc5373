//! What a look at a job says of parts that do nothing, or that are dearer than they look, or that do too little.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::spec::{JobSpec, MAIN, Params, TOWER};

use super::{net::Net, origin::Source, stage::Stage};
use crate::{
    Result,
    backbone::TaskHead,
    modifier,
    nn::{ParamId, Store},
};

/// The most of an average, at the end of a stage, that may be what the first step came to.
const MUCH: f64 = 0.1;

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
