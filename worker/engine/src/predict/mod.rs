//! A finished model at work: classes of images, texts, sounds or drawings, and its score on a data set.

mod runs;
mod support;
mod towers;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
pub use support::{Learned, Taught};
use tl_proto::{
    catalog::{Catalog, nearest_hint},
    spec::{DataSection, HeadSection, MAIN, ModelSection, Params, Precision, check_params},
};
pub use towers::{Found, Towers};

use crate::{
    Error, Result,
    collective::Solo,
    data::{self, audio, augment::View, classes, image_folder, inverted, pixels, strokes},
    eval::{Evaluation, softmax},
    gpu::Place,
    nn::{Packs, Pass},
    train::{evaluate, export::About, net, net::Net, samples::Samples},
    weights,
};

/// A model that was exported, ready to run; in f32, also if it was trained with another `model.precision`.
pub struct Model {
    net: Net,
    classes: Vec<String>,
    taught: Option<Taught>,
    /// For each further task, which classes of samples its classes are made of.
    of: Vec<BTreeMap<String, Vec<String>>>,
    /// Its weights as products take them, for one sample after the other.
    packs: Packs,
    /// Whether files are inverted before it sees them.
    inverts: bool,
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
        let file = file_of(path)?;
        let shown = file.display().to_string();
        let about = weights::metadata(&file)?.remove("tl").and_then(|text| serde_json::from_str::<About>(&text).ok());
        let embeds = about.as_ref().is_some_and(|a| a.embeds);
        let Some(About { backbone, classes, model: Some(model), taught, tasks, .. }) = about.filter(|_| !embeds) else {
            if embeds {
                return Err(Error::user(
                    format!(
                        "`{shown}` is one of two networks that learned from pairs: it says where a sample lies, not what it is"
                    ),
                    "`tlctl evaluate MODEL DATA --pairs DATA` looks how halves find each other; as `weights` it goes to a job, \
                     such as one of `kind = \"zero_shot\"`",
                ));
            }
            return Err(Error::user(
                format!("`{shown}` does not say what it predicts"),
                "only models that a job has exported can be run; fine-tune these weights first",
            ));
        };
        let model = finished(backbone, model, &file);
        let net = Net::build(&model, &classes, true, 0, &BTreeMap::new())?;
        let kept = |head: &HeadSection| HeadSection { keep: true, ..head.clone() };
        let heads: Vec<HeadSection> = tasks.values().map(|task| kept(&task.head)).collect();
        let all = tasks.iter().zip(&heads).map(|((name, task), head)| (name.as_str(), head, task.classes.as_slice()));
        let net = net.with_tasks(all, 0, Some(&file))?;
        let of = tasks.into_values().map(|task| task.of).collect();
        Ok(Self { net, classes, taught, of, packs: Packs::default(), inverts: false })
    }

    /// The same, run in another place than the host.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.net.network.initial.place = place;
        self
    }

    /// The same, for files whose images are the negatives of what it knows, if `inverts`.
    ///
    /// # Errors
    /// A model of something else than images.
    pub fn inverting(self, inverts: bool) -> Result<Self> {
        let contract = &self.net.contract;
        if inverts && !(contract.has_pixels() && contract.audio.is_none()) {
            return Err(Error::user("only images can be inverted, and the model takes none", "leave `--invert` out"));
        }
        Ok(Self { inverts, ..self })
    }

    /// The format of files for it.
    pub fn format(&self) -> &'static str {
        self.net.contract.format()
    }

    /// A pass over its weights, which leaves what it makes of them to the next one.
    fn pass(&self) -> Pass<'_> {
        Pass::again(&self.net.network.initial, &self.packs)
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

    /// The number of a head and its classes: the first, if no task is named.
    fn head(&self, task: Option<&str>) -> Result<(usize, &[String])> {
        let Some(task) = task else { return Ok((0, &self.classes)) };
        let found = self.tasks().enumerate().find(|(_, (name, _))| *name == Some(task));
        found.map(|(head, (_, classes))| (head, classes)).ok_or_else(|| {
            let known: Vec<&str> = self.tasks().filter_map(|(name, _)| name).collect();
            let hint = match known.is_empty() {
                true => "it has but one; leave the name out".into(),
                false => nearest_hint(task, &known),
            };
            Error::user(format!("the model has no task `{task}`"), hint)
        })
    }

    /// The probability of each class for a file with an image, or with text, sound or one drawing if that is what the model
    /// takes; in the order of [`Model::classes`].
    ///
    /// # Errors
    /// Something that is no image, no text, no sound or no drawing.
    pub fn predict(&self, image: &Path) -> Result<Vec<f64>> {
        Ok(first(self.predict_all(image)?))
    }

    /// The same for every task of the model, the first one first.
    ///
    /// # Errors
    /// As [`Model::predict`].
    pub fn predict_all(&self, image: &Path) -> Result<Vec<Said>> {
        self.predicts(false)?;
        self.said(self.input(image)?)
    }

    /// Whether it says of a file what that is, or of each of its `lines`.
    ///
    /// # Errors
    /// A model that has no classes of its own; of lines, one that takes no text.
    pub fn predicts(&self, lines: bool) -> Result<()> {
        self.knows_classes()?;
        if lines && !self.reads_text() {
            return Err(Error::user("the model does not take text", "leave `--lines` out"));
        }
        Ok(())
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
        if image.is_dir() {
            let hint = format!("name its files, as by `{shown}/*`; `tlctl evaluate` takes folders of classes");
            return Err(Error::user(format!("`{shown}` is a folder"), hint));
        }
        let bytes = std::fs::read(image)
            .map_err(|e| Error::user(format!("`{shown}` cannot be read: {e}"), "check the path"))?;
        if self.net.contract.text.is_some() {
            let text = String::from_utf8(bytes);
            let text = text.map_err(|_| Error::user(format!("`{shown}` is not text in UTF-8"), ""))?;
            return self.text(text.trim());
        }
        let contract = &self.net.contract;
        if let Some(read) = &contract.strokes {
            let rows = read.rows(&strokes::only(&bytes, &shown.to_string())?);
            let bad = |why: String| Error::user(format!("`{shown}` cannot be read: {why}"), "give it one drawing");
            return read.batch(&[rows.map_err(bad)?], false);
        }
        let side = contract.side();
        let square = if let Some(heard) = &contract.audio {
            let picture = audio::decode(&bytes).and_then(|clip| heard.picture(&clip, side));
            let bad = |e| Error::user(format!("`{shown}` cannot be heard: {e}"), "");
            pixels::Square::Grey(picture.map_err(bad)?)
        } else {
            let mut decoded = image_folder::decode(&bytes)
                .map_err(|e| Error::user(format!("`{shown}` cannot be decoded: {e}"), ""))?;
            if self.inverts {
                decoded = inverted::negative(decoded);
            }
            let short = contract.resize_short_side as usize;
            pixels::Square::Bytes(pixels::square(&decoded, contract.filter(), short, side))
        };
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
        Ok(first(self.said(self.text(text)?)?))
    }

    /// Whether it takes texts.
    pub fn reads_text(&self) -> bool {
        self.net.contract.text.is_some()
    }

    /// What every task of the model says of each text of a file, which is read as data of the format `text` without labels,
    /// and where in the file each is.
    ///
    /// # Errors
    /// A model that takes no text, a file that cannot be read.
    pub fn predict_lines(&self, file: &Path, params: &Params) -> Result<Vec<(String, Vec<Said>)>> {
        self.predicts(true)?;
        let section = section("text", &file.display().to_string(), params.clone(), &[])?;
        let samples = Samples::open_bare(&section, 0)?;
        let one = |index: usize| {
            let text = samples.dataset.text(index).unwrap_or_default();
            Ok::<_, Error>((samples.dataset.name(index), self.said(self.text(text)?)?))
        };
        (0..samples.count()).map(one).collect()
    }

    fn text(&self, text: &str) -> Result<Tensor> {
        let contract = &self.net.contract.text;
        let contract =
            contract.as_ref().ok_or_else(|| Error::user("the model does not take text", "give it a file"))?;
        let ids = contract.ids(text).map_err(|e| Error::user(format!("the text cannot be read: {e}"), ""))?;
        contract.batch(&[ids], false)
    }

    /// What every head makes of one sample.
    fn said(&self, batch: Tensor) -> Result<Vec<Said>> {
        let heads: Vec<usize> = (0..=self.net.network.tasks.len()).collect();
        let logits = self.net.forward_heads(&self.pass(), batch, 0, &heads)?;
        let one = |((task, classes), logits): ((Option<&str>, &[String]), Tensor)| {
            let rows = net::rows(&logits)?;
            let chances = softmax(rows.first().map_or(&[], Vec::as_slice));
            Ok(Said { task: task.map(str::to_owned), chances: classes.iter().cloned().zip(chances).collect() })
        };
        self.tasks().zip(logits).map(one).collect()
    }

    /// Scores the model on a data set with some of its classes, in any order, or of those that the classes of its task are made
    /// of; by few-shot episodes if that is what it was taught by, or if their shape is asked for.
    ///
    /// # Errors
    /// Data that is not there, of which more will not decode than may, or with a class that the model does not know;
    /// parameters that its format does not take; a task that the model has not learned.
    pub fn evaluate(&self, asked: &Asked) -> Result<Evaluation> {
        self.evaluate_telling(asked, &mut |_| {})
    }

    /// The same; `tell` is told of samples that were left out.
    ///
    /// # Errors
    /// As [`Model::evaluate`].
    pub fn evaluate_telling(&self, asked: &Asked, tell: &mut dyn FnMut(&str)) -> Result<Evaluation> {
        let (head, known) = self.head(asked.task.as_deref())?;
        let spec = section(&asked.format, &asked.place, asked.params.clone(), &asked.classes)?;
        let samples = Samples::open(&spec, "val", asked.seed)?;
        samples.fits(&self.net.contract)?;
        let bad = samples.bad(0..samples.count(), &self.net.contract);
        let (samples, left_out) = samples.without(&bad, asked.skip_bad, (asked.place.as_str(), "--skip-bad "))?;
        left_out.iter().for_each(|text| tell(text));
        if self.taught.is_some() || asked.way.is_some() || asked.shot.is_some() {
            return self.by_episodes(asked, &samples);
        }
        let class_of = self.class_of(head, known, samples.dataset.classes()).map_err(|odd| {
            Error::user(
                format!("class {} of `{}` is none that the model knows", classes::short(odd), asked.place),
                classes::unknown_hint(odd, known, "a model can only be scored on classes of its own:"),
            )
        })?;
        let labels: Vec<usize> = samples.dataset.labels().iter().map(|label| class_of[*label]).collect();
        let (store, heads) = (&self.net.network.initial, [(head, labels.as_slice())]);
        let found = evaluate::evaluate_heads(store, &self.inputs(&samples)?, &heads, &mut Solo)?;
        Ok(Evaluation::new(known, found.first().map_or(&[], Vec::as_slice)))
    }

    /// Which of the classes `known` to a head each of a data set's `own` is, or goes to; the first that is none.
    fn class_of<'a>(&self, head: usize, known: &[String], own: &'a [String]) -> Result<Vec<usize>, &'a str> {
        let named = classes::numbers(own, known);
        let of = head.checked_sub(1).map(|task| &self.of[task]).filter(|of| named.is_err() && !of.is_empty());
        let Some(of) = of else { return named };
        let members: Vec<String> = of.values().flatten().cloned().collect();
        let goes_to = of.values().enumerate().flat_map(|(class, members)| std::iter::repeat_n(class, members.len()));
        let goes_to: Vec<usize> = goes_to.collect();
        let found = classes::numbers(own, &members)?;
        Ok(found.into_iter().map(|member| goes_to[member]).collect())
    }
}

/// The file of a model, which may be named by its folder.
///
/// # Errors
/// There is no such file.
fn file_of(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
    if file.exists() {
        return Ok(file);
    }
    Err(Error::user(
        format!("there is no model at `{}`", file.display()),
        "give the folder that a job has left, such as `tl-out/NAME`, or the `model.safetensors` in it",
    ))
}

/// What builds a network again that a job has exported.
fn finished(backbone: String, model: ModelSection, file: &Path) -> ModelSection {
    let mut model = ModelSection { backbone, weights: Some(file.display().to_string()), ..model };
    model.head.keep = true;
    // Its changes are in the weights, and so is what it has learned if it began anew.
    (model.adapter, model.random) = (None, false);
    // The file has its own contract; what the job said of the weights it began with is in there.
    (model.preprocess, model.padding, model.input) = (None, None, None);
    // What is exported are f32 parameters, whatever they were trained with: products of a finished model are f32 too.
    model.precision = Precision::F32;
    model
}

/// The probabilities of the first head.
fn first(said: Vec<Said>) -> Vec<f64> {
    said.into_iter().take(1).flat_map(|said| said.chances).map(|(_, p)| p).collect()
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
    /// Which of several tasks; the first, if none is named.
    pub task: Option<String>,
    /// Only these classes, as `data.val_classes` names them; all if there are none.
    pub classes: Vec<String>,
    /// How many samples may fail to decode and be left out.
    pub skip_bad: u32,
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
///
/// # Errors
/// A format that is not known, or parameters that it does not take.
fn section(format: &str, place: &str, params: Params, classes: &[String]) -> Result<DataSection> {
    let formats = data::catalog();
    let found = Catalog::find(&formats, "data format", format);
    let entry = found.map_err(|(message, hint)| Error::user(message, hint))?;
    check_params("params", entry, &params).map_err(|e| Error::user(e.message, e.hint))?;
    Ok(DataSection {
        format: format.into(),
        train: place.into(),
        val: place.into(),
        batch: 1,
        val_classes: classes.to_vec(),
        params,
        ..DataSection::default()
    })
}
