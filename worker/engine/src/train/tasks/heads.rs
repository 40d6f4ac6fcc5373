//! The heads of a network: that of `[model]`, and one for each further task.

use std::path::Path;

use candle_core::Tensor;
use tl_proto::spec::{HeadSection, JobSpec, MAIN};

use super::{
    super::{chain, net::Net},
    Opened,
};
use crate::{
    Error, Result,
    backbone::{TASKS, TaskHead, Unit},
    nn::{ParamId, Pass, Tape},
    weights,
};

impl Net {
    /// The network with a head for each task; heads that are to be kept come from the file `weights`.
    ///
    /// # Errors
    /// A head that is kept and not there, or for other classes.
    pub fn with_tasks<'t>(
        mut self,
        tasks: impl IntoIterator<Item = (&'t str, &'t HeadSection, &'t [String])>,
        seed: u32,
        weights: Option<&Path>,
    ) -> Result<Self> {
        let mut kept = Vec::new();
        for (name, head, classes) in tasks {
            self.network = self.network.with_task(self.backbone, &self.contract, (name, head), classes, seed);
            if head.keep {
                kept.push((name, classes));
            }
        }
        if kept.is_empty() {
            return Ok(self);
        }
        let Some(path) = weights else {
            return Err(Error::user(
                format!("`tasks.{}.head.keep` is set, and the job has no weights to take it from", kept[0].0),
                "remove it, or set `model.weights`",
            ));
        };
        let loaded = weights::load_tasks(&mut self.network.initial, path, &kept)?;
        self.loaded.extend(loaded);
        Ok(self)
    }

    /// The same for the tasks of a job.
    ///
    /// # Errors
    /// As [`Net::with_tasks`].
    pub(in crate::train) fn with_tasks_of(
        self,
        spec: &JobSpec,
        opened: &[Opened],
        weights: Option<&Path>,
    ) -> Result<Self> {
        let tasks = opened.iter().map(|t| (t.name.as_str(), &t.section.head, t.classes.as_slice()));
        self.with_tasks(tasks, spec.job.seed, weights)
    }

    /// The units of each head, that of `[model]` first.
    pub(in crate::train) fn heads(&self) -> impl Iterator<Item = &[Unit]> {
        let network = &self.network;
        std::iter::once(&network.units[network.head..]).chain(network.tasks.iter().map(|t| t.units.as_slice()))
    }

    /// What some heads, by number, make of a batch in front of unit `from`. What lies below them runs once.
    ///
    /// # Errors
    /// A batch of another shape.
    pub(crate) fn forward_heads(
        &self,
        pass: &Pass<'_>,
        x: Tensor,
        from: usize,
        heads: &[usize],
    ) -> Result<Vec<Tensor>> {
        if let [0] = heads {
            return Ok(vec![self.forward(pass, x, from, self.network.units.len())?]);
        }
        let features = self.forward(pass, x, from, self.network.head)?;
        let all: Vec<_> = self.heads().collect();
        let one = |head: &usize| {
            let units = all.get(*head).ok_or_else(|| Error::Internal(format!("the network has no head {head}")))?;
            chain::through(units, features.clone(), pass, &mut Tape::default())
        };
        heads.iter().map(one).collect()
    }

    /// How many classes a head has.
    pub(in crate::train) fn classes_of(&self, head: usize) -> usize {
        match head.checked_sub(1).and_then(|task| self.network.tasks.get(task)) {
            Some(task) => task.classes.len(),
            None => self.network.outputs,
        }
    }

    /// The parameters of a head that a rule names: `tasks.NAME.head`, or those of all tasks for `head` and `*`.
    pub(in crate::train) fn named_heads(&self, rule: &str) -> Vec<ParamId> {
        let tasks = &self.network.tasks;
        if rule == "head" || rule == "*" {
            return tasks.iter().flat_map(TaskHead::params).collect();
        }
        let name = rule.strip_prefix(TASKS).and_then(|rest| rest.strip_suffix(".head"));
        match name {
            Some(MAIN) if !tasks.is_empty() => {
                let own = self.network.head..self.network.units.len();
                own.flat_map(|u| self.network.unit_params(u)).collect()
            }
            Some(name) => tasks.iter().filter(|t| t.name == name).flat_map(TaskHead::params).collect(),
            None => Vec::new(),
        }
    }
}
