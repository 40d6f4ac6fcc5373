//! A run from its first sample to its exported model: the one loop, for one rank and for many.

mod ahead;
mod anchor;
mod apply;
mod begin;
mod chain;
mod clipped;
mod config;
mod cut;
mod domain;
mod encode;
mod epoch;
pub(crate) mod evaluate;
pub mod export;
mod features;
pub(crate) mod fewshot;
mod finish;
mod fisher;
mod gate;
mod grain;
pub(crate) mod inputs;
mod judge;
mod kinds;
mod leakage;
mod lockstep;
mod lr_find;
mod masked;
pub mod net;
mod odd;
mod opened;
pub mod origin;
mod overlap;
pub(crate) mod pairs;
mod parts;
mod prepare;
pub mod probe;
mod publish;
mod rates;
mod remember;
pub(crate) mod retrieval;
mod rules;
pub(crate) mod samples;
pub mod saving;
pub(crate) mod stage;
mod state;
mod stay;
mod step;
mod steps;
mod taps;
pub(crate) mod tasks;
pub mod teach;
mod teacher;
#[cfg(test)]
mod tests;
mod tower;
pub mod verify;
mod watch;
mod weights;
mod zero_shot;

use std::{path::PathBuf, sync::Arc};

use candle_core::Tensor;
use tl_proto::spec::{DataSection, JobSpec, Sampling};

pub use self::config::Config;
use self::{
    anchor::Anchor,
    begin::{resume, same_numbers, same_parts, same_samples, same_sources},
    domain::Domain,
    export::{PrefixFigures, Report, StageFigures},
    features::{ByCut, Features},
    fewshot::Few,
    inputs::Inputs,
    net::Net,
    opened::{Opened, Ready},
    origin::Origin,
    pairs::Pairs,
    samples::Samples,
    stage::Stage,
    state::RunState,
    step::{Other, Paired, Step},
    steps::Pace,
    tasks::{Task, Tasked},
    teacher::Teacher,
    watch::Watch,
};
use crate::{
    Error, Result,
    cache::Packed,
    collective::Collective,
    data::sampler::{Epoch, steps_per_epoch},
    link::{Link, Notice},
    modifier, nn,
    objective::Objective,
    optim,
};

/// What does not change during a run.
pub struct Run<'a> {
    /// The job.
    pub spec: &'a JobSpec,
    /// Its data.
    pub data: &'a DataSection,
    /// What it minimises.
    pub objective: &'static Objective,
    /// `[classes]`: what a class counts in the loss, where they do not all count the same.
    pub weights: Option<Tensor>,
    /// The episodes, where it learns from such.
    pub(crate) few: Option<Few>,
}

impl Run<'_> {
    /// What an epoch draws of so many samples: each of them, or episodes.
    pub fn draws(&self, samples: usize) -> usize {
        self.few.as_ref().map_or(samples, |few| few.section.per_epoch as usize)
    }

    /// Predictions that are judged for each draw.
    fn predictions(&self) -> usize {
        self.few.as_ref().map_or(1, |few| few.trained().queries())
    }
}

/// Trains, evaluates and exports. Every rank of the group calls it with the same job; rank 0 reports.
///
/// # Errors
/// Typed by what should happen next; see [`Error`].
pub fn run(config: &Config, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Report> {
    let spec = &config.spec;
    let missing = |what: &str| Error::user(format!("the job has no `[{what}]`"), format!("add a `[{what}]` section"));
    let local = config.local()?;
    let data = local.data.as_ref().ok_or_else(|| missing("data"))?;
    let model = local.model.as_ref().ok_or_else(|| missing("model"))?;
    let objective = Objective::find(&spec.job.kind);
    if objective.untrained() {
        return zero_shot::run(config, group, link);
    }
    teach::unpack(config, link);
    same_numbers(spec, &config.place, group)?;
    same_sources(config, group)?;
    let opened = Opened::new(spec, data, objective)?;
    same_samples(opened.parts(), group)?;
    if group.rank() == 0 {
        opened.parts().filter_map(Samples::passed_over).for_each(|text| link.notice(Notice::FilesPassedOver, &text));
    }
    let classes = opened.outputs.clone();
    let student = Net::build_for(model, &classes, spec, &config.inputs, &*opened.train.dataset)?;
    let student = opened.with_tower(student, &local, &config.inputs)?;
    let file = net::weights_path(model, &config.inputs)?;
    let student = student.with_tasks_of(spec, &opened.tasks, file.as_deref())?;
    let teachers = begin::teachers(&local, &classes, config)?;
    teachers.iter().try_for_each(|teacher| opened.fit_teacher(&teacher.contract))?;
    let parts = begin::parts(&student, &teachers);
    same_parts(&parts, group)?;
    let mut student = config.placed(student.with_own(spec, &teachers)?);
    let second = student.tower.as_ref().map(|t| &t.0).or(teachers.first()).map(|net| &net.contract);
    let mut clipped = Vec::new();
    if group.rank() == 0 {
        clipped = opened.clipped(&student.contract, second);
        clipped.iter().for_each(|cut| link.notice(cut.notice, &cut.text));
    }
    let named = odd::relabelled(&local, config, &classes, opened.source.as_ref())?;
    if group.rank() == 0 {
        named.iter().for_each(|text| link.notice(Notice::OutputsNamed, text));
    }
    let ready = opened.ready(spec, data, &student.contract, second, group, link)?;
    if group.rank() == 0 {
        ready.leaked().iter().for_each(|warning| link.notice(Notice::SameSamples, warning));
        ready.torn().iter().for_each(|warning| link.notice(Notice::TwoClasses, warning));
    }
    let Ready { train, val, other, pairs, source, tasks, few } = ready;
    let origin = Origin::open(spec, model, &student, source.as_ref(), &config.inputs)?;
    if let (Some(origin), Some(_)) = (&origin, modifier::remembers(&spec.modifiers)) {
        student = origin.beside(student);
    }
    let anchor = Anchor::of(&student, spec);
    let weights = weights::of_classes(data, &*train.dataset)?;
    let weights = weights.map(|w| nn::tensor(w, &[classes.len()])).transpose()?;
    if let (Some(warning), 0) = (few.as_ref().and_then(Few::warning), group.rank()) {
        link.notice(Notice::SameClasses, &warning);
    }
    let run = Run { spec, data, objective, weights, few };
    let optimizer = optim::find(&spec.optimizer.name);
    let fresh = begin::fresh(&mut student, spec, optimizer, parts);
    let mut state = resume(config, fresh, group, link)?;
    if let Some(anchor) = &anchor {
        anchor.learn(&mut state, &student, origin.as_ref(), spec.job.seed, group, link)?;
    }
    let mut looped = Loop {
        config,
        run,
        net: &student,
        teachers: &teachers,
        train: &train,
        val: &val,
        other: other.as_ref(),
        pairs: pairs.as_ref(),
        origin: origin.as_ref(),
        anchor,
        tasks: tasks.as_deref(),
        classes: &classes,
        clipped: clipped.into_iter().map(|cut| cut.text).collect(),
        state,
        prefix: PrefixFigures::default(),
        stages: Vec::new(),
        pending: None,
        failed_checkpoints: 0,
    };
    looped.run(optimizer, group, link)
}

struct Loop<'a> {
    config: &'a Config,
    run: Run<'a>,
    net: &'a Net,
    teachers: &'a [Net],
    train: &'a Samples,
    val: &'a Samples,
    /// Where the run adapts to another domain.
    other: Option<&'a Domain>,
    /// What the samples go with, where the run learns from pairs.
    pairs: Option<&'a Pairs>,
    /// Where it is told what a run forgets.
    origin: Option<&'a Origin<'a>>,
    /// Where it is held to the weights that it began with.
    anchor: Option<Anchor>,
    /// What else is learned, where the objective learns several tasks.
    tasks: Option<&'a [Task]>,
    classes: &'a [String],
    /// What rank 0 has to say of samples of which a part is not seen.
    clipped: Vec<String>,
    state: RunState,
    prefix: PrefixFigures,
    stages: Vec<StageFigures>,
    /// A checkpoint that may be published once the next reduction has proved that all ranks have its state.
    pending: Option<(u64, PathBuf)>,
    failed_checkpoints: u32,
}

/// What the network is fed in a stage.
#[derive(Clone, Copy)]
struct Fed<'a> {
    inputs: &'a Inputs<'a>,
    val: &'a Inputs<'a>,
    teachers: &'a [Teacher<'a>],
    /// What the network said as it came, where its old head goes on.
    said: Option<&'a Inputs<'a>>,
    other: Option<Other<'a>>,
    /// Features of the other domain.
    shifted: &'a [ByCut; 3],
    paired: Option<Paired<'a>>,
    /// What the second network sees of validation samples.
    judged: Option<&'a Inputs<'a>>,
    /// What it sees of tasks with samples of their own.
    tasks: &'a tasks::Fed<'a>,
}

impl Loop<'_> {
    fn run(&mut self, optimizer: &optim::Optimizer, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Report> {
        let spec = self.run.spec;
        let taught = self.teach(group, link)?;
        let recalled = self.recall(group, link)?;
        self.baselines(group, link)?;
        let mut features = Features::default();
        if let Some(few) = self.run.few.as_ref().filter(|_| spec.stage.is_empty()) {
            let done = self.frozen(self.untrained_cut(few)?, group, link)?;
            done.iter().for_each(|done| self.prefix.count(done));
            features.val = done.map(|done| done.by_cut).unwrap_or_default();
        }
        for (index, stage_spec) in spec.stage.iter().enumerate() {
            let stage = Stage::resolve(self.net, &self.state.store, stage_spec)?;
            self.stages.push(StageFigures::of(self.net, &self.state.store, &stage, stage_spec));
            if index < self.state.progress.stage {
                continue;
            }
            self.encode(index, &stage, &mut features, group, link)?;
            self.look_before(stage.cut, &features, group, link)?;
            let inputs = self.inputs(self.net, self.train, stage.cut, features.train.get(&stage.cut))?;
            let val = self.inputs(self.net, self.val, stage.cut, features.val.get(&stage.cut))?.beside(&inputs);
            let teachers = self.teachers(&taught)?;
            let [halves, judged] = self.halves(stage.tower_cut, &features)?;
            let paired = self.pairs.map(|pairs| Paired { inputs: halves.as_ref(), pairs });
            let said = match self.remembers(&stage) {
                Some(net) => Some(self.inputs(net, self.train, net.network.units.len(), recalled.as_ref())?),
                None => None,
            };
            let looks = (self.run.objective.looks)(&spec.objective);
            let theirs = match self.other.filter(|_| looks) {
                Some(domain) => {
                    let features = features.other[0].get(&stage.cut);
                    let theirs = self.inputs(self.net, &domain.train, stage.cut, features)?;
                    Some((theirs.beside(&inputs), &domain.order))
                }
                None => None,
            };
            let other = theirs.as_ref().map(|(inputs, order)| Other { inputs, order });
            let shifted = &features.other;
            let tasks = &self.fed_tasks(stage.cut, &features.tasks, &inputs)?;
            let (said, judged) = (said.as_ref(), judged.as_ref());
            let fed =
                Fed { inputs: &inputs, val: &val, teachers: &teachers, said, other, shifted, paired, judged, tasks };
            self.stage(index, &stage, fed, optimizer, group, link)?;
            features.forget_above(&stage);
        }
        // The empty reduction that proves that everyone has the last state.
        group.barrier()?;
        self.publish(group, link);
        self.finish(&features, group, link)
    }

    fn inputs<'n>(
        &self,
        net: &'n Net,
        samples: &'n Samples,
        cut: usize,
        features: Option<&'n Vec<Vec<f32>>>,
    ) -> Result<Inputs<'n>> {
        let trained = std::ptr::eq(net, self.net) || self.net.is_tower(net);
        let store = if trained { &self.state.store } else { &net.network.initial };
        Ok(Inputs {
            net,
            samples,
            cut,
            features: features.map(Vec::as_slice),
            packed: Packed::default(),
            shape: net.shape_at(store, cut)?,
            whole: self.other.is_some() || self.tasks.unwrap_or_default().iter().any(|task| task.own.is_some()),
            packs: Arc::default(),
        })
    }

    fn stage(
        &mut self,
        index: usize,
        stage: &Stage,
        fed: Fed<'_>,
        optimizer: &optim::Optimizer,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        let spec = self.run.spec;
        let section = &spec.stage[index];
        let norms: Vec<usize> = stage.norms.iter().flat_map(|(m, v)| [m.0, v.0]).collect();
        if !self.state.progress.stage_open {
            self.find_rate(index, stage, fed, optimizer, group, link)?;
            self.open(index, stage, &norms, optimizer);
        }
        let found = self.state.progress.found.get(&index);
        let pick = section.lr_find.as_ref().and_then(|f| f.pick);
        let top = pick.and_then(|p| found?.picked(p)).unwrap_or_else(|| section.lr.top());
        let per_epoch = self.per_epoch();
        let pace = Pace { section, optimizer, top, total: u64::from(section.epochs) * per_epoch as u64 };
        let mut stopped = false;
        while self.state.progress.epoch < section.epochs && !stopped {
            let epoch = self.epoch();
            while self.state.progress.step_in_epoch < per_epoch {
                let stops = self.stretch(stage, (fed, &epoch), &pace, group, link)?;
                if stops || self.is_due() {
                    self.checkpoint(group, link)?;
                }
                if stops {
                    group.barrier()?;
                    self.publish(group, link);
                    return Err(Error::Stopped);
                }
            }
            stopped = self.end_epoch(section, top, fed, group, link)?;
            if spec.checkpoint.every == 0 {
                self.checkpoint(group, link)?;
            }
        }
        if stopped && group.rank() == 0 {
            link.notice(
                Notice::StoppedEarly,
                &format!(
                    "stage `{}` ended after {} epochs: the last ones were no improvement",
                    section.name, self.state.progress.epoch
                ),
            );
        }
        let network = &self.net.network;
        // An old head says at first what it said.
        let late = [network.adapters.late.clone(), network.old_params()].concat();
        gate::check_short(&self.state.progress, &network.initial, &stage.layout, &late)?;
        let digest = gate::frozen_digest(&self.state, &self.net.network.initial, &stage.layout, &norms);
        gate::check_frozen(&self.state.progress, &digest, &section.name)?;
        let p = &self.state.progress;
        // The best epoch is what goes out, where one is kept.
        let best = self.state.best.is_some().then(|| u64::from(p.best_epoch) * self.per_epoch() as u64);
        let lags = odd::lagging(&spec.modifiers, &section.name, best.map_or(p.averaged, |steps| steps.min(p.averaged)));
        if let (Some(text), 0) = (lags, group.rank()) {
            link.notice(Notice::AverageLags, &text);
        }
        // What was judged is what goes on: the average where one is kept, and of those the best.
        let averages = self.state.averages.take();
        self.state.progress.weighing.restore();
        if let Some((values, buffers)) = self.state.best.take().or(averages) {
            (self.state.store.values, self.state.store.buffer_values) = (values, buffers);
        }
        let p = &mut self.state.progress;
        p.epochs_before += u64::from(p.epoch);
        (p.stage, p.epoch, p.step_in_epoch, p.stage_step, p.stage_open) = (index + 1, 0, 0, 0, false);
        self.checkpoint(group, link)
    }

    fn step<'s>(&'s self, stage: &'s Stage, fed: Fed<'s>, epoch: &'s Epoch, measures: bool) -> Step<'s> {
        let Fed { inputs, teachers, said, other, paired, .. } = fed;
        let tasks = self.tasks.map(|tasks| Tasked { tasks, inputs: &fed.tasks.train });
        Step {
            run: &self.run,
            state: &self.state,
            stage,
            inputs,
            teachers,
            said,
            epoch,
            measures,
            other,
            paired,
            tasks,
        }
    }

    /// Steps of an epoch.
    fn per_epoch(&self) -> usize {
        steps_per_epoch(self.run.draws(self.entries()), self.run.data.batch as usize)
    }

    /// The order of the epoch that is on.
    fn epoch(&self) -> Epoch {
        let p = &self.state.progress;
        let (seed, epoch, batch) =
            (self.run.spec.job.seed, p.epochs_before + u64::from(p.epoch), self.run.data.batch as usize);
        match self.run.data.sampling {
            Sampling::Shuffled => Epoch::new(seed, epoch, self.run.draws(self.entries()), batch),
            Sampling::Balanced => Epoch::balanced(seed, epoch, self.train.dataset.labels(), batch),
        }
    }

    /// Sets a stage up.
    fn open(&mut self, index: usize, stage: &Stage, norms: &[usize], optimizer: &optim::Optimizer) {
        let spec = self.run.spec;
        if spec.stage[index].reset_optimizer {
            self.state.moments = (optimizer.init)(self.state.store.values.len());
        }
        let digest = gate::frozen_digest(&self.state, &self.net.network.initial, &stage.layout, norms);
        let p = &mut self.state.progress;
        (p.stage, p.stage_open, p.frozen, p.watched) = (index, true, digest, 0);
        (p.best, p.best_epoch, p.stop_wait, p.plateau_wait, p.plateau_factor) = (None, 0, 0, 0, 1.0);
        (p.advance, p.plateau, p.averaged) = (Watch::default(), Watch::default(), 0);
        self.state.best = None;
        let store = &self.state.store;
        let averages = || (store.values.clone(), store.buffer_values.clone());
        self.state.averages = modifier::average(&spec.modifiers, 0).map(|_| averages());
    }
}
