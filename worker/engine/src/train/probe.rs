//! A look at a job before it runs: lists the data, builds the networks, says what would happen, or refuses with names.

use std::{collections::BTreeMap, ops::Range, time::Instant};

use serde::{Deserialize, Serialize};
use tl_proto::{
    spec::{BnScope, EpisodesSection, Handed, Hub, JobSpec, ModelSection, Precision, Source, TOWER},
    teaching::Teaching,
};

use super::{
    Config,
    begin::manifest,
    clipped,
    domain::Domain,
    export::StageFigures,
    fewshot::Few,
    net::Net,
    odd,
    opened::Opened,
    origin::Origin,
    samples::Samples,
    saving::{self, Load, Span},
    stage::Stage,
    tasks::{self, PlannedTask, Weighed},
    teach, weights, zero_shot,
};
use crate::{
    Error, Result,
    collective::partition::partition,
    data::{
        Dataset,
        sampler::{grain, grains_of, steps_per_epoch},
    },
    modifier,
    objective::Objective,
    weights::{Contract, peft},
};

/// What would happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where weights of the hub came from, and what their revisions stood for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Weights of the hub that are not on the node, and the bytes that it would take to download them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub downloads: BTreeMap<String, u64>,
    /// Names of the classes; none where episodes are learned from, each of which has its own, or where networks end in an
    /// embedding.
    pub classes: Vec<String>,
    /// In how many numbers networks embed a sample, where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// Few-shot episodes, where those are learned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episodes: Option<EpisodePlan>,
    /// Training samples, with halves that are learned from alone, and validation samples.
    pub samples: [usize; 2],
    /// Digest of all sample names and contents: another one is another data set.
    pub manifest: String,
    /// Side of the input in pixels, scale and padding.
    pub preprocess: String,
    /// Networks, by their section of the job, whose products compute with another precision than f32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub precision: BTreeMap<String, Precision>,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Grains of a full step.
    pub grains: u32,
    /// Samples that are in memory at a time: those of the largest grain, or of all grains of a rank where batch-norms take
    /// the statistics of the batch. Gradients of grains add up to the batch's.
    #[serde(default)]
    pub grain_samples: usize,
    /// What may be dearer than it looks, or does nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What is learned beside the classes of `[data]`, where there are several tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<PlannedTask>,
    /// How these and the first are weighed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighed: Option<Weighed>,
    /// What each class counts in the loss, where they do not all count the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f32>>,
    /// Grains of each rank, for the most ranks that the job takes.
    pub split: Vec<usize>,
    /// What each stage trains.
    pub stages: Vec<StageFigures>,
    /// What teachers have not said yet of the samples, where they are asked once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teaching: Option<Teaching>,
}

/// What episodes are drawn from, and how they look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodePlan {
    /// How they are learned from.
    pub method: String,
    /// Classes that are trained on and that are judged.
    pub classes: [usize; 2],
    /// What the job says of them.
    pub section: EpisodesSection,
}

/// The most samples that are in memory at a time, by the runs of grains of a step that are there together; the last step
/// may be longer than the others by one.
fn at_a_time(n: usize, batch: usize, grains: usize, runs: impl Fn(usize) -> Vec<Range<usize>>) -> usize {
    let steps = [batch.min(n), n.saturating_sub((steps_per_epoch(n, batch).max(1) - 1) * batch)];
    let largest = |step: usize| {
        let count = grains_of(step, batch, grains);
        let samples = |run: Range<usize>| run.map(|s| grain(step, count, s).len()).sum();
        runs(count).into_iter().map(samples).max().unwrap_or(0)
    };
    steps.map(largest).into_iter().max().unwrap_or(0)
}

/// What is not f32.
fn precisions(spec: &JobSpec) -> BTreeMap<String, Precision> {
    let nets = spec.nets.iter().map(|(role, net)| (format!("nets.{role}"), net.precision));
    let all = spec.model.iter().map(|model| ("model".to_owned(), model.precision)).chain(nets);
    all.filter(|(_, precision)| !precision.is_f32()).collect()
}

/// Looks at a job. A model of an earlier step that is not there yet is taken on trust, and so is one of the hub that is
/// not to be downloaded for a look; an adapter on top of it is read.
///
/// # Errors
/// Everything that would stop the run at its start.
pub fn probe(config: &Config) -> Result<Plan> {
    let spec = &config.local()?;
    let (Some(data), Some(model)) = (&spec.data, &spec.model) else {
        return Err(Error::user("the job has no `[data]` or no `[model]`", "add the section"));
    };
    let objective = Objective::find(&spec.job.kind);
    if objective.untrained() {
        return untrained(config, spec);
    }
    let started = Instant::now();
    let opened = Opened::new(spec, data, objective)?;
    let (train, val, other) = (&opened.train, &opened.val, opened.other.as_ref());
    let classes = opened.outputs.clone();
    let few = opened.few.as_ref();
    let later = |m: &ModelSection| later(m, config);
    let mut model = model.clone();
    let on_trust = later(&model);
    if on_trust {
        model.weights = None;
    }
    let net = Net::build_for(&model, &classes, spec, &config.inputs, &*train.dataset)?;
    let known = opened.source.iter().flat_map(|source| source.parts());
    let others = other.into_iter().flat_map(Domain::parts).chain(opened.tasks.iter().flat_map(tasks::Opened::parts));
    [train, val].into_iter().chain(known).chain(others).try_for_each(|samples| samples.fits(&net.contract))?;
    if !on_trust {
        Origin::open(spec, &model, &net, opened.source.as_ref(), &config.inputs)?;
    }
    let mut teachers = Vec::new();
    for (role, section) in spec.nets_of("teacher").into_iter().filter(|_| objective.has_teacher()) {
        if section.weights.is_none() {
            return Err(Error::user(
                format!("the {role} has no weights"),
                format!("set `nets.{role}.weights`: a random teacher teaches nothing"),
            ));
        }
        let (mut section, on_trust) = (section.clone(), later(section));
        if on_trust {
            (section.weights, section.adapter) = (None, None);
        }
        let teacher = config.placed(Net::build_teacher(role, &section, &classes, spec.job.seed, &config.inputs)?);
        // How one hears that is not here yet is known later.
        if !on_trust {
            opened.fit_teacher(&teacher.contract)?;
        }
        teachers.push(teacher);
    }
    // What a unit of the teachers' work begins with takes about as long.
    let opening = started.elapsed().as_secs_f64();
    let mut trusting = spec.clone();
    if let Some(tower) = trusting.nets.get_mut(TOWER).filter(|tower| later(tower)) {
        tower.weights = None;
    }
    let net = opened.with_tower(net, &trusting, &config.inputs)?;
    let net = config.placed(net.with_planned_tasks(spec, &opened.tasks, &model, config)?.with_own(spec, &teachers)?);
    let store = &net.network.initial;
    for one in net.all() {
        one.shape_at(store, one.network.units.len())?;
    }
    // What an epoch draws, and the samples of each draw.
    let (paired, mut said) = opened.paired(data)?;
    let second = net.tower.as_ref().map(|t| &t.0).or(teachers.first()).map(|net| &net.contract);
    said.extend(opened.clipped(&net.contract, second).into_iter().map(|cut| cut.text));
    let n = few.map_or(paired[0], |few| few.section.per_epoch as usize);
    let each = few.map_or(1, |few| few.trained().support() + few.trained().queries());
    let (batch, grains) = (data.batch as usize, spec.grains() as usize);
    // Of another domain there are as many beside them.
    let sides = if (objective.looks)(&spec.objective) { 2 } else { each };
    // Of tasks with samples of their own, as many as they have in a step.
    let beside: usize = opened.tasks.iter().map(|task| task.own_batch()).sum();
    let with_tasks = |samples: usize| samples + (samples * beside).div_ceil(batch);
    let grain_samples = with_tasks(sides * at_a_time(n, batch, grains, |count| (0..count).map(|s| s..s + 1).collect()));
    let fewest = spec.cluster.ranks.min as usize;
    let together = with_tasks(sides * at_a_time(n, batch, grains, |count| partition(count, fewest)));
    let own = partition(grains, fewest).iter().map(Range::len).max().unwrap_or(0);
    let (mut warnings, mut lockstep) = (said, (objective.coupled)(&spec.objective));
    let trained = odd::trained(&net, store, spec)?;
    warnings.extend(odd::untaught(&net, spec, &trained));
    warnings.extend(odd::idle_holds(&net, spec, &trained).filter(|_| !on_trust));
    warnings.extend(odd::importance(spec, opened.source.as_ref()));
    warnings.extend(odd::unmixed(&spec.modifiers, n, batch, grains));
    warnings.extend(odd::relabelled(spec, config, &classes, opened.source.as_ref())?);
    warnings.extend(opened.parts().filter_map(Samples::passed_over));
    warnings.extend(few.and_then(Few::warning));
    warnings.extend(few.and_then(Few::scarce));
    warnings.extend(opened.parts().filter_map(Samples::absent));
    if !net.network.adapters.sites.is_empty() && !peft::has_their_head(&net.network, net.backbone) {
        warnings.push(
            "the head is not that of the model that peft wraps: peft loads the adapter and leaves the head out"
                .to_owned(),
        );
    }
    if spec.optimizer.weight_decay > 0.0 && modifier::holds(&spec.modifiers).iter().any(|h| h.came > 0.0) {
        warnings.push(
            "`optimizer.weight_decay` pulls all weights towards zero, and a modifier towards where they began: set it to 0 \
             unless you want both"
                .to_owned(),
        );
    }
    let mut spans = [Vec::new(), Vec::new()];
    let stages = spec.stage.iter().map(|s| {
        let stage = Stage::resolve(&net, store, s)?;
        let cuts = [stage.cut, stage.tower_cut];
        spans.iter_mut().zip(cuts).for_each(|(spans, cut)| spans.push(Span { cut, epochs: s.epochs }));
        lockstep |= stage.lockstep;
        let numbers = stage.layout.total_len() + tasks::asides(spec, objective, &stage, store, opened.tasks.len());
        let gradients = (4 * own * numbers) >> 20;
        if stage.lockstep {
            warnings.push(format!(
                "stage `{}` takes the statistics of {} batch-norms over the whole batch: up to {together} samples (more where \
                 slots are unequal) and {gradients} MiB of gradients of {own} grains are in memory at a time, and ranks wait for \
                 each other at each of them, forward and backward",
                s.name,
                stage.norms.len()
            ));
        } else if s.bn_scope == BnScope::Batch {
            warnings.push(format!("no batch-norm learns in stage `{}`: its `bn_scope` changes nothing", s.name));
        }
        if stage.norms.is_empty() && (objective.norms_alone)(&spec.objective) {
            warnings.push(format!(
                "no batch-norm learns in stage `{}`: samples of the other domain pass the network and change nothing there",
                s.name
            ));
        }
        if (objective.coupled)(&spec.objective) {
            warnings.push(format!(
                "the loss of stage `{}` is one of the whole batch: up to {together} samples and {gradients} MiB of gradients \
                 of {own} grains are in memory at a time",
                s.name
            ));
        }
        warnings.extend(tasks::warning(spec, objective, &stage, &s.name));
        let steps = u64::from(s.epochs) * steps_per_epoch(n, batch) as u64;
        warnings.extend(odd::warm_up(s, steps));
        warnings.extend(odd::lagging(&spec.modifiers, &s.name, steps));
        if stage.cut + 1 == net.network.units.len() && (objective.features)(&spec.objective) {
            warnings.push(format!(
                "stage `{}` trains the last layer alone: what the objective does to features changes nothing there; train \
                 more, or set `model.head.hidden`",
                s.name
            ));
        }
        let drops = |p: Option<f64>| p.is_some_and(|p| p > 0.0);
        if stage.cut > 0 && (drops(model.dropout) || drops(model.attention_dropout)) {
            warnings.push(format!("in stage `{}` only what it trains and lies above drops: what is frozen below runs once", s.name));
        }
        Ok(StageFigures { units: Vec::new(), ..StageFigures::of(&net, store, &stage, s) })
    });
    let mut stages = stages.collect::<Result<Vec<StageFigures>>>()?;
    if config.look {
        let load = Load::of(train, val, other, spec).with_opened(data, &opened.tasks);
        for (stage, (saving, unit)) in stages.iter_mut().zip(saving::looked(&net, store, (train, load), &spans[0])?) {
            (stage.saving, stage.cached) = (Some(saving), unit.into_iter().collect());
        }
        if let (Some(tower), Some(halves)) = (&net.tower, &opened.halves) {
            let seen = (&halves.train, Load::of_halves(halves, n));
            let second = saving::looked(&tower.0, store, seen, &spans[1])?;
            for (stage, (saving, unit)) in stages.iter_mut().zip(second) {
                stage.saving = stage.saving.map(|first| first.with(saving));
                stage.cached.extend(unit.map(|unit| format!("{TOWER}.{unit}")));
            }
        }
    }
    let all: Vec<&dyn Dataset> = opened.parts().map(|samples| &*samples.dataset).collect();
    let dimensions = (objective.dimensions)(&spec.objective);
    let split = partition(grains, spec.cluster.ranks.max as usize);
    Ok(Plan {
        sources: config.sources(),
        downloads: config.absent.clone(),
        classes: if few.is_some() || dimensions.is_some() { Vec::new() } else { classes },
        dimensions,
        episodes: few.map(|few| EpisodePlan {
            method: few.method.name(),
            classes: [train.dataset.classes().len(), val.dataset.classes().len()],
            section: few.section.clone(),
        }),
        samples: paired,
        manifest: manifest(&all).to_hex().to_string(),
        preprocess: match on_trust && model.preprocess.is_none() && net.contract.text.is_none() {
            true => "that of the weights, which are not here yet".into(),
            false => described(&net.contract),
        },
        precision: precisions(spec),
        steps_per_epoch: steps_per_epoch(n, batch),
        grains: spec.grains(),
        grain_samples: if lockstep { together } else { grain_samples },
        warnings,
        tasks: opened.tasks.iter().map(|task| task.planned([n, val.count()], train)).collect::<Result<_>>()?,
        weighed: tasks::weighed(spec, objective),
        class_weights: weights::of_classes(data, &*train.dataset)?,
        split: split.iter().map(Range::len).collect(),
        stages,
        teaching: teach::estimate(config, spec, opened.shown(), &net.taps.teacher, &teachers)?
            .map(|found| Teaching { opening, ..found }),
    })
}

/// Whether weights come from a step that has not run yet, or from the hub.
pub(super) fn later(model: &ModelSection, config: &Config) -> bool {
    let weights = model.weights.as_deref().unwrap_or_default();
    let handed = Handed::key(weights);
    handed.is_some_and(|name| !config.inputs.contains_key(name)) || matches!(Hub::parse(weights), Ok(Some(_)))
}

/// Preprocessing, for people.
fn described(c: &Contract) -> String {
    match c {
        Contract { text: Some(text), .. } => format!("texts of at most {} tokens", text.max_length),
        Contract { strokes: Some(strokes), .. } => format!("drawings of {}", strokes.sentence()),
        _ => {
            let sound = c.audio.as_ref().map(|a| format!(", of {}", a.sentence())).unwrap_or_default();
            format!("{} pixels{sound}, {}", c.side(), c.sentence())
        }
    }
}

/// The same for a job that trains nothing.
fn untrained(config: &Config, spec: &JobSpec) -> Result<Plan> {
    let here = !spec.model.iter().chain(spec.nets.values()).any(|m| later(m, config));
    let val = zero_shot::samples(spec)?;
    let (preprocess, cut) = if here {
        let net = zero_shot::Opened::new(config, spec)?.net;
        (described(&net.contract), clipped::warning(&val, &net.contract))
    } else {
        ("that of the weights, which are not here yet".into(), None)
    };
    Ok(Plan {
        sources: config.sources(),
        downloads: config.absent.clone(),
        classes: val.dataset.classes().to_vec(),
        dimensions: None,
        episodes: None,
        samples: [0, val.count()],
        manifest: manifest(&[&*val.dataset]).to_hex().to_string(),
        preprocess,
        precision: precisions(spec),
        steps_per_epoch: 0,
        grains: spec.grains(),
        grain_samples: 0,
        warnings: val.passed_over().into_iter().chain(cut.map(|cut| cut.text)).collect(),
        tasks: Vec::new(),
        weighed: None,
        class_weights: None,
        split: Vec::new(),
        stages: Vec::new(),
        teaching: None,
    })
}
