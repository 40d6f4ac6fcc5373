//! The end of a run: the last evaluation and the package.

use super::{
    Features, Loop, evaluate, export,
    export::Report,
    fewshot::{adapt::Tuner, judge::Judged},
    inputs::Inputs,
    stage::Stage,
};
use crate::{Result, collective::Collective, eval::Evaluation, link::Link};

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
        let inputs = self.inputs(self.net, self.val, cut, features.val.get(&cut))?;
        let [_, halves] = self.halves(tower_cut, features)?;
        let judged = self.judged(&inputs, halves.as_ref(), Judged::Test, group)?;
        let spec = self.run.spec;
        let report = Report {
            job: spec.job.name.clone(),
            kind: spec.job.kind.clone(),
            steps: self.state.progress.step,
            samples: [self.train.count(), self.val.count()],
            sources: self.config.sources(),
            prefix: self.prefix,
            stages: self.stages.clone(),
            lr_find: self.state.progress.found.values().cloned().collect(),
            history: self.state.progress.history.clone(),
            evaluation: judged.evaluation,
            retrieval: judged.retrieval,
            baselines: self.state.progress.baselines.clone(),
            overlap: self.run.few.as_ref().map(|few| few.overlap.clone()).unwrap_or_default(),
            target: self.shifted(cut, &features.other, group)?.and_then(|s| s.evaluation),
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
}
