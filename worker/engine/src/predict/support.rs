//! New classes from a few samples each: what a model of any kind of job makes of a folder of them.

use std::path::Path;

use candle_core::Tensor;
use tl_proto::spec::{EpisodesSection, Params, StageSection};

use super::{Asked, Model, section};
use crate::{
    Error, Result,
    collective::Solo,
    data::{self, inverted::INVERT},
    eval::{Evaluation, softmax},
    nn::tensor,
    objective::fewshot::{self, Learns, Method, Shown},
    train::{
        evaluate,
        fewshot::{Few, adapt::Tuner, judge::Judged},
        inputs::Inputs,
        net,
        samples::Samples,
        stage::Stage,
    },
};

/// How a model was taught to learn from a few samples.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Taught {
    /// The job's `[objective]`.
    pub objective: Params,
    /// The job's `[data.episodes]`.
    pub episodes: EpisodesSection,
    /// Its last stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageSection>,
}

/// Classes that a model has learned from a few samples.
pub struct Learned<'a> {
    model: &'a Model,
    classes: Vec<String>,
    counts: Vec<usize>,
    support: Tensor,
}

impl Model {
    pub(super) fn taught(&self) -> (&'static Method, Params) {
        let params = self.taught.as_ref().map(|taught| taught.objective.clone()).unwrap_or_default();
        (fewshot::method(&params), params)
    }

    /// Learns the classes of a folder: its folders are classes, or, where it has none, each file is one; lines of texts and of
    /// drawings say their classes themselves. A model that was taught by another kind of job takes the nearest prototype.
    ///
    /// # Errors
    /// A folder without classes; a model that learns by steps on its weights.
    pub fn learn(&self, place: &Path) -> Result<Learned<'_>> {
        let method = self.taught().0;
        if let Learns::Adapts(_) = method.learns {
            return Err(Error::user(
                format!(
                    "a model of `{}` learns a task by steps on its weights, and is none for single files",
                    method.name()
                ),
                "train one with `method = \"prototype\"`; `tlctl evaluate` judges this one by episodes",
            ));
        }
        let shown = place.display().to_string();
        let mut params = Params::new();
        if self.inverts {
            params.insert(INVERT.to_owned(), true.into());
        }
        let section = section(self.format(), &shown, params, &[])?;
        let has_folders = std::fs::read_dir(place).into_iter().flatten().flatten().any(|e| e.path().is_dir());
        // Lines say their classes, also those of a list, and files do not.
        let says_classes = has_folders || place.is_file() || !self.net.contract.has_pixels();
        let samples = match says_classes {
            true => Samples::open(&section, "val", 0)?,
            false => Samples::open_bare(&section, 0)?,
        };
        if let Some(class) = data::empty_class(&*samples.dataset) {
            return Err(Error::user(
                format!("class `{class}` of `{shown}` has no samples"),
                "add some, or remove the empty folder",
            ));
        }
        let rows = self.rows(&samples)?;
        let width = self.net.network.width;
        let (classes, members): (Vec<String>, Vec<Vec<usize>>) = if samples.dataset.classes().is_empty() {
            let stem = |i: usize| Path::new(&samples.dataset.name(i)).with_extension("").display().to_string();
            (0..samples.count()).map(|i| (stem(i), vec![i])).unzip()
        } else {
            let of = |c: usize| (0..samples.count()).filter(|i| samples.dataset.labels()[*i] == c).collect();
            samples.dataset.classes().iter().enumerate().map(|(c, name)| (name.clone(), of(c))).unzip()
        };
        if classes.len() < 2 {
            return Err(Error::user(
                format!("`{shown}` shows one class, `{}`", classes.first().map_or("", |c| c)),
                "give a folder with a folder of samples for each class",
            ));
        }
        let support: Vec<f32> = members.concat().iter().flat_map(|i| &rows[*i]).copied().collect();
        let support = tensor(support, &[samples.count(), width])?;
        Ok(Learned { model: self, classes, counts: members.iter().map(Vec::len).collect(), support })
    }

    /// Features of all samples.
    pub(super) fn rows(&self, samples: &Samples) -> Result<Vec<Vec<f32>>> {
        samples.fits(&self.net.contract)?;
        let inputs = self.inputs(samples)?;
        evaluate::embed(&self.net.network.initial, &inputs, self.net.network.embeds(), &mut Solo)
    }

    pub(super) fn inputs<'m>(&'m self, samples: &'m Samples) -> Result<Inputs<'m>> {
        let shape = self.net.shape_at(&self.net.network.initial, 0)?;
        Ok(Inputs::raw(&self.net, samples, shape))
    }

    /// Judges the model by episodes of a data set: those of its job but for what is `asked`, or, for a model of another kind
    /// of job, by the nearest prototype.
    ///
    /// # Errors
    /// Data that is not there, or with too few classes or samples; a model that can adapt to other numbers of classes only.
    pub(super) fn by_episodes(&self, asked: &Asked, samples: &Samples) -> Result<Evaluation> {
        let (method, params) = self.taught();
        let mut episodes = self.taught.as_ref().map(|taught| taught.episodes.clone()).unwrap_or_default();
        for (own, other) in [
            (&mut episodes.way, asked.way),
            (&mut episodes.shot, asked.shot),
            (&mut episodes.query, asked.query),
            (&mut episodes.test, asked.episodes),
        ] {
            *own = other.unwrap_or(*own);
        }
        let outputs = self.net.network.outputs;
        if method.classifies() && episodes.way as usize != outputs {
            return Err(Error::user(
                format!("the model tells {outputs} classes apart, and is asked for {}", episodes.way),
                "a model of `prototype` takes any number of classes",
            ));
        }
        let store = &self.net.network.initial;
        let few = Few::judging((method, params), episodes, samples, asked.seed)?;
        let tuner = match self.taught.as_ref().and_then(|t| t.stage.as_ref()) {
            Some(stage) => Tuner::in_stage(&few, &self.net, store, &Stage::resolve(&self.net, store, stage)?)?,
            None => Tuner::untrained(&few, &self.net, store)?,
        };
        few.evaluation(store, &self.inputs(samples)?, tuner.as_ref(), Judged::Test, &mut Solo)
    }
}

impl Learned<'_> {
    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The probability of each class for a file, in the order of [`Learned::classes`].
    ///
    /// # Errors
    /// Something that is no image, no text, no sound or no drawing.
    pub fn predict(&self, file: &Path) -> Result<Vec<f64>> {
        let network = &self.model.net.network;
        let query = self.model.net.forward(&self.model.pass(), self.model.input(file)?, 0, network.embeds())?;
        let (method, params) = self.model.taught();
        let (Learns::Compares(scores) | Learns::Fits(scores)) = method.learns else {
            return Err(Error::Internal("a method that adapts has learned a folder".into()));
        };
        let scores = scores(&params, &Shown { support: &self.support, counts: &self.counts, query: &query })?;
        Ok(softmax(net::rows(&scores)?.first().map_or(&[], Vec::as_slice)))
    }
}
