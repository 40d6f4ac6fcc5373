//! The end of a run: the last evaluation and the package.

use std::collections::BTreeMap;

use super::{
    Features, Loop, evaluate, export,
    export::{Report, TaskReport},
    fewshot::{adapt::Tuner, judge::Judged},
    inputs::Inputs,
    net,
    pairs::Pairs,
    retrieval,
    stage::Stage,
};
use crate::{
    Result,
    collective::Collective,
    eval::{
        Evaluation,
        selection::{Picked, selection},
        shift::Shift,
        softened::{Softened, softened},
    },
    link::Link,
};

/// The parameter of objectives that soften what a teacher says, and of how many samples that is shown.
const TEMPERATURE: &str = "temperature";
const FEW: usize = 64;

impl Loop<'_> {
    /// What the network comes to on the validation samples, or on episodes of them.
    pub(super) fn evaluation(&self, val: &Inputs<'_>, which: Judged, group: &mut dyn Collective) -> Result<Evaluation> {
        let Some(few) = &self.run.few else {
            return Ok(Evaluation::new(self.classes, &evaluate::evaluate(&self.state.store, val, group)?));
        };
        let (store, stage) = (&self.state.store, self.state.progress.stage);
        let tuner = Tuner::judged(few, self.net, store, self.run.spec, stage)?;
        few.evaluation(store, val, tuner.as_ref(), which, group)
    }

    /// The last evaluation and the package. It starts in front of everything that any stage has trained, from features
    /// that are still there or else from pixels.
    pub(super) fn finish(
        &self,
        features: &Features,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Report> {
        if group.rank() == 0 {
            link.activity("evaluate", 0, self.val.count() as u64);
        }
        let mut cut = self.net.network.units.len();
        let mut tower_cut = self.net.tower.as_ref().map_or(0, |t| t.0.network.units.len());
        for section in &self.run.spec.stage {
            let stage = Stage::resolve(self.net, &self.state.store, section)?;
            (cut, tower_cut) = (cut.min(stage.cut), tower_cut.min(stage.tower_cut));
        }
        if let Some(few) = self.run.few.as_ref().filter(|_| self.run.spec.stage.is_empty()) {
            cut = self.untrained_cut(few)?;
            cut = if features.val.contains_key(&cut) { cut } else { 0 };
        }
        let (judged, other) = if self.other.is_some() {
            let (evaluation, other) = self.survey(cut, features, group)?;
            (retrieval::Judged { evaluation, retrieval: None, tasks: Vec::new() }, other)
        } else {
            let inputs = self.inputs(self.net, self.val, cut, features.val.get(&cut))?;
            let [_, halves] = self.halves(tower_cut, features)?;
            let tasks = self.fed_tasks(cut, &features.tasks, &inputs)?;
            (self.judged(&inputs, halves.as_ref(), &tasks, Judged::Test, group)?, None)
        };
        let (target, after) = other.unzip();
        let tasks = judged.tasks.into_iter().zip(self.counts());
        let spec = self.run.spec;
        let picks = after.is_some() || spec.stop.as_ref().is_some_and(|stop| stop.restore_best);
        let report = Report {
            job: spec.job.name.clone(),
            kind: spec.job.kind.clone(),
            steps: self.state.progress.taken(),
            samples: [self.entries(), self.val.count()],
            sources: self.config.sources(),
            prefix: self.prefix,
            stages: self.stages.clone(),
            lr_find: self.state.progress.found.values().cloned().collect(),
            history: self.state.progress.history.clone(),
            evaluation: judged.evaluation,
            retrieval: judged.retrieval,
            pairing: self.pairs.and_then(Pairs::pairing),
            tasks: tasks.map(|((name, evaluation), weight)| (name, TaskReport { weight, evaluation })).collect(),
            baselines: self.state.progress.baselines.clone(),
            overlap: self.run.few.as_ref().map(|few| few.overlap.clone()).unwrap_or_default(),
            clipped: self.clipped.clone(),
            target: target.flatten(),
            selection: if picks { self.selection() } else { Vec::new() },
            softened: self.softened()?,
            shift: after.map(|after| Shift::new(self.state.progress.before.clone(), after)),
            source: self.retention(group)?,
        };
        if group.rank() == 0 {
            link.activity("export", 0, 1);
            let dir = self.config.work.join("model");
            for (name, path) in export::write(&dir, self.net, &self.state.store, self.classes, spec, &report)? {
                link.artifact(name, &path);
            }
            link.activity("export", 1, 1);
        }
        // Nobody leaves while another may still need an answer.
        group.barrier()?;
        Ok(report)
    }

    /// What temperatures do to what the first teacher says of some samples.
    fn softened(&self) -> Result<Vec<Softened>> {
        let spec = self.run.spec;
        let entry = (self.run.objective.entry)();
        let (Some(net), true) = (self.teachers.first(), entry.params.iter().any(|p| p.name == TEMPERATURE)) else {
            return Ok(Vec::new());
        };
        // Of pairs, it sees the other halves, and only training samples have some.
        let samples = self.pairs.map_or(self.val, |pairs| &pairs.train);
        let inputs = self.inputs(net, samples, net.network.units.len(), None)?;
        let few: Vec<usize> = (0..samples.count().min(FEW)).collect();
        let logits = inputs.batch(&net.network.initial, &few, &vec![0; few.len()], None)?;
        Ok(softened(&net::rows(&logits)?, entry.number(&spec.objective, TEMPERATURE)))
    }

    /// What each criterion would pick among the epochs of the last stage, and which of them the model is of that goes out.
    fn selection(&self) -> Vec<Picked> {
        let history = &self.state.progress.history;
        let Some(last) = history.last() else { return Vec::new() };
        let epochs = history.iter().filter(|h| h.stage == last.stage);
        let epochs: Vec<(u32, &BTreeMap<String, f64>)> = epochs.map(|h| (h.epoch, &h.values)).collect();
        let used = self.run.spec.stop.as_ref().filter(|s| s.restore_best);
        let model = match used {
            // Not known of a stage that ended in a release that did not keep it.
            Some(_) => Some(self.state.progress.best_epoch).filter(|epoch| *epoch > 0),
            None => Some(last.epoch),
        };
        selection(&epochs, model, used.map(|s| s.monitor.as_str()))
    }
}
