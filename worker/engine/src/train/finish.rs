//! The end of a run: the last evaluation and the package.

use std::collections::BTreeMap;

use super::{Features, Loop, export, export::Report, net, stage::Stage};
use crate::{
    Result,
    collective::Collective,
    eval::{
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
        for section in &self.run.spec.stage {
            cut = cut.min(Stage::resolve(self.net, &self.state.store, section)?.cut);
        }
        let (evaluation, other) = self.survey(cut, features, group)?;
        let (target, after) = other.unzip();
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
            evaluation,
            target: target.flatten(),
            selection: if after.is_some() { self.selection() } else { Vec::new() },
            softened: self.softened()?,
            shift: after.map(|after| Shift { before: self.state.progress.before.clone(), after }),
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

    /// What temperatures do to what the first teacher says of some validation samples.
    fn softened(&self) -> Result<Vec<Softened>> {
        let spec = self.run.spec;
        let entry = (self.run.objective.entry)();
        let (Some(net), true) = (self.teachers.first(), entry.params.iter().any(|p| p.name == TEMPERATURE)) else {
            return Ok(Vec::new());
        };
        let inputs = self.inputs(net, self.val, net.network.units.len(), None)?;
        let few: Vec<usize> = (0..self.val.count().min(FEW)).collect();
        let logits = inputs.batch(&net.network.initial, &few, &vec![0; few.len()], None)?;
        Ok(softened(&net::rows(&logits)?, entry.number(&spec.objective, TEMPERATURE)))
    }

    /// What each criterion would pick among the epochs of the last stage, whose model goes out.
    fn selection(&self) -> Vec<Picked> {
        let history = &self.state.progress.history;
        let Some(last) = history.last() else { return Vec::new() };
        let epochs = history.iter().filter(|h| h.stage == last.stage);
        let epochs: Vec<(u32, &BTreeMap<String, f64>)> = epochs.map(|h| (h.epoch, &h.values)).collect();
        let used = self.run.spec.stop.as_ref().filter(|s| s.restore_best && s.min_delta == 0.0);
        selection(&epochs, used.map(|s| s.monitor.as_str()))
    }
}
