//! The other domain of a run that adapts: samples that it learns from without their labels, and, where there are some
//! with labels, what the network comes to on them. Those figures are told, and nothing is decided by them.

use std::collections::BTreeMap;

use tl_proto::spec::DataSection;

use super::{
    ByCut, Features, Loop,
    evaluate::{self, Rows, Wanted},
    inputs::Inputs,
    samples::Samples,
};
use crate::{
    Result,
    collective::Collective,
    data::sampler::Endless,
    eval::{
        Evaluation,
        density::{self, density},
        shift::{self, Apart},
    },
    link::Link,
    num::rng::Philox,
    weights::Contract,
};

/// The samples of another domain.
pub(super) struct Domain {
    /// What is learned from.
    pub train: Samples,
    /// The same as they are, where every epoch sees other views of them.
    pub plain: Option<Samples>,
    /// What is judged by its labels, for people.
    pub val: Option<Samples>,
    /// The order in which the former are drawn.
    pub order: Endless,
}

impl Domain {
    /// Opens the target of a job's data, if it has one, for the classes of the samples with labels.
    ///
    /// # Errors
    /// Data that is not there, or labels of other classes.
    pub fn open(data: &DataSection, labelled: &Samples, seed: u32) -> Result<Option<Self>> {
        let (Some(section), Some(target)) = (data.of_target(), &data.target) else { return Ok(None) };
        let train = Samples::open_bare(&section, seed)?;
        let val = match &target.val {
            Some(_) => Some(Samples::open(&section, "val", seed)?.called("target.val").of_classes(labelled)?),
            None => None,
        };
        let order = Endless::new(seed, train.count());
        Ok(Some(Self { train, plain: None, val, order }))
    }

    /// All samples of the domain.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        std::iter::once(&self.train).chain(&self.val)
    }

    /// What is learned from and what is judged, where something is.
    pub fn both(&self) -> Option<[&Samples; 2]> {
        Some([&self.train, self.val.as_ref()?])
    }

    /// The same without samples that will not decode, up to `limit` in each part.
    ///
    /// # Errors
    /// See [`Samples::leave_out_bad`].
    pub fn leave_out_bad(
        self,
        contract: &Contract,
        limit: u32,
        seed: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Self> {
        let train = self.train.leave_out_bad(contract, limit, group, link)?;
        let val = match self.val {
            Some(val) => Some(val.leave_out_bad(contract, limit, group, link)?),
            None => None,
        };
        let order = Endless::new(seed, train.count());
        // Of fixed views the first is the sample as it is.
        let plain = train.views().is_none().then(|| train.plain());
        Ok(Self { train, plain, val, order })
    }
}

/// What a network comes to in another domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Shifted {
    /// Mean entropy of the predictions, in nats: what can be known without labels.
    pub entropy: f64,
    /// How densely predictions lie together: that too.
    pub density: f64,
    /// What the network's last layer takes, of some samples, where it was asked for.
    pub features: Vec<Vec<f32>>,
    /// By the labels, where there are some.
    pub evaluation: Option<Evaluation>,
}

impl Shifted {
    /// As values of a series.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let known = [("target.entropy", self.entropy), ("target.snd", self.density)];
        let mut values: BTreeMap<String, f64> = known.map(|(k, v)| (k.to_owned(), v)).into();
        if let Some(evaluation) = &self.evaluation {
            values.insert("target.accuracy".into(), evaluation.accuracy);
            values.insert("target.loss".into(), evaluation.loss);
        }
        values
    }
}

/// What a network comes to in the other domain by its labels, where there are some, and how far apart the two lie.
pub(super) type Elsewhere = (Option<Evaluation>, Apart);

/// The samples that are compared with each other, the same in every epoch: all of `n`, or `most` of them.
fn compared(n: usize, most: usize, seed: u32) -> Vec<usize> {
    if n <= most {
        return (0..n).collect();
    }
    let mut picked = Philox::new(seed, "compared").permutation(n, 0);
    picked.truncate(most);
    picked.sort_unstable();
    picked
}

impl Loop<'_> {
    /// Judges the network in the other domain, from features in front of `cut` where they are kept: by how certain it is on
    /// what it learns from, by how densely its predictions lie, and, for people, by labels on what it does not learn from.
    pub(super) fn shifted(
        &self,
        cut: usize,
        features: &[ByCut; 3],
        inside: bool,
        group: &mut dyn Collective,
    ) -> Result<Option<Shifted>> {
        let Some(domain) = self.other else { return Ok(None) };
        let mut judge = |samples: &Samples, features: &ByCut, wanted: Wanted<'_>| {
            let inputs: Inputs<'_> = self.inputs(self.net, samples, cut, features.get(&cut))?;
            evaluate::look(&self.state.store, &inputs, wanted, group)
        };
        let (samples, known) = match &domain.plain {
            Some(plain) => (plain, &features[1]),
            None => (&domain.train, &features[0]),
        };
        let (n, seed) = (samples.count(), self.run.spec.job.seed);
        let all = compared(n, density::SAMPLES, seed);
        let some = if inside { compared(n, shift::COMPARED, seed) } else { Vec::new() };
        let wanted = Wanted { features: &some, logits: &all };
        let (outcomes, Rows { features: own, logits }) = judge(samples, known, wanted)?;
        let entropy = outcomes.iter().map(|o| o.entropy).sum::<f64>() / outcomes.len().max(1) as f64;
        let evaluation = match &domain.val {
            Some(val) => {
                let (outcomes, _) = judge(val, &features[2], Wanted::default())?;
                Some(Evaluation::new(self.classes, &outcomes))
            }
            None => None,
        };
        Ok(Some(Shifted { entropy, density: density(&logits), features: own, evaluation }))
    }

    /// Looks at both domains before anything is learned.
    pub(super) fn look_before(
        &mut self,
        cut: usize,
        features: &Features,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        let p = &self.state.progress;
        // Who compares gradients has no use for it.
        if self.other.is_some() && p.step == 0 && p.before.is_none() && !link.compares() {
            if group.rank() == 0 {
                link.activity("compare domains", 0, 1);
            }
            let (_, other) = self.survey(cut, features, group)?;
            self.state.progress.before = other.map(|(_, apart)| apart);
        }
        Ok(())
    }

    /// What the network as it is comes to on samples with labels, and, where it is brought to another domain, what it comes
    /// to there and how far apart the two lie.
    pub(super) fn survey(
        &self,
        cut: usize,
        features: &Features,
        group: &mut dyn Collective,
    ) -> Result<(Evaluation, Option<Elsewhere>)> {
        let inputs = self.inputs(self.net, self.val, cut, features.val.get(&cut))?;
        let evaluation = Evaluation::new(self.classes, &evaluate::evaluate(&self.state.store, &inputs, group)?);
        let Some(shifted) = self.shifted(cut, &features.other, true, group)? else { return Ok((evaluation, None)) };
        let source = self.learned_from(cut, &features.train, group)?;
        let apart = Apart {
            source_accuracy: evaluation.accuracy,
            target_accuracy: shifted.evaluation.as_ref().map(|e| e.accuracy),
            ..shift::apart(&source, &shifted.features, self.run.spec.job.seed)
        };
        Ok((evaluation, Some((shifted.evaluation, apart))))
    }

    /// What the network's last layer takes of some samples with labels, as they are, from features in front of `cut` where
    /// they are kept. They are such as are learned from, as those of the other domain: what has been learned by heart must not
    /// tell the domains apart.
    fn learned_from(&self, cut: usize, features: &ByCut, group: &mut dyn Collective) -> Result<Vec<Vec<f32>>> {
        // Of fixed views the first is the sample as it is.
        let plain = self.train.views().is_none().then(|| self.train.plain());
        let (samples, kept) = match &plain {
            Some(plain) => (plain, None),
            None => (self.train, features.get(&cut)),
        };
        let inputs = self.inputs(self.net, samples, cut, kept)?;
        let some = compared(samples.count(), shift::COMPARED, self.run.spec.job.seed);
        evaluate::features(&self.state.store, &inputs, &some, group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_are_compared_are_some_of_all_in_their_order() {
        assert_eq!(compared(5, 5, 1), [0, 1, 2, 3, 4]);
        let some = compared(100, 20, 1);
        assert!(some.len() == 20 && some.is_sorted() && some[19] < 100 && some != (0..20).collect::<Vec<_>>());
        assert!(some.windows(2).all(|w| w[0] < w[1]), "none twice");
    }
}
