//! What two networks that learn from pairs come to: whether the halves of validation samples find each other.

use std::collections::BTreeMap;

use candle_core::Tensor;
use tl_proto::spec::PairedBy;

use super::{
    Features, Loop,
    evaluate::embed,
    fewshot,
    inputs::Inputs,
    net,
    pairs::Pairs,
    samples::Samples,
    tasks::{self, mean},
};
use crate::{
    Result,
    collective::Collective,
    eval::{
        self, Evaluation, Outcome,
        retrieval::{self, Retrieval},
    },
    nn::tensor,
    num::rng::Philox,
    objective::{Batch, unit},
};

/// What was found on validation samples.
pub(super) struct Judged {
    /// By classes, or by pairs where there are none.
    pub evaluation: Evaluation,
    /// Where the run learns from pairs with two networks.
    pub retrieval: Option<Retrieval>,
    /// Of every task, that of `[data]` first, where there are several.
    pub tasks: Vec<(String, Evaluation)>,
}

impl Judged {
    /// As values of a series.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let mut values: BTreeMap<String, f64> =
            [("val.loss".to_owned(), self.evaluation.loss), ("val.accuracy".to_owned(), self.evaluation.accuracy)]
                .into();
        values.extend(self.evaluation.episodes.iter().map(|e| ("val.interval".to_owned(), e.interval)));
        for (name, found) in &self.tasks {
            values.insert(format!("tasks.{name}.loss"), found.loss);
            values.insert(format!("tasks.{name}.accuracy"), found.accuracy);
        }
        if !self.tasks.is_empty() {
            values.insert("val.loss".into(), mean(self.tasks.iter().map(|t| t.1.loss)));
            values.insert("val.accuracy".into(), mean(self.tasks.iter().map(|t| t.1.accuracy)));
        }
        if let Some(found) = &self.retrieval {
            let names = retrieval::DEPTHS.map(|d| format!("val.recall_{d}"));
            values.extend(names.into_iter().zip(found.mean()));
        }
        values
    }
}

/// Keys of both lists as numbers, and what they stand for, in order.
fn numbered([ours, theirs]: [&Samples; 2]) -> ([Vec<usize>; 2], Vec<String>) {
    let keys = |of: &Samples| (0..of.count()).map(|i| of.dataset.key(i)).collect::<Vec<_>>();
    let (ours, theirs) = (keys(ours), keys(theirs));
    let mut names: Vec<String> = ours.iter().chain(&theirs).cloned().collect();
    names.sort_unstable();
    names.dedup();
    let number = |keys: &[String]| keys.iter().filter_map(|key| names.binary_search(key).ok()).collect();
    ([number(&ours), number(&theirs)], names)
}

impl<'a> Loop<'a> {
    /// What an epoch goes through: training samples, and with them halves that go with none, where those are learned from.
    pub(super) fn entries(&self) -> usize {
        self.pairs.map_or(self.train.count(), Pairs::entries)
    }

    /// What the second network sees of the other halves, from features in front of `cut` where they are kept: of training
    /// samples and of validation samples; nothing where there is no second network.
    pub(super) fn halves<'f>(&self, cut: usize, features: &'f Features) -> Result<[Option<Inputs<'f>>; 2]>
    where
        'a: 'f,
    {
        let net: &'a net::Net = self.net;
        let (Some(tower), Some(pairs)) = (&net.tower, self.pairs) else { return Ok([None, None]) };
        let [train, val] = &features.pairs;
        let train = self.inputs(&tower.0, &pairs.train, cut, train.get(&cut))?;
        let val = match &pairs.val {
            Some((samples, _)) => Some(self.inputs(&tower.0, samples, cut, val.get(&cut))?.beside(&train)),
            None => None,
        };
        Ok([Some(train), val])
    }

    /// What the teacher is shown: what the student sees, or the other halves of it.
    pub(super) fn shown(&self) -> &'a Samples {
        self.pairs.map_or(self.train, |pairs| &pairs.train)
    }

    /// Judges the validation samples: by their labels, those of all tasks, or by whether the halves of pairs find each
    /// other.
    ///
    /// # Errors
    /// A sample that cannot be read, a lost peer.
    pub(super) fn judged(
        &self,
        val: &Inputs<'_>,
        halves: Option<&Inputs<'_>>,
        tasks: &tasks::Fed<'_>,
        which: fewshot::judge::Judged,
        group: &mut dyn Collective,
    ) -> Result<Judged> {
        let tasks = self.judged_tasks(val, tasks, group)?;
        if let Some((_, first)) = tasks.first() {
            return Ok(Judged { evaluation: first.clone(), retrieval: None, tasks });
        }
        let (Some(halves), Some(pairs)) = (halves, self.pairs) else {
            return Ok(Judged { evaluation: self.evaluation(val, which, group)?, retrieval: None, tasks });
        };
        let store = &self.state.store;
        let mut embed = |inputs: &Inputs<'_>| embed(store, inputs, inputs.net.network.units.len(), group);
        let (ours, theirs) = (embed(val)?, embed(halves)?);
        let loss = self.loss_of_pairs(&ours, &theirs, pairs)?;
        let (mut evaluation, found) = compared([&ours, &theirs], [val.samples, halves.samples], pairs.by)?;
        evaluation.loss = loss;
        Ok(Judged { evaluation, retrieval: Some(found), tasks })
    }

    /// The mean of the objective over validation samples and their halves in turn, in batches as in training: in an order of
    /// their own, since a list is often sorted by class.
    fn loss_of_pairs(&self, ours: &[Vec<f32>], theirs: &[Vec<f32>], pairs: &Pairs) -> Result<f64> {
        let Some((_, partners)) = &pairs.val else { return Ok(0.0) };
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        let mut half = |i: usize| {
            let halves = partners.of(i);
            let turn = taken.entry(halves[0]).or_default();
            *turn += 1;
            &theirs[halves[(*turn - 1) % halves.len()]]
        };
        let order = Philox::new(self.run.spec.job.seed, "pairs-judged").permutation(ours.len(), 0);
        let pairs: Vec<[&Vec<f32>; 2]> = order.into_iter().map(|i| [&ours[i], half(i)]).collect();
        let own = self.net.network.own.iter().map(|id| {
            let entry = &self.state.store.params[id.0];
            let name = entry.name.trim_start_matches(crate::nn::OWN).to_owned();
            Ok((name, tensor(self.state.store.param(*id).to_vec(), &entry.shape)?))
        });
        let own = own.collect::<Result<BTreeMap<String, Tensor>>>()?;
        let (objective, params) = (self.run.objective, &self.run.spec.objective);
        let mut sum = 0.0;
        for batch in pairs.chunks(self.run.data.batch as usize) {
            let rows = |side: usize| {
                let values: Vec<f32> = batch.iter().flat_map(|pair| pair[side].iter().copied()).collect();
                let width = values.len() / batch.len();
                tensor(values, &[batch.len(), width])
            };
            let (a, b) = (rows(0)?, rows(1)?);
            let (teacher, averaged, weights) = (None, None, None);
            let (logits, paired) = (&a, Some(&b));
            let batch = Batch {
                taps: &[],
                features: &a,
                logits,
                targets: &a,
                teacher,
                averaged,
                paired,
                present: None,
                weights,
                own: &own,
                progress: 1.0,
            };
            sum += f64::from((objective.loss)(params, &batch)?.to_scalar::<f32>()?);
        }
        Ok(sum / ours.len().max(1) as f64)
    }
}

/// What the embeddings of samples and of their other halves come to: by classes, or by pairs where there are none; and how
/// many find each other.
///
/// # Errors
/// Embeddings of different lengths.
pub(crate) fn compared(
    rows: [&[Vec<f32>]; 2],
    samples: [&Samples; 2],
    by: PairedBy,
) -> Result<(Evaluation, Retrieval)> {
    let unit = |rows: &[Vec<f32>]| -> Result<Vec<Vec<f32>>> {
        let width = rows.first().map_or(0, Vec::len);
        net::rows(&unit(&tensor(rows.concat(), &[rows.len(), width])?)?)
    };
    let (ours, theirs) = (unit(rows[0])?, unit(rows[1])?);
    let ([own, other], names) = numbered(samples);
    let found = Retrieval::new(&ours, &theirs, [&own, &other]);
    let evaluation = match by {
        PairedBy::Label => by_prototypes(&ours, &own, (&theirs, &other), &names),
        PairedBy::Name | PairedBy::Order => Evaluation::without_classes(ours.len(), found.to_pairs[0]),
    };
    Ok((evaluation, found))
}

/// Each sample as one of the classes, by the nearest mean of their other halves.
fn by_prototypes(
    ours: &[Vec<f32>],
    labels: &[usize],
    (theirs, keys): (&[Vec<f32>], &[usize]),
    names: &[String],
) -> Evaluation {
    let prototypes = retrieval::prototypes(theirs, keys, names.len());
    let outcomes: Vec<Outcome> = ours
        .iter()
        .zip(labels)
        .map(|(row, label)| {
            let near = |p: &Option<Vec<f32>>| p.as_ref().map_or(f32::MIN, |p| retrieval::cosine(row, p) as f32);
            eval::judge(&prototypes.iter().map(near).collect::<Vec<_>>(), *label)
        })
        .collect();
    Evaluation::new(names, &outcomes)
}
