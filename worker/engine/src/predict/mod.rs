//! A finished model at work: classes of images, and its score on a data set.

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
pub use support::{Learned, Taught};
use tl_proto::spec::{DataSection, ModelSection, Params, Precision};

use crate::{
    Error, Result,
    collective::Solo,
    data::{augment::View, image_folder, pixels},
    eval::{Evaluation, softmax},
    train::{evaluate, export::About, net, net::Net, samples::Samples},
    weights,
};

/// A model that was exported, ready to run; in f32, also if it was trained with another `model.precision`.
pub struct Model {
    net: Net,
    classes: Vec<String>,
    taught: Option<Taught>,
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
        let Some(About { backbone, classes, model: Some(model), taught, .. }) = about.filter(|_| !embeds) else {
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
        model.head.keep = true;
        // Its changes are in the weights.
        model.adapter = None;
        // The file has its own contract; what the job said of the weights it began with is in there.
        (model.preprocess, model.padding, model.input) = (None, None, None);
        // What is exported are f32 parameters, whatever they were trained with: products of a finished model are f32 too.
        model.precision = Precision::F32;
        let net = Net::build(&model, &classes, true, 0, &BTreeMap::new())?;
        Ok(Self { net, classes, taught })
    }

    /// Names of its classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The probability of each class for a file with an image, or with text if that is what the model reads; in the order
    /// of [`Model::classes`].
    ///
    /// # Errors
    /// Something that is no image, or no text.
    pub fn predict(&self, image: &Path) -> Result<Vec<f64>> {
        self.knows_classes()?;
        self.probabilities(self.input(image)?)
    }

    /// Whether it has classes of its own.
    fn knows_classes(&self) -> Result<()> {
        if self.taught.is_none() {
            return Ok(());
        }
        Err(Error::user(
            "the model has no classes of its own: it learns them from a few samples of each",
            "give it some: `--support FOLDER`, with a folder for each class",
        ))
    }

    /// What the network is fed of a file.
    fn input(&self, image: &Path) -> Result<Tensor> {
        let shown = image.display();
        let bytes = std::fs::read(image)
            .map_err(|e| Error::user(format!("`{shown}` cannot be read: {e}"), "check the path"))?;
        if self.net.contract.text.is_some() {
            let text = String::from_utf8(bytes);
            let text = text.map_err(|_| Error::user(format!("`{shown}` is not text in UTF-8"), ""))?;
            return self.text(text.trim());
        }
        let decoded = image_folder::decode(&bytes)
            .map_err(|e| Error::user(format!("`{shown}` is not an image: {e}"), "JPEG and PNG can be read"))?;
        let contract = &self.net.contract;
        let side = contract.side();
        let square = pixels::square(&decoded, contract.filter(), contract.resize_short_side as usize, side);
        let mut input = vec![0.0; pixels::values(contract)];
        pixels::input(&square, &View::PLAIN, contract, &mut input);
        pixels::batch(input, 1, side)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// A model of images, a text without words.
    pub fn predict_text(&self, text: &str) -> Result<Vec<f64>> {
        self.knows_classes()?;
        self.probabilities(self.text(text)?)
    }

    fn text(&self, text: &str) -> Result<Tensor> {
        let contract = &self.net.contract.text;
        let contract = contract.as_ref().ok_or_else(|| Error::user("the model wants images, not text", ""))?;
        let ids = contract.ids(text).map_err(|e| Error::user(format!("the text cannot be read: {e}"), ""))?;
        contract.batch(&[ids], false)
    }

    fn probabilities(&self, batch: Tensor) -> Result<Vec<f64>> {
        let units = self.net.network.units.len();
        let logits = net::rows(&self.net.forward(&self.net.network.initial, batch, 0, units)?)?;
        Ok(softmax(logits.first().map_or(&[], Vec::as_slice)))
    }

    /// Scores the model on a data set with the same classes; by few-shot episodes if that is what it was taught by, or if
    /// their shape is asked for.
    ///
    /// # Errors
    /// Data that is not there, that will not decode, or with other classes.
    pub fn evaluate(&self, asked: &Asked) -> Result<Evaluation> {
        let spec = section(&asked.format, &asked.place, asked.params.clone(), &asked.classes);
        let samples = Samples::open(&spec, "val", asked.seed)?;
        samples.fits(&self.net.contract)?;
        if self.taught.is_some() || asked.way.is_some() || asked.shot.is_some() {
            return self.by_episodes(asked, &samples);
        }
        if samples.dataset.classes() != self.classes {
            let place = &asked.place;
            return Err(Error::user(
                format!("`{place}` has the classes {:?} and the model {:?}", samples.dataset.classes(), self.classes),
                "a model can only be scored on its own classes",
            ));
        }
        let outcomes = evaluate::evaluate(&self.net.network.initial, &self.inputs(&samples)?, &mut Solo)?;
        Ok(Evaluation::new(&self.classes, &outcomes))
    }
}

/// What a model is to be scored on.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// A data format.
    pub format: String,
    /// Where the samples are.
    pub place: String,
    /// Parameters of the format.
    pub params: Params,
    /// Seed of the job, for generated data and episodes.
    pub seed: u32,
    /// Only these classes, as `data.val_classes` names them; all if there are none.
    pub classes: Vec<String>,
    /// Classes of an episode; what the job said if nothing is asked.
    pub way: Option<u32>,
    /// The same for the samples of each class that it shows.
    pub shot: Option<u32>,
    /// And for those that it asks for.
    pub query: Option<u32>,
    /// Episodes.
    pub episodes: Option<u32>,
}

impl Asked {
    /// All samples of a place.
    pub fn of(format: &str, place: &str, params: Params, seed: u32) -> Self {
        Self { format: format.into(), place: place.into(), params, seed, ..Self::default() }
    }
}

/// Samples of a place.
fn section(format: &str, place: &str, params: Params, classes: &[String]) -> DataSection {
    DataSection {
        format: format.into(),
        train: place.into(),
        val: place.into(),
        batch: 1,
        val_classes: classes.to_vec(),
        params,
        ..DataSection::default()
    }
}
