//! What comes out in front of a cut, of every sample and view, where it is kept from epoch to epoch.

use std::collections::BTreeMap;

use super::{stage::Stage, tasks};

/// Features of samples and views, by cut.
pub(super) type ByCut = BTreeMap<usize, Vec<Vec<f32>>>;

/// Features of all parts.
#[derive(Default)]
pub(super) struct Features {
    pub train: ByCut,
    pub val: ByCut,
    /// Of the other domain: what is learned from, the same as it is, and what is judged by its labels.
    pub other: [ByCut; 3],
    /// Of other halves, by the second network: what is learned from, and what is judged.
    pub pairs: [ByCut; 2],
    /// Of tasks with samples of their own.
    pub tasks: tasks::Features,
}

impl Features {
    /// Once a stage has trained units from its cuts on, what came out of them before is out of date.
    pub(super) fn forget_above(&mut self, stage: &Stage) {
        let all = [&mut self.train, &mut self.val].into_iter().chain(&mut self.other);
        let all = all.chain(self.tasks.iter_mut().flatten());
        all.for_each(|kept| kept.retain(|c, _| *c <= stage.cut));
        self.pairs.iter_mut().for_each(|kept| kept.retain(|c, _| *c <= stage.tower_cut));
    }
}
