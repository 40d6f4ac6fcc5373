//! The end of a run: the last evaluation and the package.

use super::{
    Features, Loop, export,
    export::{Report, TaskReport},
    stage::Stage,
};
use crate::{Result, collective::Collective, link::Link};

impl Loop<'_> {
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
        let inputs = self.inputs(self.net, self.val, cut, features.val.get(&cut))?;
        let [_, halves] = self.halves(tower_cut, features)?;
        let tasks = self.fed_tasks(cut, &features.tasks)?;
        let judged = self.judged(&inputs, halves.as_ref(), &tasks, group)?;
        let tasks = judged.tasks.into_iter().zip(self.counts());
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
            tasks: tasks.map(|((name, evaluation), weight)| (name, TaskReport { weight, evaluation })).collect(),
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
