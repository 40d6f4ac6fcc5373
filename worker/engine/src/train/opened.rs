//! The data of a job, opened: what a run and a look at it begin with.

use std::{collections::BTreeMap, path::PathBuf};

use tl_proto::spec::{DataSection, JobSpec, ModelSection, TOWER};

use super::{
    clipped::{self, Clipped},
    domain::Domain,
    fewshot::Few,
    leakage,
    net::Net,
    origin::Source,
    pairs::{Halves, Pairs, notice},
    samples::Samples,
    tasks::{self, Task},
};
use crate::{Error, Result, collective::Collective, link::Link, modifier, objective::Objective, weights::Contract};

/// Every part of a job's data.
pub(super) struct Opened {
    pub train: Samples,
    pub val: Samples,
    /// Another domain that the network is brought to.
    pub other: Option<Domain>,
    /// What the samples go with.
    pub halves: Option<Halves>,
    /// What the weights were trained on.
    pub source: Option<Source>,
    /// What else is learned.
    pub tasks: Vec<tasks::Opened>,
    /// What the network's outputs are called.
    pub outputs: Vec<String>,
    /// The episodes, where it learns from such.
    pub few: Option<Few>,
}

/// The same, once every sample decodes and every half has its other.
pub(super) struct Ready {
    pub train: Samples,
    pub val: Samples,
    pub other: Option<Domain>,
    pub pairs: Option<Pairs>,
    pub source: Option<Source>,
    /// What else is learned, where the objective learns several tasks.
    pub tasks: Option<Vec<Task>>,
    /// The episodes, where it learns from such.
    pub few: Option<Few>,
}

impl Ready {
    /// What there is to say of samples that are judged and trained on too; episodes say so of classes.
    pub fn leaked(&self) -> Vec<String> {
        let own = Some([&self.train, &self.val]).filter(|_| self.few.is_none());
        let tasks = self.tasks.iter().flatten().filter_map(|task| task.own.as_ref());
        let tasks = tasks.map(|own| [&own.train, &own.val]);
        let target = self.other.iter().filter_map(Domain::both);
        own.into_iter().chain(tasks).chain(target).filter_map(leakage::warning).collect()
    }

    /// What there is to say of samples that are learned as of different classes.
    pub fn torn(&self) -> Vec<String> {
        let tasks = self.tasks.iter().flatten().filter_map(|task| task.own.as_ref()).map(|own| &own.train);
        std::iter::once(&self.train).chain(tasks).filter_map(leakage::two_classes).collect()
    }
}

impl Opened {
    /// Opens what a job names; nothing is decoded yet.
    ///
    /// # Errors
    /// Data that is not there, or that does not fit the job; modifiers that do not go together.
    pub fn new(spec: &JobSpec, data: &DataSection, objective: &Objective) -> Result<Self> {
        modifier::check(&spec.modifiers)?;
        let seed = spec.job.seed;
        let embeds = (objective.dimensions)(&spec.objective);
        let pairs = data.pairs.as_ref().filter(|_| objective.has_pairs());
        let mut few = None;
        let (train, val, other, halves, outputs) = match pairs {
            None => {
                let (train, mut val) = (Samples::open(data, "train", seed)?, Samples::open(data, "val", seed)?);
                few = Few::open(spec, &train, &val)?;
                let classes = match &few {
                    Some(few) => few.outputs(),
                    None => {
                        val = val.of_classes(&train)?;
                        train.dataset.classes().to_vec()
                    }
                };
                let other = Domain::open(data, &train, seed)?.filter(|_| objective.has_target());
                (train, val, other, None, classes)
            }
            Some(pairs) => {
                let train = Samples::open_paired(data, "train", pairs.by, seed)?;
                let halves = Halves::open(spec, data, embeds.is_some())?;
                let (val, outputs) = match embeds {
                    None => {
                        let val = Samples::open(data, "val", seed)?;
                        let classes = val.dataset.classes().to_vec();
                        (val, classes)
                    }
                    Some(n) => {
                        (Samples::open_paired(data, "val", pairs.by, seed)?, (0..n).map(|i| i.to_string()).collect())
                    }
                };
                (train, val, None, halves, outputs)
            }
        };
        let tasks = match objective.several {
            Some(_) => tasks::Opened::all(spec, data, &train)?,
            None => Vec::new(),
        };
        let source = Source::open(data, seed)?;
        let opened = Self { train, val, other, halves, source, tasks, outputs, few };
        opened.fit(spec)?;
        Ok(opened)
    }

    fn fit(&self, spec: &JobSpec) -> Result<()> {
        // Where there are pairs, further networks see the other halves.
        let others = || spec.nets.values();
        let (model, paired) = (spec.model.iter(), self.halves.is_some());
        let ours: Vec<&ModelSection> = if paired { model.collect() } else { model.chain(others()).collect() };
        let own = [&self.train, &self.val].into_iter().chain(self.other.iter().flat_map(Domain::parts));
        let own = own.chain(self.tasks.iter().flat_map(tasks::Opened::parts));
        own.into_iter().try_for_each(|samples| samples.fits_job(spec, ours.iter().copied()))?;
        let known = || self.source.iter().flat_map(Source::parts);
        known().try_for_each(|samples| samples.fits_job(spec, &spec.model))?;
        if let Some(odd) = known().find(|samples| samples.kind() != self.train.kind()) {
            let (key, has, mine, task) = (odd.key(), odd.kind(), self.train.key(), self.train.kind());
            return Err(Error::user(
                format!("`{key}` has {has}, and `{mine}` has {task}"),
                "what weights forget is asked of samples of one kind with those of the job: remove `[data.source]` where \
                 weights for images learn to hear",
            ));
        }
        self.halves.iter().flat_map(Halves::parts).try_for_each(|samples| samples.fits_job(spec, others()))
    }

    /// Whether a teacher of this contract can be fed with what it sees: the student's samples, or of pairs the other halves.
    ///
    /// # Errors
    /// See [`Samples::fits`].
    pub fn fit_teacher(&self, contract: &Contract) -> Result<()> {
        match &self.halves {
            Some(halves) => halves.parts().try_for_each(|samples| samples.fits(contract)),
            None => [&self.train, &self.val].into_iter().try_for_each(|samples| samples.fits(contract)),
        }
    }

    /// The samples that teachers see.
    pub fn shown(&self) -> &Samples {
        self.halves.as_ref().map_or(&self.train, |halves| &halves.train)
    }

    /// The same, without the rest.
    pub fn into_shown(self) -> Samples {
        self.halves.map_or(self.train, |halves| halves.train)
    }

    /// The network with the one that is trained with it, where the job has such a one.
    ///
    /// # Errors
    /// See [`Net::build_for`] and [`Net::with_tower`].
    pub fn with_tower(&self, net: Net, spec: &JobSpec, inputs: &BTreeMap<String, PathBuf>) -> Result<Net> {
        let (Some(model), Some(halves)) = (spec.nets.get(TOWER), self.halves.as_ref()) else { return Ok(net) };
        let tower = Net::build_tower(model, &self.outputs, spec.job.seed, inputs, halves.learned())?;
        net.with_tower(tower, model, spec.job.seed)
    }

    /// How many training and validation samples there are, without those that go with nothing, and what is to be said of
    /// those, of such as are judged and trained on too, and of such as are learned as of different classes.
    ///
    /// # Errors
    /// No pair at all.
    pub fn paired(&self, data: &DataSection) -> Result<([usize; 2], Vec<String>)> {
        let (counts, mut said) = match (&self.halves, &data.pairs) {
            (Some(halves), Some(pairs)) => halves.counted(&self.train, &self.val, pairs)?,
            _ => {
                // Episodes say so of classes.
                let both = [&self.train, &self.val];
                let same = if self.few.is_none() { leakage::warning(both) } else { None };
                (both.map(Samples::count), same.into_iter().collect())
            }
        };
        let own = self.tasks.iter().filter_map(|task| task.own.as_ref());
        said.extend(own.filter_map(|own| leakage::warning(own.each_ref())));
        said.extend(self.other.iter().filter_map(Domain::both).filter_map(leakage::warning));
        let tasks = self.tasks.iter().filter_map(|task| task.own.as_ref()).map(|[train, _]| train);
        said.extend(std::iter::once(&self.train).chain(tasks).filter_map(leakage::two_classes));
        Ok((counts, said))
    }

    /// What there is to say of sounds and texts that are learned from or judged, and heard or read in part, by the network of
    /// `first`, and of other halves by that of `second`.
    pub fn clipped(&self, first: &Contract, second: Option<&Contract>) -> Vec<Clipped> {
        let tasks = self.tasks.iter().flat_map(tasks::Opened::parts);
        let others = self.other.iter().flat_map(Domain::parts);
        let own = [&self.train, &self.val].into_iter().chain(others).chain(tasks).map(|samples| (samples, first));
        let halves = self.halves.iter().zip(second);
        let halves = halves.flat_map(|(halves, second)| halves.parts().map(move |samples| (samples, second)));
        own.chain(halves).filter_map(|(samples, contract)| clipped::warning(samples, contract)).collect()
    }

    /// All parts, in the order in which ranks compare them.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        let pairs = self.halves.iter().flat_map(Halves::parts);
        let known = self.source.iter().flat_map(Source::parts);
        let tasks = self.tasks.iter().flat_map(tasks::Opened::parts);
        let other = self.other.iter().flat_map(Domain::parts);
        [&self.train, &self.val].into_iter().chain(other).chain(pairs).chain(known).chain(tasks)
    }

    /// Has every rank decode its share for the networks that will see it, leaves out what will not decode and what has no
    /// other half.
    ///
    /// # Errors
    /// See [`Samples::leave_out_bad`] and [`Halves::matched`].
    pub fn ready(
        self,
        spec: &JobSpec,
        data: &DataSection,
        contract: &Contract,
        second: Option<&Contract>,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Ready> {
        let (seed, limit) = (spec.job.seed, data.skip_bad);
        let section = data.pairs.clone().unwrap_or_default();
        // Keys need no decoding, and what goes with nothing needs none either.
        let ([train, val], halves) = match self.halves {
            Some(halves) => {
                let (own, halves) = halves.with_halves([self.train, self.val], &section, notice(group, link))?;
                (own, Some(halves))
            }
            None => ([self.train, self.val], None),
        };
        let all = [train.count(), val.count()];
        let train = train.leave_out_bad(contract, limit, group, link)?;
        let val = val.leave_out_bad(contract, limit, group, link)?;
        // What was left out is in no episode.
        let few = if all == [train.count(), val.count()] { self.few } else { Few::open(spec, &train, &val)? };
        let other = self.other.map(|domain| domain.leave_out_bad(contract, limit, seed, group, link)).transpose()?;
        let source = self.source.map(|source| source.leave_out_bad(contract, limit, group, link)).transpose()?;
        let mut tasks = Vec::new();
        for task in self.tasks {
            tasks.push(task.ready([&train, &val], contract, (seed, limit), group, link)?);
        }
        let tasks = Objective::find(&spec.job.kind).several.is_some().then_some(tasks);
        let Some(halves) = halves else {
            return Ok(Ready { train, val, other, pairs: None, source, tasks, few });
        };
        let second = second.ok_or_else(|| Error::Internal("pairs without a network that sees them".into()))?;
        let halves = halves.leave_out_bad(second, limit, group, link)?;
        let (train, val, pairs) = halves.matched([train, val], seed, &section, notice(group, link))?;
        Ok(Ready { train, val, other, pairs: Some(pairs), source, tasks, few })
    }
}
