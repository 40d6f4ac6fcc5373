//! What a look at a job says of its tasks.

use serde::{Deserialize, Serialize};
use tl_proto::spec::{JobSpec, ModelSection};

use super::{
    super::{Config, net, net::Net, samples::Samples, stage::Stage, weights},
    Opened,
};
use crate::{Result, objective::Objective};

/// A task beside that of `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedTask {
    /// Its name.
    pub name: String,
    /// Its classes.
    pub classes: Vec<String>,
    /// Training and validation samples.
    pub samples: [usize; 2],
    /// Samples of a step, where they are its own; else it has those of `[data]`, and the network below the heads runs
    /// once for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// What its loss counts in the first step.
    pub weight: f64,
    /// What each of its classes counts in the loss, where they do not all count the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f32>>,
}

/// How the losses of several tasks are weighed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// The method.
    pub method: String,
    /// What the loss of the first task counts in the first step.
    pub first: f64,
}

impl Opened {
    /// What is to be said of it; `data` are how many samples `[data]` has, and `train` those that are learned from.
    ///
    /// # Errors
    /// Class weights for other classes.
    pub fn planned(&self, data: [usize; 2], train: &Samples) -> Result<PlannedTask> {
        let samples = self.own.as_ref().map_or(train, |[own, _]| own);
        let labels: Vec<usize> = samples.dataset.labels().iter().map(|l| self.class_of[*l]).collect();
        let (section, given) = (format!("tasks.{}", self.name), self.section.class_weights.as_ref());
        Ok(PlannedTask {
            name: self.name.clone(),
            classes: self.classes.clone(),
            samples: self.counts(data),
            batch: self.own.is_some().then_some(self.batch),
            weight: self.section.weight,
            class_weights: weights::of_labels(&section, given, &self.classes, &labels)?,
        })
    }

    /// Samples of its own in a step.
    pub fn own_batch(&self) -> usize {
        if self.own.is_some() { self.batch } else { 0 }
    }
}

impl Net {
    /// The network with heads for the tasks of a job. Those that are to be kept from weights that are not here yet are
    /// taken on trust.
    ///
    /// # Errors
    /// As [`Net::with_tasks`].
    pub(in crate::train) fn with_planned_tasks(
        self,
        spec: &JobSpec,
        opened: &[Opened],
        model: &ModelSection,
        config: &Config,
    ) -> Result<Self> {
        let file = net::weights_path(model, &config.inputs)?;
        let wanted = spec.model.as_ref().is_some_and(|m| m.weights.is_some());
        if file.is_some() || !wanted {
            return self.with_tasks_of(spec, opened, file.as_deref());
        }
        let heads: Vec<_> =
            opened.iter().map(|t| (t, tl_proto::spec::HeadSection { keep: false, ..t.section.head.clone() })).collect();
        let tasks = heads.iter().map(|(t, head)| (t.name.as_str(), head, t.classes.as_slice()));
        self.with_tasks(tasks, spec.job.seed, None)
    }
}

/// How the tasks of a job are weighed, where there are several.
pub(in crate::train) fn weighed(spec: &JobSpec, objective: &Objective) -> Option<Weighed> {
    let several = objective.several.as_ref().filter(|_| !spec.tasks.is_empty())?;
    let first = (several.first)(&spec.objective, &[]).first().copied()?;
    Some(Weighed { method: (objective.entry)().method(&spec.objective).name.clone(), first })
}

/// What is odd about the tasks of a stage.
pub(in crate::train) fn warning(spec: &JobSpec, objective: &Objective, stage: &Stage, name: &str) -> Option<String> {
    let follows = objective.several.as_ref().is_some_and(|s| (s.balance)(&spec.objective).is_some());
    (follows && stage.shared.is_none()).then(|| {
        format!(
            "stage `{name}` trains nothing that tasks share: weights do not follow their gradients there, and stay as they are"
        )
    })
}
