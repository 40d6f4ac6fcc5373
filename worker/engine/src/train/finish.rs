//! The end of a run: the last evaluation and the package.

use super::{Loop, encode, evaluate, export, export::Report, stage::Stage};
use crate::{Result, collective::Collective, eval::Evaluation, link::Link};

impl Loop<'_> {
    /// The last evaluation, from pixels to figures, and the package.
    pub(super) fn finish(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Report> {
        if group.rank() == 0 {
            link.activity("evaluate", 0, self.val.count() as u64);
        }
        let cut = self.stages_cut()?;
        let features = if cut > 0 {
            self.encoded(self.net, &self.state.store.clone(), &[cut], self.val, group, link)?.by_cut.remove(&cut)
        } else {
            None
        };
        let inputs = self.inputs(self.net, self.val, cut, features)?;
        let outcomes = evaluate::evaluate(&self.state.store, &inputs, group)?;
        let spec = self.run.spec;
        let report = Report {
            job: spec.job.name.clone(),
            kind: spec.job.kind.clone(),
            steps: self.state.progress.step,
            samples: [self.train.count(), self.val.count()],
            prefix: self.prefix,
            stages: self.stages.clone(),
            history: self.state.progress.history.clone(),
            evaluation: Evaluation::new(self.classes, &outcomes),
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

    /// The cut in front of everything that any stage has trained; 0 if nothing stays frozen or it would not fit.
    fn stages_cut(&self) -> Result<usize> {
        let mut cut = self.net.network.units.len();
        for section in &self.run.spec.stage {
            cut = cut.min(Stage::resolve(self.net, &self.state.store, section)?.cut);
        }
        if cut == 0 {
            return Ok(0);
        }
        let width: usize = self.net.shape_at(&self.state.store, cut)?.iter().product();
        Ok(if width * 4 * self.val.count() <= encode::BUDGET { cut } else { 0 })
    }
}
