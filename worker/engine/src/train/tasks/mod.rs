//! Further tasks of a run: other classes of the same samples, or samples of their own, each with a head on the one network.
//! A task of the same samples is drawn with them, and the network below the heads runs once for both. What is drawn of
//! other samples, and with which of the first, follows from the number of the draw, so it is the same for any ranks.

mod grain;
mod heads;
mod judge;
mod plan;
mod weighing;

use std::{collections::BTreeMap, ops::Range};

use candle_core::Tensor;
use tl_proto::{
    catalog::nearest_hint,
    spec::{DataSection, JobSpec, MAIN, TaskSection},
};

pub(super) use self::{
    grain::asides,
    plan::{warning, weighed},
    weighing::mean,
};
pub use self::{
    plan::{PlannedTask, Weighed},
    weighing::{TaskSums, Weighing},
};
use super::{ByCut, inputs::Inputs, samples::Samples, weights};
use crate::{
    Error, Result,
    collective::Collective,
    data::sampler::{Endless, beside, grain},
    link::Link,
    nn,
    weights::Contract,
};

/// A task beside that of `[data]`, opened.
pub(super) struct Opened {
    /// Its name.
    pub name: String,
    /// Its classes.
    pub classes: Vec<String>,
    /// Its samples, if it has some of its own: those it learns from, and those it is judged by.
    pub own: Option<[Samples; 2]>,
    section: TaskSection,
    /// For each class of the samples, that of the task.
    class_of: Vec<usize>,
    batch: usize,
}

/// The same, once every sample decodes.
pub(super) struct Task {
    /// Its name.
    pub name: String,
    /// Its classes.
    pub classes: Vec<String>,
    /// `[classes]`: what a class counts, where they do not all count the same.
    pub weights: Option<Tensor>,
    /// Its samples, if they are not those of `[data]`.
    pub own: Option<Own>,
    /// The class of each sample that it learns from, and of each that it is judged by.
    pub labels: [Vec<usize>; 2],
}

/// Samples of a task's own.
pub(super) struct Own {
    /// What is learned from.
    pub train: Samples,
    /// What is judged.
    pub val: Samples,
    order: Endless,
    batch: usize,
}

/// What the network is fed of all tasks in a stage.
#[derive(Default)]
pub(super) struct Fed<'a> {
    /// Of what each task learns from, where that is its own.
    pub train: Vec<Option<Inputs<'a>>>,
    /// Of what each is judged by.
    pub val: Vec<Option<Inputs<'a>>>,
}

/// What a step reads of tasks beside that of `[data]`.
#[derive(Clone, Copy)]
pub struct Tasked<'a> {
    pub(super) tasks: &'a [Task],
    pub(super) inputs: &'a [Option<Inputs<'a>>],
}

/// Features of a task's own samples: of those it learns from, and of those it is judged by.
pub(super) type Features = Vec<[ByCut; 2]>;

impl Opened {
    /// Opens the tasks of a job, beside the samples of `[data]`.
    ///
    /// # Errors
    /// Data that is not there; classes that are not those of the samples.
    pub fn all(spec: &JobSpec, data: &DataSection, train: &Samples) -> Result<Vec<Self>> {
        let seed = spec.job.seed;
        let one = |(name, section): (&String, &TaskSection)| {
            let own = match section.own_data(data) {
                Some(own) => {
                    let open =
                        |part| Ok::<_, Error>(Samples::open(&own, part, seed)?.called(format!("tasks.{name}.{part}")));
                    let (train, val) = (open("train")?, open("val")?);
                    let val = val.of_classes(&train)?;
                    Some([train, val])
                }
                None => None,
            };
            let of = own.as_ref().map_or(train, |[train, _]| train).dataset.classes().to_vec();
            let (classes, class_of) = regrouped(name, &section.classes, of)?;
            let (name, section) = (name.clone(), section.clone());
            let batch = section.batch.unwrap_or(data.batch) as usize;
            Ok(Self { name, classes, own, section, class_of, batch })
        };
        spec.tasks.iter().map(one).collect()
    }

    /// Its samples, where they are its own.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        self.own.iter().flatten()
    }

    /// How many samples it learns from, and how many it is judged by, beside so many of `[data]`.
    pub fn counts(&self, data: [usize; 2]) -> [usize; 2] {
        self.own.as_ref().map_or(data, |own| own.each_ref().map(Samples::count))
    }

    /// The task without samples that will not decode, up to `limit` in each part; `data` are those of `[data]`.
    ///
    /// # Errors
    /// See [`Samples::leave_out_bad`]; class weights for other classes.
    pub fn ready(
        self,
        data: [&Samples; 2],
        contract: &Contract,
        (seed, limit): (u32, u32),
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Task> {
        let own = match self.own {
            Some([train, val]) => {
                let train = train.leave_out_bad(contract, limit, group, link)?;
                let val = val.leave_out_bad(contract, limit, group, link)?;
                let order = Endless::named(&format!("task-order.{}", self.name), seed, train.count());
                Some(Own { train, val, order, batch: self.batch })
            }
            None => None,
        };
        let samples = own.as_ref().map_or(data, |own| [&own.train, &own.val]);
        let labels = samples.map(|s| s.dataset.labels().iter().map(|l| self.class_of[*l]).collect::<Vec<usize>>());
        let (section, given) = (format!("tasks.{}", self.name), self.section.class_weights.as_ref());
        let weights = weights::of_labels(&section, given, &self.classes, &labels[0])?;
        let weights = weights.map(|w| nn::tensor(w, &[self.classes.len()])).transpose()?;
        Ok(Task { name: self.name, classes: self.classes, weights, own, labels })
    }
}

impl Own {
    /// Draws of a step whose samples of `[data]` begin with draw `first` of the run.
    fn drawn(&self, first: u64, n: usize, batch: usize, grains: usize) -> Range<u64> {
        beside(first, n, batch, self.batch, grains)
    }

    /// Samples of a grain, how often all samples had been drawn before, and the numbers of the draws.
    fn of_grain(&self, drawn: &Range<u64>, (s, grains): (usize, usize)) -> (Vec<usize>, Vec<u64>, Vec<u64>) {
        let places = grain((drawn.end - drawn.start) as usize, grains, s);
        let numbers: Vec<u64> = places.map(|p| drawn.start + p as u64).collect();
        let (samples, rounds) = numbers.iter().map(|t| self.order.draw(*t)).unzip();
        (samples, rounds, numbers)
    }

    /// How many samples an epoch of so many samples of `[data]` sees.
    pub fn per_epoch(&self, n: usize, batch: usize) -> usize {
        n * self.batch / batch.max(1)
    }
}

/// Names of the tasks, that of `[data]` first.
pub(super) fn names(tasks: &[Task]) -> impl Iterator<Item = &str> {
    std::iter::once(MAIN).chain(tasks.iter().map(|t| t.name.as_str()))
}

/// The classes of a task, and for each class of its samples the one that it goes to.
///
/// # Errors
/// A class that is not there, or that goes to none.
fn regrouped(name: &str, wanted: &BTreeMap<String, Vec<String>>, of: Vec<String>) -> Result<(Vec<String>, Vec<usize>)> {
    if wanted.is_empty() {
        let class_of = (0..of.len()).collect();
        return Ok((of, class_of));
    }
    let mut class_of = vec![None; of.len()];
    for (class, members) in wanted.values().enumerate() {
        for member in members {
            let Some(at) = of.iter().position(|one| one == member) else {
                let known: Vec<&str> = of.iter().map(String::as_str).collect();
                return Err(Error::user(
                    format!("`tasks.{name}.classes` names `{member}`, which is no class of its samples"),
                    nearest_hint(member, &known),
                ));
            };
            class_of[at] = Some(class);
        }
    }
    if let Some(left) = class_of.iter().position(Option::is_none) {
        return Err(Error::user(
            format!("class `{}` of the samples goes to no class of task `{name}`", of[left]),
            format!("name it in `tasks.{name}.classes`"),
        ));
    }
    Ok((wanted.keys().cloned().collect(), class_of.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_the_samples_goes_to_one_of_the_task() {
        let of = || ["0", "1", "2"].map(str::to_owned).to_vec();
        let group = |classes: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
            let one =
                |(class, of): &(&str, &[&str])| ((*class).to_owned(), of.iter().map(|o| (*o).to_owned()).collect());
            classes.iter().map(one).collect()
        };
        let parity = group(&[("odd", &["1"]), ("even", &["2", "0"])]);
        assert_eq!(regrouped("p", &parity, of()).unwrap(), (vec!["even".to_owned(), "odd".to_owned()], vec![0, 1, 0]));
        assert_eq!(regrouped("p", &group(&[]), of()).unwrap(), (of(), vec![0, 1, 2]));
        let refused = |classes| regrouped("p", &group(classes), of()).unwrap_err().to_string();
        assert!(refused(&[("a", &["0", "3"]), ("b", &["1", "2"])]).contains("names `3`, which is no class"));
        assert!(refused(&[("a", &["0"]), ("b", &["1"])]).contains("class `2` of the samples goes to no class"));
    }
}
