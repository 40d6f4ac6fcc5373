//! A network ready to run: layers, tensors, and the preprocessing that goes with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use candle_core::Tensor;
use tl_proto::spec::{Handed, JobSpec, ModelSection, Params};

use super::{chain, parts::Parts, taps::Taps, tower::Tower};
use crate::{
    Error, Result,
    backbone::{Asked, Backbone, Inside, Network, find},
    data::{
        Dataset,
        audio::Audio,
        drawing::{self, Strokes},
        pixels, tokens,
    },
    nn::{Layer, Pass, Store, Tape, host},
    objective::{Objective, Widths},
    weights::{self, Contract, Merged, Which},
};

/// A network, where it came from and what it wants to see.
pub struct Net {
    /// Its entry.
    pub backbone: &'static Backbone,
    /// Its layers and initial tensors.
    pub network: Network,
    /// Its preprocessing.
    pub contract: Contract,
    /// Adapters that are in its weights, or that its parts go on from.
    pub merged: Merged,
    /// Digest of its parts, and of where they come from.
    pub parts: String,
    /// A second network that is trained with it: its tensors lie behind this one's.
    pub tower: Option<Box<Tower>>,
    /// Where a job's objective looks inside it, and inside its teacher.
    pub taps: Taps,
    /// Names of the parameters that came with its weights.
    pub loaded: BTreeSet<String>,
}

/// Resolves `step:ID` and `job:ID/STEP` to the file that was left there.
///
/// # Errors
/// A file that was not handed over; a folder without weights.
pub fn weights_path(model: &ModelSection, inputs: &BTreeMap<String, PathBuf>) -> Result<Option<PathBuf>> {
    let Some(weights) = &model.weights else { return Ok(None) };
    let Some(name) = Handed::key(weights) else {
        let path = PathBuf::from(weights);
        // A folder of ours, or of anyone who keeps the usual names.
        return Ok(Some(if path.is_dir() { weights::of_folder(&path)? } else { path }));
    };
    let found = inputs.get(name).cloned();
    found.map(Some).ok_or_else(|| Error::Internal(format!("the model `{name}` was not handed over")))
}

/// What a network is built for.
struct Purpose<'a> {
    keep_head: bool,
    seed: u32,
    modifiers: &'a BTreeMap<String, Params>,
    samples: Option<&'a dyn Dataset>,
    which: Which,
    /// Where the job says which network it is.
    section: &'a str,
}

impl Net {
    /// Builds and fills the network of a job, with an output for each of `classes`.
    ///
    /// # Errors
    /// Weights of another architecture, or without a preprocessing contract; a head that is kept but was trained on
    /// other classes.
    pub fn build(
        model: &ModelSection,
        classes: &[String],
        keep_head: bool,
        seed: u32,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let (modifiers, samples, which) = (&BTreeMap::new(), None, Which::Model);
        let section = which.section();
        Self::make(model, classes, inputs, Purpose { keep_head, seed, modifiers, samples, which, section })
    }

    /// The same for a teacher, which goes on with the head that it came with; `role` is what the job calls it.
    ///
    /// # Errors
    /// As [`Net::build`].
    pub fn build_teacher(
        role: &str,
        model: &ModelSection,
        classes: &[String],
        seed: u32,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let (modifiers, samples, which) = (&BTreeMap::new(), None, Which::Model);
        let section = &format!("nets.{role}");
        Self::make(model, classes, inputs, Purpose { keep_head: true, seed, modifiers, samples, which, section })
    }

    /// The same for a job that trains on `samples`: where no weights bring a tokenizer, their words make one, and its
    /// modifiers may put parts on layers.
    ///
    /// # Errors
    /// As [`Net::build`]; modifiers that find no place for their parts.
    pub fn build_for(
        model: &ModelSection,
        classes: &[String],
        spec: &JobSpec,
        inputs: &BTreeMap<String, PathBuf>,
        samples: &dyn Dataset,
    ) -> Result<Self> {
        let (seed, modifiers, which) = (spec.job.seed, &spec.modifiers, Which::Model);
        let (samples, section) = (Some(samples), which.section());
        Self::make(model, classes, inputs, Purpose { keep_head: false, seed, modifiers, samples, which, section })
    }

    /// The same for the network that is trained with the job's, from the second of two networks where the weights hold
    /// two. It carries no parts.
    ///
    /// # Errors
    /// As [`Net::build_for`].
    pub fn build_tower(
        model: &ModelSection,
        outputs: &[String],
        seed: u32,
        inputs: &BTreeMap<String, PathBuf>,
        samples: &dyn Dataset,
    ) -> Result<Self> {
        let (modifiers, which, samples) = (&BTreeMap::new(), Which::Tower, Some(samples));
        let section = which.section();
        Self::make(model, outputs, inputs, Purpose { keep_head: false, seed, modifiers, samples, which, section })
    }

    /// One of the networks that a job left, whole, to be run as it is.
    ///
    /// # Errors
    /// As [`Net::build`].
    pub fn build_kept(
        model: &ModelSection,
        outputs: &[String],
        inputs: &BTreeMap<String, PathBuf>,
        which: Which,
    ) -> Result<Self> {
        let (modifiers, samples, section) = (&BTreeMap::new(), None, which.section());
        Self::make(model, outputs, inputs, Purpose { keep_head: true, seed: 0, modifiers, samples, which, section })
    }

    /// The network with what a job's objective trains beside it.
    ///
    /// # Errors
    /// A network that is too wide for the objective, or units that cannot be compared.
    pub fn with_own(mut self, spec: &JobSpec, teachers: &[Self]) -> Result<Self> {
        let objective = Objective::find(&spec.job.kind);
        if let (Some(named), Some(teacher)) = ((objective.taps)(&spec.objective), teachers.first()) {
            self.taps = Taps::resolve(&named, &self, teacher)?;
        }
        let Network { width, outputs, .. } = self.network;
        let teacher = teachers.first().map_or(0, |t| t.network.width);
        let (teachers, taps, tasks) = (teachers.len(), self.taps.about.clone(), self.network.tasks.len() + 1);
        let widths = Widths { features: width, classes: outputs, teacher, teachers, taps, tasks };
        let own = (objective.own)(&spec.objective, widths)?;
        self.network = self.network.with_own(&own, spec.job.seed);
        self.network.own_rate = objective.several.as_ref().and_then(|several| (several.rate)(&spec.objective));
        Ok(self)
    }

    fn make(
        model: &ModelSection,
        classes: &[String],
        inputs: &BTreeMap<String, PathBuf>,
        purpose: Purpose<'_>,
    ) -> Result<Self> {
        let section = purpose.section;
        Self::filled(model, classes, inputs, purpose).map_err(|e| e.of_section(section))
    }

    fn filled(
        model: &ModelSection,
        classes: &[String],
        inputs: &BTreeMap<String, PathBuf>,
        purpose: Purpose<'_>,
    ) -> Result<Self> {
        let backbone = find(&model.backbone)
            .ok_or_else(|| Error::user(format!("there is no backbone `{}`", model.backbone), "see `tlctl catalog`"))?;
        let path = weights_path(model, inputs)?;
        let side = model.input.unwrap_or(backbone.input);
        let named =
            model.preprocess.as_deref().map(|p| Contract::named(p, side, model.padding.as_deref())).transpose()?;
        let mut contract = match &path {
            _ if backbone.reads_text() => {
                weights::text::contract(backbone, (purpose.section, model), path.as_deref(), purpose.which)?
            }
            _ if backbone.reads_strokes() => {
                weights::strokes::contract(backbone, (purpose.section, model), path.as_deref(), purpose.which)?
            }
            None => named.map_or_else(|| Contract::named("tf", side, model.padding.as_deref()), Ok)?,
            Some(path) => {
                let found = weights::contract_of(path, purpose.which)?;
                let mut found = found.map(|found| found.for_images(purpose.section, path)).transpose()?;
                let mut named = named;
                if found.is_none() && weights::keras::is_h5(path) {
                    let padding = model.padding.is_some();
                    found = weights::keras::agreed(backbone.name, backbone.input, named.as_ref(), padding)?;
                    named = named.filter(|_| found.is_none());
                }
                agree(found, named, (purpose.section, model), &path.display().to_string())?
            }
        };
        if backbone.reads_strokes() {
            let said = purpose.samples.and_then(Dataset::drawn).cloned().unwrap_or_default();
            contract.strokes = Some(Strokes::agreed(contract.strokes.as_ref(), &said)?);
        }
        if let (None, Some(said)) = (&contract.text, purpose.samples.and_then(Dataset::heard)) {
            let audio = Audio::agreed(contract.audio.as_ref(), said)?;
            audio.fits(contract.side())?;
            contract.audio = Some(audio);
        }
        // What begins anew has nothing of what its weights hold, only their shape.
        let values = path.as_deref().filter(|_| !model.random);
        let first = values.filter(|_| purpose.which == Which::Model);
        let parts = Parts::of(model, backbone, purpose.modifiers, first)?;
        let (head, seed, dropout) = (&model.head, purpose.seed, Inside::of(model));
        let asked = Asked { dropout, plan: parts.plan(), behind: None };
        let mut network = Network::build_with(backbone, &contract, head, classes.len(), seed, asked);
        let (merged, digest) = (parts.merged().clone(), parts.digest(&network.adapters));
        // Only a look at a job has an adapter and no weights, and it is they that say the shape of an encoder.
        let sized = path.is_some() || !parts.have_a_folder() || !backbone.reads_text();
        if sized {
            parts.are_placed(&network.adapters, backbone)?;
        }
        let kept = (purpose.keep_head || head.keep).then_some(classes);
        let loaded = match values {
            Some(path) => {
                let kept = kept.filter(|_| !parts.bring_a_head());
                weights::load(&mut network, backbone, path, purpose.which, kept)?
            }
            None => BTreeSet::new(),
        };
        if sized {
            parts.fill(&mut network, backbone, kept)?;
        }
        if parts.to_be_merged() {
            network = network.merged(backbone, &contract, head, seed, dropout);
        }
        network.initial.precision = model.precision;
        if let Some(other) = contract.activation.as_deref().filter(|a| *a != backbone.activation) {
            let (name, own) = (backbone.name, backbone.activation);
            return Err(Error::user(
                format!("the contract of the weights wants the activation `{other}`, and {name} has `{own}`"),
                format!("`{}.backbone` must be the network that the weights were trained with", purpose.section),
            ));
        }
        if let Some(text) = &mut contract.text {
            complete(text, &network, purpose.samples, purpose.section)?;
        }
        Ok(Self { backbone, network, contract, merged, parts: digest, loaded, tower: None, taps: Taps::default() })
    }

    /// Whether the head is the one that came with the weights, to be trained on.
    pub fn keeps_head(&self) -> bool {
        let names = &self.network.initial.params;
        let mut head = (self.network.head..self.network.units.len()).flat_map(|unit| self.network.unit_params(unit));
        head.all(|p| self.loaded.contains(&names[p.0].name)) && !self.loaded.is_empty()
    }

    /// Runs units `from..to` on a batch, by a pass that evaluates: nothing is kept for a backward.
    ///
    /// # Errors
    /// A batch of another shape.
    pub fn forward(&self, pass: &Pass<'_>, x: Tensor, from: usize, to: usize) -> Result<Tensor> {
        chain::through(&self.network.units[from..to], x, pass, &mut Tape::default())
    }

    /// The shape of one sample in front of unit `cut`.
    ///
    /// # Errors
    /// An input that is too small for the network.
    pub fn shape_at(&self, store: &Store, cut: usize) -> Result<Vec<usize>> {
        Ok(self.forward(&Pass::eval(store), self.blank()?, 0, cut)?.dims()[1..].to_vec())
    }

    /// The shape of one sample behind each unit.
    ///
    /// # Errors
    /// An input that is too small for the network.
    pub fn shapes(&self, store: &Store) -> Result<Vec<Vec<usize>>> {
        let mut x = self.blank()?;
        let mut shapes = Vec::new();
        for unit in 0..self.network.units.len() {
            x = self.forward(&Pass::eval(store), x, unit, unit + 1)?;
            shapes.push(x.dims()[1..].to_vec());
        }
        Ok(shapes)
    }

    /// One sample of nothing.
    fn blank(&self) -> Result<Tensor> {
        let side = self.contract.side();
        match &self.contract {
            Contract { text: Some(text), .. } => text.batch(&[vec![0.0]], true),
            Contract { strokes: Some(strokes), .. } => strokes.batch(&[vec![0.0; drawing::WIDTH]], true),
            _ => pixels::batch(vec![0.0; 3 * side * side], 1, side),
        }
    }

    /// Everything that determines what comes out of units `0..cut`: a digest of preprocessing, layers and tensors.
    pub fn prefix_digest(&self, store: &Store, cut: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        // The number is that of decoding, preprocessing and rounding: another one where the same bytes become other numbers.
        let mut text = format!("features/{};{};{};", store.rounding(), store.precision, self.contract.describe());
        self.network.units[..cut].iter().for_each(|u| u.layer.describe(&mut text));
        hasher.update(text.as_bytes());
        let (mut params, mut norms) = (Vec::new(), Vec::new());
        self.network.units[..cut].iter().for_each(|u| {
            u.layer.params(&mut params);
            u.layer.norms(&mut norms);
        });
        let mut add = |values: &[f32]| {
            hasher.update(&crate::collective::to_bytes(values));
        };
        params.iter().for_each(|p| add(store.param(*p)));
        norms.iter().for_each(|(m, v)| {
            add(store.buffer(*m));
            add(store.buffer(*v));
        });
        hasher.finalize().to_hex().to_string()
    }
}

/// Makes a tokenizer of the samples' words where there is none, and checks that the network takes texts that long.
fn complete(text: &mut tokens::Text, network: &Network, samples: Option<&dyn Dataset>, section: &str) -> Result<()> {
    let params = &network.initial.params;
    let positions = params.iter().find(|e| e.name.ends_with("position_embeddings.weight"));
    if let Some(most) = positions.map(|e| e.shape[0]).filter(|most| text.max_length > *most) {
        return Err(Error::user(
            format!("the network takes texts of {most} tokens, and `{section}.input` is {}", text.max_length),
            "lower it: what follows is cut off",
        ));
    }
    if text.tokenizer.is_empty() {
        let texts = samples.into_iter().flat_map(|s| (0..s.labels().len()).filter_map(move |i| s.text(i)));
        text.tokenizer = tokens::learn(texts, params.first().map_or(1, |e| e.shape[0]))?;
    }
    Ok(())
}

/// The contract of weights, from beside them, from the job's section of the network, or from both if they say the same.
fn agree(
    found: Option<Contract>,
    named: Option<Contract>,
    (section, model): (&str, &ModelSection),
    shown: &str,
) -> Result<Contract> {
    match (found, named) {
        (None, None) => Err(Error::user(
            format!("weights `{shown}` come without a preprocessing contract"),
            format!(
                "put `preprocess.json` beside them, or write `preprocess = \"torch\"` (or tf, unit) and `padding = \
                 \"symmetric\"` (or same) in `[{section}]`"
            ),
        )),
        (None, Some(named)) => Ok(named),
        (Some(found), None) => Ok(match model.input {
            Some(side) => found.scaled_to(side),
            None => found,
        }),
        (Some(found), Some(named)) => {
            let pixels = |c: &Contract| (c.scale, c.mean, c.std, c.bgr());
            let padding = model.padding.is_none() || found.padding == named.padding;
            if pixels(&found) == pixels(&named) && padding {
                return agree(Some(found), None, (section, model), shown);
            }
            Err(Error::user(
                format!("`[{section}]` and the contract of `{shown}` ask for different preprocessing"),
                format!(
                    "remove `preprocess` and `padding` from `[{section}]`: what lies beside the weights is what they \
                     were trained with"
                ),
            ))
        }
    }
}

/// The rows of a `[n, classes]` tensor.
///
/// # Errors
/// A tensor that is not on the CPU.
pub fn rows(t: &Tensor) -> Result<Vec<Vec<f32>>> {
    let width = t.elem_count() / t.dim(0)?.max(1);
    Ok(host(t)?.chunks_exact(width.max(1)).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {

    use super::*;

    /// Random weights of a small network, with a contract beside them that says `text`; what a job makes of them.
    fn build(text: &str, input: Option<u32>) -> Result<Net> {
        build_as(text, input, false, 1)
    }

    fn build_as(text: &str, input: Option<u32>, random: bool, seed: u32) -> Result<Net> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut model = ModelSection { backbone: "small_cnn".into(), weights: None, ..ModelSection::default() };
        let classes = ["a".to_owned(), "b".to_owned()];
        let net = Net::build(&model, &classes, false, 1, &BTreeMap::new())?;
        weights::testing::bare(&net, &path);
        std::fs::write(dir.path().join("preprocess.json"), text).unwrap();
        (model.weights, model.input, model.random) = (Some(path.display().to_string()), input, random);
        Net::build(&model, &classes, false, seed, &BTreeMap::new())
    }

    #[test]
    fn a_network_that_begins_anew_has_the_preprocessing_of_its_weights_and_none_of_their_values() {
        let build = |random, seed| build_as(TEXT, None, random, seed).unwrap();
        let (given, anew, other) = (build(false, 2), build(true, 2), build(true, 1));
        assert_eq!(given.contract.describe(), anew.contract.describe());
        let kernel = |net: &Net| net.network.initial.values[..64].to_vec();
        assert_ne!(kernel(&given), kernel(&anew));
        // The weights were drawn with seed 1.
        assert_eq!(kernel(&given), kernel(&other));
    }

    const TEXT: &str = r#"{"input_size": [3, 32, 32], "resize_short_side": 40, "scale": "x / 255",
        "batch_norm_eps": 0.001, "activation": "relu", "padding": "symmetric"}"#;

    #[test]
    fn another_input_scales_what_the_contract_says() {
        let contract = |input| build(TEXT, input).unwrap().contract;
        assert_eq!((contract(None).side(), contract(None).resize_short_side), (32, 40));
        assert_eq!((contract(Some(64)).side(), contract(Some(64)).resize_short_side), (64, 80));
        assert_eq!((contract(Some(16)).side(), contract(Some(16)).resize_short_side), (16, 20));
    }

    #[test]
    fn batch_norms_use_the_eps_of_the_contract() {
        let norms = |text: &str| {
            let mut said = String::new();
            build(text, None).unwrap().network.units.iter().for_each(|u| u.layer.describe(&mut said));
            said
        };
        let said = norms(TEXT);
        assert!(said.contains("norm:0.001:") && !said.contains("norm:0.00001:"), "{said}");
        assert!(norms(&TEXT.replace("\"batch_norm_eps\": 0.001,", "")).contains("norm:0.00001:"));
    }

    #[test]
    fn what_is_missing_is_asked_for_in_the_section_of_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut model = ModelSection { backbone: "small_cnn".into(), ..ModelSection::default() };
        let classes = ["a".to_owned(), "b".to_owned()];
        weights::testing::bare(&Net::build(&model, &classes, false, 1, &[].into()).unwrap(), &path);
        model.weights = Some(path.display().to_string());
        let hint = |net: Result<Net>| match net.err().unwrap() {
            Error::User { hint, .. } => hint,
            other => panic!("{other}"),
        };
        let own = |model: &ModelSection| hint(Net::build(model, &classes, false, 1, &[].into()));
        let teacher = |model: &ModelSection| hint(Net::build_teacher("teacher_2", model, &classes, 1, &[].into()));
        let kept = |model: &ModelSection, which| hint(Net::build_kept(model, &classes, &[].into(), which));
        for (said, section) in [
            (own(&model), "model"),
            (teacher(&model), "nets.teacher_2"),
            (kept(&model, Which::Model), "model"),
            (kept(&model, Which::Tower), "nets.tower"),
        ] {
            let end = format!("in `[{section}]`");
            assert!(said.starts_with("put `preprocess.json`") && said.ends_with(&end), "{said}");
        }
        // And what is there twice, where it is said.
        std::fs::write(dir.path().join("preprocess.json"), TEXT).unwrap();
        model.preprocess = Some("torch".into());
        assert!(teacher(&model).contains("from `[nets.teacher_2]`") && own(&model).contains("from `[model]`"));
        // And what is of another network, or not there.
        (model.preprocess, model.backbone) = (None, "resnet20".into());
        for (said, section) in [(own(&model), "model"), (teacher(&model), "nets.teacher_2")] {
            assert_eq!(said, format!("`{section}.backbone` must be the network that the weights were trained with"));
        }
        model.weights = Some(dir.path().join("none.safetensors").display().to_string());
        assert_eq!(kept(&model, Which::Tower), "check `nets.tower.weights`");
    }

    #[test]
    fn weights_for_another_activation_are_refused() {
        let error = build(&TEXT.replace("relu", "relu6"), None).err().unwrap().to_string();
        assert!(error.contains("the activation `relu6`"), "{error}");
    }
}
