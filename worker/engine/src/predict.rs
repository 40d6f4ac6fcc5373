//! A finished model at work: classes of images, and its score on a data set.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use tl_proto::{
    catalog::nearest_hint,
    spec::{AugmentSection, DataSection, HeadSection, MAIN, ModelSection, Params, Precision},
};

use crate::{
    Error, Result,
    collective::Solo,
    data::{augment::View, image_folder, pixels},
    eval::{Evaluation, softmax},
    train::{evaluate, export::About, inputs::Inputs, net, net::Net, samples::Samples, tasks::regrouped},
    weights,
};

/// A model that was exported, ready to run; in f32, also if it was trained with another `model.precision`.
pub struct Model {
    net: Net,
    classes: Vec<String>,
    /// For each further task, which classes of samples its classes are made of.
    of: Vec<BTreeMap<String, Vec<String>>>,
}

/// What one head says of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Name of the task; nothing where the model has but one.
    pub task: Option<String>,
    /// The probability of each class, in the order of the model's.
    pub chances: Vec<(String, f64)>,
}

impl Model {
    /// Opens an exported file, or the folder that it lies in.
    ///
    /// # Errors
    /// A file that is no exported model.
    pub fn open(path: &Path) -> Result<Self> {
        let file: PathBuf = if path.is_dir() { path.join("model.safetensors") } else { path.into() };
        let shown = file.display().to_string();
        let about = weights::metadata(&file)?.remove("tl").and_then(|text| serde_json::from_str::<About>(&text).ok());
        let embeds = about.as_ref().is_some_and(|a| a.embeds);
        let Some(About { backbone, classes, model: Some(model), tasks, .. }) = about.filter(|_| !embeds) else {
            if embeds {
                return Err(Error::user(
                    format!(
                        "`{shown}` is one of two networks that learned from pairs: it says where a sample lies, not what it is"
                    ),
                    "give it as `weights` to a job, such as one of `kind = \"zero_shot\"`",
                ));
            }
            return Err(Error::user(
                format!("`{shown}` does not say what it predicts"),
                "only models that a job has exported can be run; fine-tune these weights first",
            ));
        };
        let mut model = ModelSection { backbone, weights: Some(shown), ..model };
        let kept = |head: &HeadSection| HeadSection { keep: true, ..head.clone() };
        let of = tasks.values().map(|task| task.of.clone()).collect();
        let tasks: Vec<(&String, HeadSection, &Vec<String>)> =
            tasks.iter().map(|(name, task)| (name, kept(&task.head), &task.classes)).collect();
        model.head.keep = true;
        // Its changes are in the weights.
        model.adapter = None;
        // The file has its own contract; what the job said of the weights it began with is in there.
        (model.preprocess, model.padding, model.input) = (None, None, None);
        // What is exported are f32 parameters, whatever they were trained with: products of a finished model are f32 too.
        model.precision = Precision::F32;
        let net = Net::build(&model, &classes, true, 0, &BTreeMap::new())?;
        let heads = tasks.iter().map(|(name, head, classes)| (name.as_str(), head, classes.as_slice()));
        let net = net.with_tasks(heads, 0, Some(&file))?;
        Ok(Self { net, classes, of })
    }

    /// Names of its classes; where it has several tasks, those of the first.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Its tasks and their classes, the first without a name where it is the only one.
    fn tasks(&self) -> impl Iterator<Item = (Option<&str>, &[String])> {
        let tasks = &self.net.network.tasks;
        let first = (!tasks.is_empty()).then_some(MAIN);
        let others = tasks.iter().map(|task| (Some(task.name.as_str()), task.classes.as_slice()));
        std::iter::once((first, &self.classes[..])).chain(others)
    }

    /// The probability of each class for a file with an image, or with text if that is what the model reads; in the order
    /// of [`Model::classes`].
    ///
    /// # Errors
    /// Something that is no image, or no text.
    pub fn predict(&self, image: &Path) -> Result<Vec<f64>> {
        let said = self.predict_all(image)?.into_iter().next();
        Ok(said.into_iter().flat_map(|said| said.chances).map(|(_, p)| p).collect())
    }

    /// The same for every task of the model, the first one first.
    ///
    /// # Errors
    /// As [`Model::predict`].
    pub fn predict_all(&self, image: &Path) -> Result<Vec<Said>> {
        let shown = image.display();
        let bytes = std::fs::read(image)
            .map_err(|e| Error::user(format!("`{shown}` cannot be read: {e}"), "check the path"))?;
        if self.net.contract.text.is_some() {
            let text = String::from_utf8(bytes);
            let text = text.map_err(|_| Error::user(format!("`{shown}` is not text in UTF-8"), ""))?;
            return self.said(self.text(text.trim())?);
        }
        let decoded = image_folder::decode(&bytes)
            .map_err(|e| Error::user(format!("`{shown}` is not an image: {e}"), "JPEG and PNG can be read"))?;
        let contract = &self.net.contract;
        let side = contract.side();
        let square = pixels::square(&decoded, contract.filter(), contract.resize_short_side as usize, side);
        let mut input = vec![0.0; pixels::values(contract)];
        pixels::input(&square, &View::PLAIN, contract, &mut input);
        self.said(pixels::batch(input, 1, side)?)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// A model of images, a text without words.
    pub fn predict_text(&self, text: &str) -> Result<Vec<f64>> {
        let said = self.said(self.text(text)?)?.into_iter().next();
        Ok(said.into_iter().flat_map(|said| said.chances).map(|(_, p)| p).collect())
    }

    fn text(&self, text: &str) -> Result<Tensor> {
        let contract = &self.net.contract.text;
        let contract = contract.as_ref().ok_or_else(|| Error::user("the model wants images, not text", ""))?;
        let ids = contract.ids(text).map_err(|e| Error::user(format!("the text cannot be read: {e}"), ""))?;
        contract.batch(&[ids], false)
    }

    fn said(&self, batch: Tensor) -> Result<Vec<Said>> {
        let heads: Vec<usize> = (0..=self.net.network.tasks.len()).collect();
        let logits = self.net.forward_heads(&self.net.network.initial, batch, 0, &heads)?;
        let one = |((task, classes), logits): ((Option<&str>, &[String]), Tensor)| {
            let rows = net::rows(&logits)?;
            let chances = softmax(rows.first().map_or(&[], Vec::as_slice));
            Ok(Said { task: task.map(str::to_owned), chances: classes.iter().cloned().zip(chances).collect() })
        };
        self.tasks().zip(logits).map(one).collect()
    }

    /// Scores the model on a data set with the same classes. `seed` is that of the job, for generated data.
    ///
    /// # Errors
    /// Data that is not there, that will not decode, or with other classes.
    pub fn evaluate(&self, format: &str, place: &str, params: Params, seed: u32) -> Result<Evaluation> {
        self.evaluate_task(None, (format, place), params, seed)
    }

    /// The same with the classes of one of its tasks: the first, if none is named.
    ///
    /// # Errors
    /// Data that is not there, that will not decode, or with other classes; a task that the model has not learned.
    pub fn evaluate_task(
        &self,
        task: Option<&str>,
        (format, place): (&str, &str),
        params: Params,
        seed: u32,
    ) -> Result<Evaluation> {
        let tasks: Vec<(Option<&str>, &[String])> = self.tasks().collect();
        let head = task.map_or(Some(0), |task| tasks.iter().position(|(name, _)| *name == Some(task)));
        let Some((head, (_, classes))) = head.and_then(|head| Some((head, *tasks.get(head)?))) else {
            let known: Vec<&str> = tasks.iter().filter_map(|(name, _)| *name).collect();
            let hint = if known.is_empty() {
                "it has but one; leave the name out".into()
            } else {
                nearest_hint(task.unwrap_or_default(), &known)
            };
            return Err(Error::user(format!("the model has no task `{}`", task.unwrap_or_default()), hint));
        };
        let spec = DataSection {
            format: format.into(),
            train: place.into(),
            val: place.into(),
            batch: 1,
            grains: None,
            train_per_class: None,
            skip_bad: 0,
            class_weights: None,
            sampling: tl_proto::spec::Sampling::default(),
            augment: AugmentSection::default(),
            params,
            target: None,
            pairs: None,
        };
        let samples = Samples::open(&spec, "val", seed)?;
        samples.fits(&self.net.contract)?;
        let own = samples.dataset.classes();
        let of = head.checked_sub(1).map(|task| &self.of[task]).filter(|of| !of.is_empty() && own != classes);
        let mut labels = samples.dataset.labels().to_vec();
        if let Some(of) = of {
            let (_, class_of) = regrouped(task.unwrap_or_default(), of, own.to_vec())?;
            labels.iter_mut().for_each(|label| *label = class_of[*label]);
        } else if own != classes {
            return Err(Error::user(
                format!("`{place}` has the classes {:?} and the model {classes:?}", samples.dataset.classes()),
                "a model can only be scored on its own classes",
            ));
        }
        let store = &self.net.network.initial;
        let shape = self.net.shape_at(store, 0)?;
        let inputs = Inputs { net: &self.net, samples: &samples, cut: 0, features: None, shape, whole: false };
        let heads = [(head, labels.as_slice())];
        let found = evaluate::evaluate_heads(store, &inputs, &heads, &mut Solo)?;
        Ok(Evaluation::new(classes, found.first().map_or(&[], Vec::as_slice)))
    }
}
