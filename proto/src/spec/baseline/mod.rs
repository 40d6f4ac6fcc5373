//! `baseline = ["scratch"]`: what a job has to beat. Each is the same job with one thing changed, and is written out as a
//! step beside it when the job is read. A new baseline is a file here and a line in [`ALL`].

mod direct;
mod labels;
mod linear_probe;
mod no_teacher;
mod scratch;
mod single;
mod statistics;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BnMode, BnScope, JobSpec, ModelSection, Params, Ranks, SpecError, StageSection, TOWER, check::MAX_LABEL};
use crate::catalog::{Catalog, Entry, METHOD, entry, nearest_hint};

/// A baseline of a job: a name, or a table with a name and what differs from the usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "BaselineText")]
pub struct BaselineSection {
    /// `scratch`, `linear_probe`, `no_teacher`, `labels`, `direct`, `statistics` or `single`.
    pub name: String,
    /// What its step is called; its name if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The rate of `scratch` or `linear_probe`, instead of the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Their epochs, instead of those of all stages together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a baseline is a name such as \"scratch\", or a table with `name`, `id`, `lr`, `epochs`")]
enum BaselineText {
    Name(String),
    Table(BaselineTable),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BaselineTable {
    name: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    lr: Option<f64>,
    #[serde(default)]
    epochs: Option<u32>,
}

impl From<BaselineText> for BaselineSection {
    fn from(text: BaselineText) -> Self {
        match text {
            BaselineText::Name(name) => Self { name, id: None, lr: None, epochs: None },
            BaselineText::Table(t) => Self { name: t.name, id: t.id, lr: t.lr, epochs: t.epochs },
        }
    }
}

impl BaselineSection {
    /// What its step is called.
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.name)
    }

    /// The job that it stands for, beside `spec`.
    ///
    /// # Errors
    /// One that is not known, makes no sense for the kind of job, or would be the job itself.
    pub(super) fn job(&self, spec: &JobSpec, catalog: &Catalog) -> Result<JobSpec, SpecError> {
        let names: Vec<&str> = ALL.iter().map(|b| b.name).collect();
        let found = ALL.iter().find(|b| b.name == self.name).ok_or_else(|| {
            SpecError::new(format!("there is no baseline `{}`", self.name), nearest_hint(&self.name, &names))
        })?;
        let kind = spec.job.kind.as_str();
        if !found.kinds.contains(&kind) {
            let others: Vec<&str> = ALL.iter().filter(|b| b.kinds.contains(&kind)).map(|b| b.name).collect();
            let hint = match (kind, others.is_empty()) {
                (JobSpec::PIPELINE, _) => "write the baseline as a `[[step]]`, and name it in `[compare]`".into(),
                (_, true) => format!("`{}` is for `{}`; remove it", self.name, found.kinds.join("`, `")),
                (_, false) => format!("`{kind}` has {}", others.join(", ")),
            };
            return Err(SpecError::new(format!("`{}` is no baseline of a job of kind `{kind}`", self.name), hint));
        }
        if !found.has_stage && (self.lr.is_some() || self.epochs.is_some()) {
            let message = format!("`{}` has the stages of the job, and no `lr` or `epochs` of its own", self.name);
            return Err(SpecError::new(message, "remove them, or write the baseline as a step of a pipeline"));
        }
        let mut job = spec.clone();
        (job.job.baseline, job.job.seeds, job.compare) = (Vec::new(), Vec::new(), None);
        job.job.name = named(&spec.job.name, self.id());
        // Any idle worker will do: how many ranks there are changes no result.
        job.cluster.ranks = Ranks { min: 1, ..spec.cluster.ranks };
        if found.has_stage {
            // What changes what is trained, or holds on to the weights that it begins with, is about what the job trains.
            let of_job = |name: &str| {
                let known = catalog.modifiers.iter().find(|e| e.name == name);
                known.is_some_and(|e| e.freezes || e.begins_with_weights)
            };
            job.modifiers.retain(|name, _| !of_job(name));
        }
        (found.make)(self, &mut job)?;
        Ok(job)
    }
}

/// One baseline.
struct Baseline {
    name: &'static str,
    /// What it is, in a line.
    doc: &'static str,
    /// Kinds of jobs that it is one for.
    kinds: &'static [&'static str],
    /// Whether it trains one stage of its own, in place of the job's: modifiers that are about what that trains go.
    has_stage: bool,
    /// Makes the job into it.
    make: fn(&BaselineSection, &mut JobSpec) -> Result<(), SpecError>,
}

/// Every baseline.
const ALL: &[Baseline] = &[
    scratch::BASELINE,
    linear_probe::BASELINE,
    no_teacher::BASELINE,
    labels::BASELINE,
    direct::BASELINE,
    statistics::BASELINE,
    single::BASELINE,
];

/// Every baseline as a catalog lists it.
pub fn baselines() -> Vec<Entry> {
    let listed = |b: &Baseline| entry(b.name, &format!("{} ({})", b.doc, b.kinds.join(", ")));
    ALL.iter().map(listed).collect()
}

/// The name of a job with that of a baseline behind it, within the length of a label.
fn named(job: &str, baseline: &str) -> String {
    let room = MAX_LABEL.saturating_sub(baseline.chars().count() + " ()".len());
    format!("{} ({baseline})", job.chars().take(room).collect::<String>())
}

/// The networks of a job that learn and begin with weights, one at least: without weights there is nothing that transfers.
/// What those were trained on goes: no modifier that is left learns from it, and what is forgotten is told of the job.
fn transferred<'a>(name: &str, job: &'a mut JobSpec) -> Result<Vec<&'a mut ModelSection>, SpecError> {
    if let Some(data) = &mut job.data {
        data.source = None;
    }
    let learning = job.model.iter_mut().chain(job.nets.get_mut(TOWER));
    let begun: Vec<&mut ModelSection> = learning.filter(|net| net.weights.is_some()).collect();
    if begun.is_empty() {
        let message = format!("`{name}` is no baseline of a job that has no `model.weights`: nothing is transferred");
        return Err(SpecError::new(message, "set `model.weights`, or leave the baseline out"));
    }
    Ok(begun)
}

/// Fine-tuning in place of a job that has a teacher.
fn untaught(job: &mut JobSpec) {
    job.job.kind = "finetune".into();
    job.nets.clear();
    job.objective.clear();
}

/// The same job by the method of its kind that the baseline is called after.
fn by_method(given: &BaselineSection, job: &mut JobSpec) -> Result<(), SpecError> {
    if job.objective.get(METHOD).is_some_and(|method| *method == given.name) {
        let message = format!("the job's method is `{}` itself", given.name);
        return Err(SpecError::new(message, "choose another `objective.method`, or remove the baseline"));
    }
    job.objective = Params::from([(METHOD.to_owned(), given.name.clone().into())]);
    Ok(())
}

/// One stage in place of all, of as many epochs: one cycle (`one_cycle`) up to `lr`; 1e-3 where nothing else is said, or
/// with SGD 0.1 for a batch of 256 and in proportion (Goyal et al., 2017).
fn one_stage(given: &BaselineSection, job: &mut JobSpec, train: &str, bn: BnMode) -> Result<(), SpecError> {
    let epochs = given.epochs.unwrap_or_else(|| job.stage.iter().fold(0, |sum, s| sum.saturating_add(s.epochs)));
    if epochs == 0 {
        let message = format!("`{}` would train for no epoch", given.name);
        return Err(SpecError::new(message, format!("write {{ name = \"{}\", epochs = 10 }}", given.name)));
    }
    let samples = job.data.as_ref().map_or(0.0, |data| {
        // Those that an episode shows and asks for.
        let each = data.episodes.as_ref().map_or(1, |e| e.trained().support() + e.trained().queries());
        f64::from(data.batch) * each as f64
    });
    let usual = if job.optimizer.name == "sgd" { 0.1 * samples / 256.0 } else { 1e-3 };
    let whole = job.stage.iter().any(|s| s.bn_scope == BnScope::Batch);
    job.stage = vec![StageSection {
        schedule: "one_cycle".into(),
        bn,
        bn_scope: if whole { BnScope::Batch } else { BnScope::Grain },
        ..StageSection::new(&given.name, epochs, &[train], given.lr.unwrap_or(usual))
    }];
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DataSection, Norm, Rates, parse};

    const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune", seed = 7 }
cluster = { ranks = "2..4" }
data = { format = "image_folder", train = "a", val = "b", batch = 64, source = { train = "c", val = "d" } }
model = { backbone = "resnet18", weights = "w", input = 96, head = { hidden = [8], norm = "batch", dropout = 0.5 } }
modifiers = { lora = { rank = 4 }, ewc = {}, mixup = { alpha = 0.2 } }
objective = { label_smoothing = 0.1 }
stop = { monitor = "val.accuracy", restore_best = true }
stage = [
  { name = "a", epochs = 3, train = ["head"], lr = 1e-3 },
  { name = "b", epochs = 4, train = ["head", "top:2"], lr = 1e-4, bn_scope = "batch" },
]
"#;

    fn made(text: &str, baseline: &str) -> Result<JobSpec, String> {
        let job = parse(text).unwrap();
        let given: BaselineSection = serde_json::from_str(baseline).unwrap();
        let lora = Entry { freezes: true, ..entry("lora", "") };
        let ewc = Entry { begins_with_weights: true, ..entry("ewc", "") };
        let catalog = Catalog { modifiers: vec![ewc, lora, entry("mixup", "")], ..Catalog::default() };
        given.job(&job, &catalog).map_err(|e| format!("{}; {}", e.message, e.hint))
    }

    #[test]
    fn from_scratch_the_same_network_learns_all_of_itself_for_as_long() {
        let job = parse(JOB).unwrap();
        let made = made(JOB, "\"scratch\"").unwrap();
        let model = made.model.as_ref().unwrap();
        let begun = ModelSection { random: true, ..job.model.clone().unwrap() };
        assert_eq!(*model, begun, "the same network, sizes and preprocessing");
        let [stage] = &made.stage[..] else { panic!("{:?}", made.stage) };
        assert_eq!((stage.epochs, stage.train.clone(), stage.bn), (7, vec!["*".to_owned()], BnMode::Train));
        assert_eq!(
            (stage.lr.clone(), stage.schedule.as_str(), stage.bn_scope),
            (Rates::One(1e-3), "one_cycle", BnScope::Batch)
        );
        assert_eq!(made.modifiers.keys().collect::<Vec<_>>(), ["mixup"], "nothing is frozen");
        let data = job.data.clone().map(|d| DataSection { source: None, ..d });
        assert_eq!(made.data, data, "there is nothing to forget");
        assert_eq!((&made.objective, &made.stop, made.job.seed), (&job.objective, &job.stop, 7));
        assert_eq!((made.cluster.ranks.min, made.cluster.ranks.max, made.job.name.as_str()), (1, 4, "t (scratch)"));
    }

    #[test]
    fn rate_and_epochs_can_be_set_and_follow_the_batch_with_sgd() {
        let sgd = JOB.replace("schema = 1", "schema = 1\noptimizer = { name = \"sgd\" }");
        assert_eq!(made(&sgd, "\"scratch\"").unwrap().stage[0].lr, Rates::One(0.025));
        let set = r#"{ "name": "scratch", "id": "fast", "lr": 0.004, "epochs": 9 }"#;
        let made = made(JOB, set).unwrap();
        assert_eq!((made.stage[0].lr.clone(), made.stage[0].epochs), (Rates::One(0.004), 9));
        assert_eq!(made.job.name, "t (fast)");
    }

    #[test]
    fn a_linear_probe_trains_one_dense_layer_on_frozen_features() {
        let made = made(JOB, "\"linear_probe\"").unwrap();
        let model = made.model.as_ref().unwrap();
        assert_eq!((model.weights.as_deref(), model.random), (Some("w"), false));
        assert_eq!((model.head.hidden.len(), model.head.norm, model.head.dropout), (0, Norm::None, Some(0.0)));
        let [stage] = &made.stage[..] else { panic!("{:?}", made.stage) };
        assert_eq!((stage.epochs, stage.train.clone(), stage.bn), (7, vec!["head".to_owned()], BnMode::Frozen));
        assert_eq!(made.modifiers.keys().collect::<Vec<_>>(), ["mixup"]);
        assert_eq!(made.data.unwrap().source, None);
    }

    #[test]
    fn a_linear_probe_learns_the_labels_in_kinds_that_learn_more() {
        let of = |kind: &str, objective: &str, more: &str| {
            let job = JOB.replace("finetune", kind).replace("label_smoothing = 0.1", objective) + more;
            let made = made(&job, "\"linear_probe\"").unwrap();
            let head = &made.model.as_ref().unwrap().head;
            assert_eq!(
                (head.hidden.len(), head.norm, made.stage[0].train[0].as_str()),
                (0, Norm::None, "head"),
                "{kind}"
            );
            made
        };
        let teacher = "[nets.teacher]\nbackbone = \"resnet50\"\nweights = \"t\"\n";
        let distilled = of("distill", "temperature = 2", teacher);
        assert_eq!((distilled.job.kind.as_str(), distilled.nets.len(), distilled.objective.len()), ("finetune", 0, 0));
        let adapted = of("adapt", "method = \"dann\", trade_off = 0.5", "");
        assert_eq!((adapted.job.kind.as_str(), adapted.objective["method"].as_str()), ("adapt", Some("direct")));
        let task =
            "[tasks.other]\nclasses = { x = [\"0\"], y = [\"1\"] }\nhead = { keep = true, hidden = [9] }\nweight = 3\n";
        let several = of("multitask", "label_smoothing = 0.1, method = \"gradnorm\", alpha = 2", task);
        let objective: Params = serde_json::from_str(r#"{ "label_smoothing": 0.1, "method": "fixed" }"#).unwrap();
        assert_eq!((several.job.kind.as_str(), &several.objective), ("multitask", &objective));
        let other = &several.tasks["other"];
        assert_eq!(
            (other.head.keep, other.head.hidden.len(), other.head.dropout, other.weight),
            (false, 0, Some(0.0), 1.0)
        );
    }

    #[test]
    fn from_scratch_both_of_two_networks_begin_anew() {
        let tower = "[nets.tower]\nbackbone = \"minilm\"\nweights = \"t\"\nhead = { keep = true }\n";
        let job = JOB.replace("finetune", "contrastive").replace("label_smoothing = 0.1", "dimensions = 8") + tower;
        let begun = |job: &str| {
            let spec = made(job, "\"scratch\"")?;
            let (model, tower) = (spec.model.as_ref().unwrap(), &spec.nets["tower"]);
            assert_eq!((spec.stage.len(), spec.stage[0].train.clone()), (1, vec!["*".to_owned()]));
            Ok::<_, String>([(model.random, model.head.keep), (tower.random, tower.head.keep)])
        };
        assert_eq!(begun(&job), Ok([(true, false); 2]));
        // One that begins so anyway has no shape to take.
        let first = job.replace("weights = \"w\", ", "");
        assert_eq!(begun(&first), Ok([(false, false), (true, false)]));
        assert!(begun(&first.replace("weights = \"t\"\n", "")).unwrap_err().contains("nothing is transferred"));
        // A teacher stays as it is.
        let crossed = JOB.replace("finetune", "cross_distill").replace("label_smoothing = 0.1", "")
            + "[nets.teacher]\nbackbone = \"resnet50\"\nweights = \"t\"\n";
        let crossed = made(&crossed, "\"scratch\"").unwrap();
        assert!(crossed.model.unwrap().random && !crossed.nets["teacher"].random);
    }

    #[test]
    fn of_episodes_the_rate_goes_by_the_samples_that_they_have() {
        let job = JOB.replace("finetune", "fewshot").replace("label_smoothing = 0.1", "");
        let job = job.replace("batch = 64", "batch = 4, episodes = { way = 5, shot = 1, query = 15 }");
        assert_eq!(made(&job, "\"scratch\"").unwrap().stage[0].lr, Rates::One(1e-3));
        let sgd = job.replace("schema = 1", "schema = 1\noptimizer = { name = \"sgd\" }");
        // Four times 80 samples, at 0.1 for 256.
        assert_eq!(made(&sgd, "\"scratch\"").unwrap().stage[0].lr, Rates::One(0.125));
        let judged = job.split("stage = [").next().unwrap();
        assert!(made(judged, "\"scratch\"").unwrap_err().contains("no epoch"));
        let trained = made(judged, r#"{ "name": "scratch", "epochs": 5 }"#).unwrap();
        assert!(trained.stage[0].epochs == 5 && trained.model.unwrap().random);
    }

    #[test]
    fn a_long_name_makes_room_for_that_of_the_baseline() {
        let long = "é".repeat(MAX_LABEL);
        let name = made(&JOB.replace("name = \"t\"", &format!("name = \"{long}\"")), "\"scratch\"").unwrap().job.name;
        assert_eq!(name.chars().count(), MAX_LABEL);
        assert!(name.ends_with("é (scratch)"), "{name}");
    }

    #[test]
    fn alone_the_first_task_has_the_stages_and_none_of_the_other_heads() {
        let job =
            JOB.replace("\"finetune\"", "\"multitask\"").replace("label_smoothing = 0.1", "method = \"uncertainty\"")
                + "[tasks.other]\nclasses = { x = [\"0\"], y = [\"1\"] }\nhead = { keep = true }\n";
        let job = job.replace("val.accuracy", "tasks.other.accuracy");
        let job = job.replace("train = [\"head\"], lr = 1e-3", "train = [\"tasks.other.head\"], lr = 1e-3");
        let ruled = "train = [\"tasks.main.head\", \"tasks.other.head\"], lr = { \"tasks.main.head\" = 1e-3, \"tasks.other\" = 1 }";
        let job = job.replace("train = [\"head\", \"top:2\"], lr = 1e-4", ruled);
        let single = made(&job, "\"single\"").unwrap();
        assert_eq!((single.job.kind.as_str(), single.tasks.len(), single.objective.len()), ("finetune", 0, 0));
        assert_eq!(single.stop.as_ref().unwrap().monitor, "val.accuracy");
        let [stage] = &single.stage[..] else { panic!("{:?}", single.stage) };
        let rates = Rates::Rules([("head".to_owned(), 1e-3)].into());
        assert_eq!((stage.name.as_str(), &stage.train, &stage.lr), ("b", &vec!["head".to_owned()], &rates));
        assert_eq!(single.modifiers, parse(&job).unwrap().modifiers, "what is measured is the other tasks alone");
        let other = job.replace("\"tasks.main.head\", \"tasks.other.head\"", "\"tasks.other.head\"");
        assert!(made(&other, "\"single\"").unwrap_err().contains("no stage"));
        let scratch = made(&job, "\"scratch\"").unwrap();
        assert_eq!((scratch.job.kind.as_str(), scratch.tasks["other"].head.keep), ("multitask", false));
    }

    #[test]
    fn without_a_teacher_the_student_learns_the_labels() {
        let job = JOB.replace("\"finetune\"", "\"distill\"").replace("label_smoothing = 0.1", "temperature = 2")
            + "[nets.teacher]\nbackbone = \"resnet50\"\nweights = \"t\"\n";
        let (spec, made) = (parse(&job).unwrap(), made(&job, "\"no_teacher\"").unwrap());
        assert_eq!((made.job.kind.as_str(), made.nets.len(), made.objective.len()), ("finetune", 0, 0));
        assert_eq!((&made.model, &made.stage, &made.modifiers), (&spec.model, &spec.stage, &spec.modifiers));
    }

    #[test]
    fn with_labels_a_student_needs_neither_pairs_nor_a_teacher() {
        let pairs = "batch = 64, pairs = { format = \"image_folder\", train = \"p\" }";
        let job = JOB.replace("finetune", "cross_distill").replace("label_smoothing = 0.1", "method = \"hint\"")
            + "[nets.teacher]\nbackbone = \"resnet50\"\nweights = \"t\"\n";
        let (spec, made) = (parse(&job).unwrap(), made(&job.replace("batch = 64", pairs), "\"labels\"").unwrap());
        assert_eq!((made.job.kind.as_str(), made.nets.len(), made.objective.len()), ("finetune", 0, 0));
        assert_eq!((&made.data, &made.stage, &made.modifiers), (&spec.data, &spec.stage, &spec.modifiers));
    }

    #[test]
    fn direct_looks_at_the_labels_alone() {
        let adapt = |method: &str| JOB.replace("\"finetune\"", "\"adapt\"").replace("label_smoothing = 0.1", method);
        let job = adapt("method = \"dann\", trade_off = 0.5");
        let (spec, direct) = (parse(&job).unwrap(), made(&job, "\"direct\"").unwrap());
        assert_eq!(direct.objective, [("method".to_owned(), "direct".into())].into());
        assert_eq!((&direct.model, &direct.stage, &direct.data), (&spec.model, &spec.stage, &spec.data));
        assert!(made(&adapt("method = \"direct\""), "\"direct\"").unwrap_err().contains("is `direct` itself"));
    }

    #[test]
    fn statistics_are_a_baseline_where_a_batch_norm_learns() {
        let job = JOB.replace("\"finetune\"", "\"adapt\"").replace("label_smoothing = 0.1", "method = \"coral\"");
        let by = |job: &str| made(job, "\"statistics\"").map(|made| made.objective["method"].clone());
        assert_eq!(by(&job), Ok("statistics".into()), "that of the head");
        let none = job.replace("norm = \"batch\", ", "");
        let error = by(&none).unwrap_err();
        assert!(error.contains("no batch-norm learns; `direct` is the same there"), "{error}");
        let train = none.replace("lr = 1e-3 }", "lr = 1e-3, bn = \"train\" }");
        assert_eq!(by(&train), Ok("statistics".into()));
        let itself = job.replace("\"coral\"", "\"statistics\"");
        assert!(by(&itself).unwrap_err().contains("is `statistics` itself"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_hint() {
        for (job, baseline, part) in [
            (JOB.to_owned(), "\"scrach\"", "there is no baseline `scrach`; did you mean `scratch`?"),
            (JOB.to_owned(), "\"no_teacher\"", "of kind `finetune`; `finetune` has scratch, linear_probe"),
            (JOB.replace("finetune", "fewshot"), "\"labels\"", "of kind `fewshot`; `fewshot` has scratch"),
            (JOB.replace("finetune", "zero_shot"), "\"scratch\"", "of kind `zero_shot`; `scratch` is for `finetune`, "),
            (JOB.replace("finetune", "pipeline"), "\"scratch\"", "as a `[[step]]`"),
            (JOB.replace("weights = \"w\", ", ""), "\"scratch\"", "nothing is transferred"),
            (JOB.replace("weights = \"w\", ", ""), "\"linear_probe\"", "nothing is transferred"),
            (JOB.replace("finetune", "adapt"), r#"{ "name": "direct", "lr": 1 }"#, "has the stages of the job"),
            (JOB.to_owned(), r#"{ "name": "scratch", "epochs": 0 }"#, "no epoch; write { name = \"scratch\""),
        ] {
            let error = made(&job, baseline).unwrap_err();
            assert!(error.contains(part), "{baseline}: {error}");
        }
        assert!(serde_json::from_str::<BaselineSection>(r#"{ "nam": "scratch" }"#).is_err());
    }
}
