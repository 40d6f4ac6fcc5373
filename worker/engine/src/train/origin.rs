//! What the weights were trained on: its samples, the network as it came with the head that came with it, and how much of
//! that a run has forgotten.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tl_proto::spec::{DataSection, HeadSection, ModelSection};

use super::{
    Loop, evaluate,
    export::About,
    inputs::Inputs,
    net::{self, Net},
    samples::Samples,
};
use crate::{
    Error, Result,
    collective::Collective,
    eval::Evaluation,
    link::Link,
    nn::{Layer, Pass, Store, Tape},
    weights,
};

/// The source's samples, before there is a network.
pub(super) struct Source {
    train: Option<Samples>,
    val: Samples,
}

/// The source's samples, and the network as it came.
pub(super) struct Origin {
    /// With its own head.
    pub net: Net,
    /// What shows which parameters matter, where a job asks for that.
    pub train: Option<Samples>,
    /// What it is judged on, where a job has that.
    pub val: Option<Samples>,
    head: HeadSection,
}

/// What a network knows of its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// Accuracy of the network as it came.
    pub before: f64,
    /// What the same head makes of the network that was trained.
    pub after: Evaluation,
}

impl Retention {
    /// Points of accuracy that are gone.
    pub fn forgotten(&self) -> f64 {
        100.0 * (self.before - self.after.accuracy)
    }

    /// For people.
    pub fn sentence(&self) -> String {
        let (before, after) = (100.0 * self.before, 100.0 * self.after.accuracy);
        let points = self.forgotten();
        let what = if points < 0.0 { format!("gained {:.1}", -points) } else { format!("forgot {points:.1}") };
        format!("source: {before:.1} % before, {after:.1} % after: {what} points")
    }
}

impl Source {
    /// Opens the source of a job's data, if it has one.
    ///
    /// # Errors
    /// Data that is not there.
    pub fn open(data: &DataSection, seed: u32) -> Result<Option<Self>> {
        let (Some(section), Some(source)) = (data.of_source(), &data.source) else { return Ok(None) };
        let open = |part, called| Ok::<_, Error>(Samples::open(&section, part, seed)?.called(called));
        let train = source.train.as_ref().map(|_| open("train", "source.train")).transpose()?;
        Ok(Some(Self { train, val: open("val", "source.val")? }))
    }

    /// All samples of it.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        std::iter::once(&self.val).chain(&self.train)
    }

    /// Builds the network as it came, and leaves out samples that will not decode, up to `limit` in each part.
    ///
    /// # Errors
    /// Weights without a head for the source's classes; see [`Samples::leave_out_bad`].
    pub fn with_net(
        self,
        model: &ModelSection,
        student: &Net,
        (limit, seed): (u32, u32),
        inputs: &BTreeMap<String, PathBuf>,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Origin> {
        let origin = Origin::of(model, Some(self.val.dataset.classes()), seed, inputs)?;
        let train = match self.train {
            Some(train) => {
                super::probe::same_classes(&self.val, &train)?;
                Some(train.leave_out_bad(&student.contract, limit, group, link)?)
            }
            None => None,
        };
        let val = self.val.leave_out_bad(&student.contract, limit, group, link)?;
        Ok(Origin { train, val: Some(val), ..origin })
    }
}

impl Origin {
    /// The network of the weights with the head that they came with, for these classes, or for those that the weights name.
    ///
    /// # Errors
    /// No weights; a head for other classes, or for such as nobody names.
    pub fn of(
        model: &ModelSection,
        classes: Option<&[String]>,
        seed: u32,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let Some(path) = net::weights_path(model, inputs)? else {
            return Err(Error::user("the network has no weights, and nothing to forget", "set `model.weights`"));
        };
        let about = serde_json::from_value::<About>(weights::about(&path)?).ok();
        let Some(classes) = classes.or(about.as_ref().map(|a| &a.classes[..])) else {
            return Err(Error::user(
                format!("weights `{}` do not say for which classes their head is", path.display()),
                "add `[data.source]` with `val`: samples of those classes",
            ));
        };
        let head = about.as_ref().and_then(|a| a.model.as_ref()).map(|m| m.head.clone()).unwrap_or_default();
        let head = HeadSection { keep: true, ..head };
        let net = Net::build(&ModelSection { head: head.clone(), ..model.clone() }, classes, true, seed, inputs)?;
        Ok(Self { net, train: None, val: None, head })
    }

    /// A network with the head that came with its weights beside its new one.
    pub fn beside(&self, mut net: Net) -> Net {
        net.network = net.network.with_old(&self.head, net.backbone.classifier, &self.net.network);
        net
    }
}

impl Loop<'_> {
    /// Judges the network as it came and as it is, both by the head that came with it, on the source's samples. Batch-norms
    /// take the statistics that training has left.
    pub(super) fn retention(&self, group: &mut dyn Collective) -> Result<Option<Retention>> {
        let Some((origin, samples)) = self.origin.and_then(|o| Some((o, o.val.as_ref()?))) else { return Ok(None) };
        let classes = samples.dataset.classes();
        let theirs = &origin.net;
        let (store, outputs) = (&theirs.network.initial, theirs.network.outputs);
        fn seen<'n>(net: &'n Net, store: &Store, samples: &'n Samples) -> Result<Inputs<'n>> {
            let shape = net.shape_at(store, 0)?;
            Ok(Inputs { net, samples, cut: 0, features: None, shape, whole: false })
        }
        let before = evaluate::evaluate(store, &seen(theirs, store, samples)?, group)?;
        let (mine, now) = (&self.net.network, &self.state.store);
        let inputs = seen(self.net, now, samples)?;
        let after = evaluate::judged(&inputs, outputs, group, |batch| {
            let x = inputs.batch(now, batch, &vec![0; batch.len()], None)?;
            let features = self.net.forward(now, x, 0, mine.head)?;
            if mine.old.is_empty() {
                return theirs.forward(store, features, theirs.network.head, theirs.network.units.len());
            }
            let (pass, mut tape) = (Pass::eval(now), Tape::default());
            mine.old.iter().try_fold(features, |x, unit| unit.layer.forward(&x, &pass, &mut tape))
        })?;
        let (before, after) = (Evaluation::new(classes, &before), Evaluation::new(classes, &after));
        Ok(Some(Retention { before: before.accuracy, after }))
    }
}
