//! The finished model: weights under their usual names, labels, preprocessing, report, the job as it ran.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use tl_proto::spec::{HeadSection, JobSpec, ModelSection, Params, Source, StageSection, TOWER as ROLE};

pub use super::state::EpochFigures;
use super::{encode::Encoded, lr_find::Found, net::Net, origin::Retention, saving::Saving, stage::Stage};
use crate::{
    Error, Result,
    backbone::{TASKS, TaskHead, Unit},
    collective::to_bytes,
    eval::{
        Episodes, Evaluation,
        retrieval::{Pairing, Retrieval},
        selection::{self, Picked},
        shift::Shift,
        softened::Softened,
    },
    files,
    nn::{Kind, OWN, ParamId, Store},
    objective::Objective,
    optim::Group,
    picture,
    predict::Taught,
    weights::{Merged, TOWER, peft},
};

/// What `report.json` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the job.
    pub job: String,
    /// Kind of the job.
    pub kind: String,
    /// Optimizer steps that the model has taken: without those of searches for a learning rate, which are undone.
    pub steps: u64,
    /// Training samples, with halves that are learned from alone, and validation samples.
    pub samples: [usize; 2],
    /// Where weights of the hub came from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// What the frozen prefix was run on.
    pub prefix: PrefixFigures,
    /// Stages, in order.
    pub stages: Vec<StageFigures>,
    /// What searches for a learning rate came to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_find: Vec<Found>,
    /// By epoch.
    pub history: Vec<EpochFigures>,
    /// On the validation samples.
    pub evaluation: Evaluation,
    /// Where halves of pairs were to find each other: how many did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// What it learned from, where pairs might lack a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairing: Option<Pairing>,
    /// Of every task, that of `[data]` as `main`, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskReport>,
    /// On those of the domain that the network was brought to, by labels that it did not learn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Evaluation>,
    /// On those of what the weights were trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Retention>,
    /// How far apart the two domains lie, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<Shift>,
    /// Which epoch of the last stage the model is of and what each criterion would pick, where the best epoch is kept or a
    /// network is brought to another domain, and at the end who looks at labels there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selection: Vec<Picked>,
    /// What temperatures do to the probabilities of the first teacher.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub softened: Vec<Softened>,
    /// What there was to beat, on the same few-shot episodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<Baseline>,
    /// Classes that few-shot episodes were judged by and that were trained on: it is not how well new ones are learned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlap: Vec<String>,
    /// Of which samples a part is not seen, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clipped: Vec<String>,
}

/// A simple way to do the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What it is.
    pub name: String,
    /// What it comes to.
    pub evaluation: Evaluation,
}

impl Report {
    /// For people: the figures of the model, and what searches for a learning rate came to.
    pub fn to_text(&self) -> String {
        let found: String = self.lr_find.iter().map(|f| format!("{}\n", f.sentence())).collect();
        let of_task = |(name, task): (&String, &TaskReport)| {
            format!("task `{name}`, which counts {:.3}:\n{}", task.weight, task.evaluation.to_text())
        };
        let mut text = match self.tasks.is_empty() {
            true => self.evaluation.to_text(),
            false => self.tasks.iter().map(of_task).collect::<Vec<_>>().join("\n"),
        };
        if let Some(found) = &self.retrieval {
            text = format!("{text}\n{}", found.to_text());
        }
        text.extend(self.pairing.iter().map(|pairing| format!("{}\n", pairing.sentence())));
        let scarce = self.evaluation.episodes.as_ref().and_then(|episodes| Episodes::scarce(episodes.count));
        text.extend(scarce.map(|said| format!("{said}\n")));
        for Baseline { name, evaluation } in &self.baselines {
            text += &format!("beside it, on the same episodes: {name} {}\n", evaluation.accuracy_text());
        }
        if !self.overlap.is_empty() {
            let n = self.overlap.len();
            text +=
                &format!("{n} of the classes that were judged were trained on too: these are no figures of new ones\n");
        }
        text.extend(self.clipped.iter().map(|said| format!("{said}\n")));
        if let Some(target) = &self.target {
            text = format!("{text}\nin the other domain, by labels that were not learned from:\n{}", target.to_text());
        }
        if let Some(source) = &self.source {
            text = format!("{text}\n{}\n{}", source.sentence(), source.after.to_text());
        }
        if let Some(shift) = &self.shift {
            text = format!("{text}\n{}", shift.to_text());
        }
        if !self.selection.is_empty() {
            text = format!("{text}\n{}", selection::to_text(&self.selection));
        }
        text.extend(self.picked());
        if found.is_empty() { text } else { format!("{text}\n{found}") }
    }

    /// Which epoch the model is of, where a metric of the samples that it is judged by has picked it.
    fn picked(&self) -> Option<String> {
        let model = self.selection.iter().find(|p| p.criterion == selection::MODEL)?.epoch;
        let used = self.selection.iter().find(|p| p.used)?;
        let by = &used.criterion;
        let stage = &self.history.last()?.stage;
        let epochs = self.history.iter().filter(|h| h.stage == *stage).count();
        // Those of the target have no labels there: what picks is not what judges.
        let aside = if by.starts_with("target.") { "" } else { " on these samples: on others, expect a little less" };
        let hardly = if used.epoch == model { "" } else { "; later epochs are better by no more than `min_delta`" };
        Some(format!("the model is of epoch {model} of {epochs} of stage `{stage}`, picked by `{by}`{aside}{hardly}\n"))
    }
}

/// What one of several tasks came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// What its loss counts at the end.
    pub weight: f64,
    /// On its validation samples.
    pub evaluation: Evaluation,
}

/// How often a frozen prefix ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefixFigures {
    /// Samples times views that ran through a frozen prefix, over all ranks of the attempt that finished.
    pub computed: u64,
    /// Samples times views whose outputs the run needed.
    pub needed: u64,
}

impl PrefixFigures {
    /// Adds what one encoding came to.
    pub(super) fn count(&mut self, done: &Encoded) {
        self.computed += done.computed;
        self.needed += done.needed;
    }
}

/// What a stage trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Its name.
    pub name: String,
    /// Trained parameters.
    pub trained: usize,
    /// Parameters of the network.
    pub parameters: usize,
    /// Lowest and highest learning rate, as the job says them.
    #[serde(default)]
    pub lr: [f64; 2],
    /// The first unit that is not frozen.
    pub first_unit: String,
    /// What the feature cache is worth, that of a second network too; only a look at a job works it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Saving>,
    /// Units in front of which it keeps something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cached: Vec<String>,
    /// The units of the network, from input to head, then those of further heads, or those of a second network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitFigures>,
}

/// What a stage does to a unit of the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitFigures {
    /// Its name.
    pub name: String,
    /// The highest rate that anything in it learns at, as the job says it; nothing if it is frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
}

impl StageFigures {
    /// What a stage of a job trains.
    pub(super) fn of(net: &Net, store: &Store, stage: &Stage, section: &StageSection) -> Self {
        let network = &net.network;
        let heads = network.tasks.iter().flat_map(|task| &task.units);
        let unit = |prefix: &str, unit: &Unit| {
            let params = unit.params();
            let learns = |g: &&Group| {
                let within = |p: &ParamId| g.values.contains(&store.params[p.0].range.start);
                params.iter().any(within)
            };
            let scales = stage.groups.iter().filter(learns).map(|g| g.lr_scale * section.lr.top());
            UnitFigures { name: format!("{prefix}{}", unit.name), lr: scales.reduce(f64::max) }
        };
        let own = network.units.iter().chain(heads).map(|one| unit("", one));
        let second = net.tower.iter().flat_map(|t| &t.0.network.units).map(|one| unit(TOWER, one));
        Self {
            name: section.name.clone(),
            trained: stage.trained,
            parameters: store.values.len(),
            lr: stage.rates(net, section),
            first_unit: network.units.get(stage.cut).map(|u| u.name.clone()).unwrap_or_default(),
            saving: None,
            cached: Vec::new(),
            units: own.chain(second).collect(),
        }
    }
}

/// Bytes of a `.safetensors` file with everything needed to run the model. LoRA and IA3 are worked into the weights.
///
/// # Errors
/// None that can be caused from outside.
pub fn safetensors(net: &Net, store: &Store, classes: &[String], spec: &JobSpec) -> Result<Vec<u8>> {
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let adapter = adapter(net, store, spec)?;
    let store = &net.network.adapters.merged(store);
    let mut data: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (list, values) in [(&store.params, &store.values), (&store.buffers, &store.buffer_values)] {
        let kept = list.iter().filter(|e| !e.name.starts_with(OWN));
        data.extend(kept.map(|e| (e.name.clone(), e.shape.clone(), to_bytes(&values[e.range.clone()]))));
    }
    let views = data
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| internal(&e))?))
        })
        .collect::<Result<Vec<_>>>()?;
    // One key only: the library keeps metadata in a hash map, whose order would change the file's digest.
    let changes = adapter.map(|[_, tensors]| peft::digest_of(&tensors, net.backbone)).transpose()?;
    let embeds = (Objective::find(&spec.job.kind).dimensions)(&spec.objective).is_some();
    let mut about = About::of(net, classes, spec.model.clone(), changes, embeds);
    about.taught = taught(spec);
    about.tasks = further_heads(net, spec);
    if let Some(tower) = &net.tower {
        about.tower = Some(Box::new(About::of(&tower.0, classes, spec.nets.get(ROLE).cloned(), None, embeds)));
    }
    let text = serde_json::to_string(&about).map_err(|e| internal(&e))?;
    let metadata: HashMap<String, String> = [("tl".to_owned(), text)].into();
    safetensors::serialize(views, Some(metadata)).map_err(|e| internal(&e))
}

/// What a model file says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Name of its backbone.
    pub backbone: String,
    /// Names of its classes.
    pub classes: Vec<String>,
    /// The job's `[model]`.
    pub model: Option<ModelSection>,
    /// Its preprocessing.
    pub contract: crate::weights::Contract,
    /// Modifiers without which it is another network: bottleneck adapters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modifiers: BTreeMap<String, Params>,
    /// Adapters that are in its weights.
    #[serde(default, skip_serializing_if = "Merged::is_empty")]
    pub merged: Merged,
    /// How it learns new classes from a few samples, where that is what it was trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taught: Option<Taught>,
    /// It ends in an embedding: its outputs are no classes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embeds: bool,
    /// Heads beside the first, whose tensors' names begin with `tasks.NAME.`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, AboutTask>,
    /// The second network in the file, whose tensors' names begin with `tower.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tower: Option<Box<About>>,
}

impl About {
    /// What is to be known of a network, and of the adapter that was worked into it last.
    fn of(net: &Net, classes: &[String], model: Option<ModelSection>, changes: Option<String>, embeds: bool) -> Self {
        Self {
            backbone: net.backbone.name.into(),
            classes: classes.to_vec(),
            model,
            contract: net.contract.clone(),
            modifiers: bottlenecks(net),
            merged: net.merged.and(changes),
            taught: None,
            embeds,
            tasks: BTreeMap::new(),
            tower: None,
        }
    }
}

/// What a model for few-shot episodes knows of its job.
fn taught(spec: &JobSpec) -> Option<Taught> {
    let episodes = spec.data.as_ref()?.episodes.clone()?;
    Some(Taught { objective: spec.objective.clone(), episodes, stage: spec.stage.last().cloned() })
}

/// What a model file says of a further head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AboutTask {
    /// Names of its classes.
    pub classes: Vec<String>,
    /// Which classes of the samples each of them is made of, where they are not the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub of: BTreeMap<String, Vec<String>>,
    /// How it is made.
    pub head: HeadSection,
}

/// The same of all further heads of a network.
fn further_heads(net: &Net, spec: &JobSpec) -> BTreeMap<String, AboutTask> {
    let one = |task: &TaskHead| {
        let section = spec.tasks.get(&task.name).cloned().unwrap_or_default();
        (task.name.clone(), AboutTask { classes: task.classes.clone(), of: section.classes, head: section.head })
    };
    net.network.tasks.iter().map(one).collect()
}

/// The modifier that makes a network with the same bottlenecks.
fn bottlenecks(net: &Net) -> BTreeMap<String, Params> {
    let Some(Kind::Bottleneck { twice, reduction }) = net.network.adapters.plan.as_ref().map(|p| &p.kind) else {
        return BTreeMap::new();
    };
    let kind = if *twice { "houlsby" } else { "pfeiffer" };
    let params = [("kind".to_owned(), kind.into()), ("reduction".to_owned(), (*reduction).into())];
    [("adapter".to_owned(), params.into())].into()
}

/// The files of LoRA or IA3, with whatever else was trained: the head, and what stages named.
fn adapter(net: &Net, store: &Store, spec: &JobSpec) -> Result<Option<[Vec<u8>; 2]>> {
    let network = &net.network;
    if network.adapters.sites.is_empty() {
        return Ok(None);
    }
    // What lies in no module, as ViT's `cls_token`, is saved by its own name.
    let module = |name: &str| peft::module(name).unwrap_or(name).to_owned();
    let mut saved = BTreeSet::new();
    for unit in network.head..network.units.len() {
        saved.extend(network.unit_params(unit).iter().map(|p| module(&store.params[p.0].name)));
    }
    for section in &spec.stage {
        let stage = Stage::resolve(net, store, section)?;
        // A second network, or a second head, is nothing that peft knows of.
        let second = |name: &str| name.starts_with(TOWER) || name.starts_with(TASKS);
        let aside = |p: &ParamId| {
            network.adapters.params.contains(p) || network.is_beside(*p) || second(&store.params[p.0].name)
        };
        let trained = stage.layout.trained().map(|(p, _)| p).filter(|p| !aside(p));
        saved.extend(trained.map(|ParamId(p)| module(&store.params[p].name)));
        let norms = stage.norms.iter().map(|(mean, _)| &store.buffers[mean.0].name);
        saved.extend(norms.filter(|name| !second(name)).map(|name| module(name)));
    }
    let base = spec.model.as_ref().and_then(|m| m.weights.as_deref());
    peft::files(network, net.backbone, store, &saved, base)
}

/// Files of a package, by name.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Writes the package into `dir`; the files in the order in which they should be handed over, the report last.
///
/// # Errors
/// The disk refuses.
pub fn write(
    dir: &Path,
    net: &Net,
    store: &Store,
    classes: &[String],
    spec: &JobSpec,
    report: &Report,
) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut files: Files = vec![("model.safetensors", safetensors(net, store, classes, spec)?)];
    if net.tower.is_none() {
        // The outputs of an embedding have no names.
        files.push(("labels.txt", (classes.join("\n") + "\n").into_bytes()));
    }
    files.push(("preprocess.json", pretty(&net.contract)?));
    if let Some(text) = &net.contract.text {
        files.push(("tokenizer.json", text.tokenizer.clone().into_bytes()));
    }
    if let Some([config, tensors]) = adapter(net, store, spec)? {
        files.extend([(peft::FILES[0], config), (peft::FILES[1], tensors)]);
    }
    files.extend(said(spec, report)?);
    put(dir, files)
}

/// The same of a job that leaves no model.
///
/// # Errors
/// The disk refuses.
pub fn write_report(dir: &Path, spec: &JobSpec, report: &Report) -> Result<Vec<(&'static str, PathBuf)>> {
    put(dir, said(spec, report)?)
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::Internal(e.to_string()))
}

/// The job as it ran, and what came of it; the report last.
fn said(spec: &JobSpec, report: &Report) -> Result<Files> {
    let mut files: Files = vec![("job.toml", spec.to_toml().into_bytes())];
    // A picture that cannot be drawn is no reason to lose a model.
    files.extend(picture::ALL.iter().filter_map(|p| Some((p.file, (p.draw)(report).ok().flatten()?.into_bytes()))));
    files.extend([("report.txt", report.to_text().into_bytes()), ("report.json", pretty(report)?)]);
    Ok(files)
}

fn put(dir: &Path, files: Files) -> Result<Vec<(&'static str, PathBuf)>> {
    let one = |(name, bytes): (&'static str, Vec<u8>)| {
        let path = dir.join(name);
        files::write_whole(&path, &bytes)?;
        Ok((name, path))
    };
    files.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::samples::Samples;

    #[test]
    fn a_report_says_why_the_model_is_not_of_the_epoch_that_is_best() {
        let losses: [BTreeMap<_, _>; 2] = [2.1, 2.0797].map(|loss| [("val.loss".to_owned(), loss)].into());
        let epochs = [(1, &losses[0]), (2, &losses[1])];
        let text = |model: u32| {
            let history = EpochFigures { stage: "b".into(), ..EpochFigures::default() };
            let selection = selection::selection(&epochs, Some(model), Some("val.loss"));
            Report { selection, history: vec![history.clone(), history], ..Report::default() }.to_text()
        };
        let (early, best) = (text(1), text(2));
        assert!(early.contains("the model is of epoch 1 of 2 of stage `b`, picked by `val.loss` on"), "{early}");
        assert!(early.contains("; later epochs are better by no more than `min_delta`\n"), "{early}");
        assert!(best.contains("the model is of epoch 2 of 2") && !best.contains("min_delta"), "{best}");
    }

    #[test]
    fn a_tensor_in_no_module_is_in_the_adapter_too() {
        let job = "schema = 1\njob = { name = \"t\", kind = \"finetune\" }\n\
            data = { format = \"generated\", train = \"source\", val = \"source\", batch = 4 }\n\
            model = { backbone = \"vit_s16\", input = 32 }\n[modifiers.lora]\n\
            [[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"head\", \"cls_token\"]\nlr = 0.1\n";
        let spec = JobSpec::from_toml(job, &[]).unwrap();
        let samples = Samples::open(spec.data.as_ref().unwrap(), "train", 1).unwrap();
        let classes = ["a".to_owned(), "b".to_owned()];
        let net = Net::build_for(spec.model.as_ref().unwrap(), &classes, &spec, &BTreeMap::new(), &*samples.dataset);
        let net = net.unwrap();
        let [config, tensors] = adapter(&net, &net.network.initial, &spec).unwrap().unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        assert!(tensors.names().contains(&"base_model.model.cls_token"), "{:?}", tensors.names());
        assert!(tensors.names().iter().all(|name| !name.contains("pos_embed")));
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["modules_to_save"], serde_json::json!(["head"]));
    }
}
