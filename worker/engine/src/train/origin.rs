//! What the weights were trained on: its samples, the network as it came with the head that came with it, and how much of
//! that a run has forgotten.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tl_proto::spec::{DataSection, HeadSection, JobSpec, ModelSection};

use super::{
    Loop, chain, evaluate,
    export::About,
    net::{self, Net},
    samples::Samples,
};
use crate::{
    Error, Result,
    collective::Collective,
    eval::{self, Evaluation, Outcome},
    link::Link,
    modifier,
    nn::{Packs, Pass, Tape},
    weights::{self, Contract},
};

/// The source's samples.
pub(super) struct Source {
    /// What shows which parameters matter, where a job asks for that.
    pub train: Option<Samples>,
    /// What is judged.
    pub val: Samples,
}

/// The network as it came, and the source's samples.
pub(super) struct Origin<'a> {
    /// With its own head.
    pub net: Net,
    /// What it is judged on, where a job has that.
    pub source: Option<&'a Source>,
    head: HeadSection,
}

/// What a network knows of its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// Accuracy of the network as it came.
    pub before: f64,
    /// What the same head makes of the network that was trained; where that keeps it, as it is by then.
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
        let val = open("val", "source.val")?;
        let Some(train) = source.train.as_ref().map(|_| open("train", "source.train")).transpose()? else {
            return Ok(Some(Self { train: None, val }));
        };
        // Those of more classes have the head's.
        let all = train.dataset.classes().len() > val.dataset.classes().len();
        let (train, val) = if all {
            let val = val.of_classes(&train)?;
            (train, val)
        } else {
            (train.of_classes(&val)?, val)
        };
        Ok(Some(Self { train: Some(train), val }))
    }

    /// All samples of it.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        std::iter::once(&self.val).chain(&self.train)
    }

    /// The same without samples that will not decode, up to `limit` in each part.
    ///
    /// # Errors
    /// See [`Samples::leave_out_bad`].
    pub fn leave_out_bad(
        self,
        contract: &Contract,
        limit: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Self> {
        let train = self.train.map(|train| train.leave_out_bad(contract, limit, group, link)).transpose()?;
        Ok(Self { train, val: self.val.leave_out_bad(contract, limit, group, link)? })
    }
}

impl<'a> Origin<'a> {
    /// What the network of a job came from, where the job has samples of that, or wants the old head to go on. It sees what
    /// `student` sees, which was built from the same weights.
    ///
    /// # Errors
    /// No weights; a head for other classes than those of the samples, or for such as nobody names.
    pub fn open(
        spec: &JobSpec,
        model: &ModelSection,
        student: &Net,
        source: Option<&'a Source>,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Option<Self>> {
        if source.is_none() && modifier::remembers(&spec.modifiers).is_none() {
            return Ok(None);
        }
        let Some(path) = net::weights_path(model, inputs)? else {
            return Err(Error::user("the network has no weights, and nothing to forget", "set `model.weights`"));
        };
        let about = serde_json::from_value::<About>(weights::about(&path)?).ok();
        let named = about.as_ref().filter(|about| !about.embeds).map(|about| &about.classes[..]);
        let Some(classes) = source.map(|source| source.val.dataset.classes()).or(named) else {
            return Err(Error::user(
                format!("weights `{}` do not say for which classes their head is", path.display()),
                "add `[data.source]` with `val`: samples of those classes",
            ));
        };
        let head = about.as_ref().and_then(|a| a.model.as_ref()).map(|m| m.head.clone()).unwrap_or_default();
        let head = HeadSection { keep: true, ..head };
        let model = ModelSection { head: head.clone(), ..model.clone() };
        // The same weights have filled the student: what does not fit is the head.
        let net = Net::build(&model, classes, true, spec.job.seed, inputs)
            .map_err(|error| if source.is_some() { misfit(error, named, classes) } else { error })?;
        let mut net = Net { contract: student.contract.clone(), ..net };
        net.network.initial.place = student.network.initial.place.clone();
        Ok(Some(Self { net, source, head }))
    }

    /// A network with the head that came with its weights beside its new one.
    pub fn beside(&self, mut net: Net) -> Net {
        net.network = net.network.with_old(net.backbone, &net.contract, &self.head, &self.net.network);
        net
    }
}

/// Says that a head is none for the source's classes; `named` are those that its file says it is for.
fn misfit(error: Error, named: Option<&[String]>, classes: &[String]) -> Error {
    let message = match error {
        Error::User { message, .. } => message,
        other => return other,
    };
    let m = classes.len();
    let said = match named.map(<[String]>::len).filter(|n| *n != m) {
        Some(n) => format!("the head of the weights is for {n} classes, and `data.source.val` has {m}"),
        None => {
            let why = message.split_once("another network: ").map_or(message.as_str(), |(_, why)| why);
            format!("the head of the weights is none for the {m} classes of `data.source.val`: {why}")
        }
    };
    Error::user(said, "give samples of the classes that the weights were trained on, and weights that have their head")
}

impl Loop<'_> {
    /// Judges the network as it came and as it is, both by the head that came with it, on the source's samples. Where the
    /// network goes on with that head it is its own, trained as it is: that is what goes out. Batch-norms take the
    /// statistics that training has left.
    pub(super) fn retention(&self, group: &mut dyn Collective) -> Result<Option<Retention>> {
        let Some((origin, source)) = self.origin.and_then(|o| Some((o, o.source?))) else { return Ok(None) };
        let samples = &source.val;
        let (theirs, mine) = (&origin.net, &self.net.network);
        let (store, now) = (&theirs.network.initial, &self.state.store);
        let before = evaluate::evaluate(store, &self.inputs(theirs, samples, 0, None)?, group)?;
        let inputs = self.inputs(self.net, samples, 0, None)?;
        let kept = self.net.keeps_head() && mine.outputs == theirs.network.outputs;
        let packs = [Packs::default(), Packs::default()];
        let (pass, came) = (Pass::again(now, &packs[0]), Pass::again(store, &packs[1]));
        let logits = evaluate::gathered(samples.count(), group, |batch, next| {
            let next = next.map(|next| (next.to_vec(), vec![0; next.len()]));
            inputs.expect(next.as_slice(), false);
            let x = inputs.batch(now, batch, &vec![0; batch.len()], None)?;
            let features = self.net.forward(&pass, x, 0, mine.head)?;
            if kept {
                return net::rows(&self.net.forward(&pass, features, mine.head, mine.units.len())?);
            }
            if mine.old.is_empty() {
                let (first, last) = (theirs.network.head, theirs.network.units.len());
                return net::rows(&theirs.forward(&came, features, first, last)?);
            }
            net::rows(&chain::through(&mine.old, features, &pass, &mut Tape::default())?)
        })?;
        let after: Vec<Outcome> =
            logits.iter().zip(samples.dataset.labels()).map(|(row, label)| eval::judge(row, *label)).collect();
        let classes = samples.dataset.classes();
        let (before, after) = (Evaluation::new(classes, &before), Evaluation::new(classes, &after));
        Ok(Some(Retention { before: before.accuracy, after }))
    }
}
