//! `tlctl verify`: does a job give the same on one, two and three ranks? Run here, on a few steps of each stage, or, of a job
//! that trains nothing, on what it says.

use std::path::PathBuf;

use serde_json::{Value, json};
use tl_proto::{
    catalog::Catalog,
    spec::{self, JobSpec, ModelSection},
};
use tl_worker::rank::{self, Apart, Compared, Judged, Verified, gpu::Place};

use super::{
    FAILED,
    args::Verify,
    local::{Scratch, elsewhere, here, refused},
    output::Output,
};
use crate::{Error, spec_file};

pub(super) fn run(a: &Verify, output: &Output) -> Result<u8, Error> {
    let catalog = rank::catalog();
    let spec = spec_file::load(&a.job.file, &a.job.set, &catalog)?;
    spec::check(&spec, &catalog).map_err(|e| Error::input(format!("{}: {e}", a.job.file.display()), e.hint))?;
    let here = here(&a.on, output)?;
    let folder = std::env::temp_dir().join(format!("tl-verify-{}", ulid::Ulid::new()));
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    let scratch = Scratch(Some(folder.clone()));
    let (mut holds, device) = (true, here.device.to_string());
    for (step, inner, _) in spec.steps() {
        // Of one job with several seeds, one says it for all.
        if !spec.leads_group(step) {
            continue;
        }
        let at = if spec.job.kind == JobSpec::PIPELINE { format!("step `{step}`, ") } else { String::new() };
        if waits(inner, &catalog) {
            let event = json!({ "event": "passed_over", "step": step, "why": WAITS });
            output.print(&event, || format!("{at}{WAITS}"));
            continue;
        }
        let verified = verify(inner, &catalog, &here.place, folder.join(step), u64::from(a.steps))?;
        let all: Vec<(bool, Value, String)> = match verified {
            Verified::Trains(all) => all.iter().map(|c| (c.holds(), json!({ "compared": c }), line(c))).collect(),
            Verified::Judges(all) => all.iter().map(|j| (j.holds(), json!({ "judged": j }), told(j))).collect(),
        };
        for (kept, mut event, text) in all {
            holds &= kept;
            let said: [(&str, Value); 4] = [
                ("event", "verified".into()),
                ("step", step.into()),
                ("holds", kept.into()),
                ("device", device.as_str().into()),
            ];
            said.into_iter().for_each(|(name, value)| event[name] = value);
            output.print(&event, || format!("{at}{text}"));
        }
    }
    drop(scratch);
    Ok(if holds { 0 } else { FAILED })
}

/// What is said of a job that trains nothing and has nothing to judge by.
const WAITS: &str = "trains nothing, and judges by what an earlier step leaves, which is not here: nothing to compare";

/// Whether a job is nothing without what an earlier step leaves.
fn waits(spec: &JobSpec, catalog: &Catalog) -> bool {
    let untrained = catalog.objectives.iter().any(|e| e.name == spec.job.kind && e.untrained);
    untrained && spec.model.iter().chain(spec.nets.values()).any(is_left)
}

fn verify(spec: &JobSpec, catalog: &Catalog, place: &Place, folder: PathBuf, steps: u64) -> Result<Verified, Error> {
    let mut spec = spec.clone();
    without_steps(&mut spec, catalog);
    if let Some((key, place)) = spec.models().next() {
        return Err(elsewhere(&key, place, "`tlctl verify` runs here, without a cluster"));
    }
    if let Some((key, place)) = spec.places().find(|(_, place)| !JobSpec::is_path(place)) {
        return Err(Error::input(
            format!("`{key}` is `{place}`, which is not on this machine"),
            "`tlctl verify` runs here, without a cluster: name a path (`--set`)",
        ));
    }
    rank::verify(&spec, place, &folder, steps).map_err(|e| refused(&e))
}

/// Whether a network has the weights that an earlier step leaves.
fn is_left(model: &ModelSection) -> bool {
    model.weights.as_deref().is_some_and(|weights| weights.starts_with("step:"))
}

/// What an earlier step would leave is not there; any weights do, and what is about those weights goes with them.
fn without_steps(spec: &mut JobSpec, catalog: &Catalog) {
    if spec.model.as_ref().is_some_and(is_left) {
        // Heads of tasks come with the weights of the network.
        spec.tasks.values_mut().for_each(|task| task.head.keep = false);
        spec.data.iter_mut().for_each(|data| data.source = None);
        let about_them = |name: &str| catalog.modifiers.iter().any(|e| e.name == name && e.begins_with_weights);
        spec.modifiers.retain(|name, _| !about_them(name));
    }
    for model in spec.model.iter_mut().chain(spec.nets.values_mut()).filter(|m| is_left(m)) {
        (model.weights, model.head.keep, model.random) = (None, false, false);
    }
}

fn line(c: &Compared) -> String {
    let head = format!("stage `{}`, {} ranks, {} steps", c.stage, c.ranks, c.steps);
    let ordered = match &c.ordered {
        None => "ordered: the same bits".to_owned(),
        Some(d) => format!("ordered: DIFFERS first at step {} in `{}`", d.step, d.tensor),
    };
    let fast = match (&c.apart, c.statistics) {
        (Some(Apart { step, tensor, by, room }), _) => {
            format!("fast: APART by {by:.1e}, more than {room:.0e}, first at step {step}, most in `{tensor}`")
        }
        (None, Some(statistics)) => {
            format!("fast: gradients within {:.1e}, sums of batch-norms within {statistics:.1e}", c.fast)
        }
        (None, None) => format!("fast: gradients within {:.1e}", c.fast),
    };
    format!("{head}: {ordered}; {fast}")
}

fn told(j: &Judged) -> String {
    let what = match &j.differs {
        None => "says the same".to_owned(),
        Some(figure) => format!("says something else, first in `{figure}`"),
    };
    format!("trains nothing, {} ranks, {} samples judged: {what}", j.ranks, j.samples)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tl_proto::spec::{PairedBy, TOWER};

    use super::{super::offline::RECIPES, *};

    /// Small networks that have learned something, in folders as jobs leave them.
    struct Left {
        /// One that knows the drawn samples.
        drawn: PathBuf,
        /// One that knows other shapes.
        other: PathBuf,
        /// One that reads.
        reads: PathBuf,
        /// Two that have learned from pairs.
        pair: PathBuf,
    }

    impl Left {
        /// Trains them for an epoch.
        fn new(dir: &Path, words: &Path) -> Self {
            let image = |place: &str| format!("format = \"generated\", train = {place:?}, val = {place:?}, {DRAWN}");
            let texts = format!("format = \"text\", train = {words:?}, val = {words:?}");
            let pairs = format!("{}, pairs = {{ {texts}, by = \"order\" }}", image("source"));
            let (sees, reads) = ("backbone = \"small_cnn\"", "backbone = \"transformer_small\", input = 12");
            let tower = format!("nets = {{ tower = {{ {reads} }} }}");
            let train = |name: &str, kind: &str, data: &str, model: &str, nets: &str| {
                let job = format!(
                    "schema = 1\njob = {{ name = {name:?}, kind = {kind:?} }}\ndata = {{ batch = 16, {data} }}\n\
                     model = {{ {model} }}\n{nets}\n\
                     [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n"
                );
                let spec = spec::parse(&job).unwrap();
                spec::check(&spec, &rank::catalog()).unwrap();
                rank::train_alone(&spec, &Place::Host, &dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e:?}"))
            };
            Self {
                drawn: train("drawn", "finetune", &image("source"), sees, ""),
                other: train("other", "finetune", &image("target"), sees, ""),
                reads: train("reads", "finetune", &texts, reads, ""),
                pair: train("pair", "contrastive", &pairs, sees, &tower),
            }
        }
    }

    /// How many samples of each class are drawn.
    const DRAWN: &str = "params = { train_samples = 5, val_samples = 2 }";

    /// The same job on drawn samples or a few words, with small networks, that have learned something where its own have.
    fn small(mut spec: JobSpec, words: &Path, left: &Left) -> JobSpec {
        let data = spec.data.as_mut().unwrap();
        let text = data.format == "text";
        if text {
            (data.train, data.val) = (words.display().to_string(), words.display().to_string());
        } else {
            data.format = "generated".into();
            (data.train, data.val) = ("source".into(), "source".into());
            data.params = [("train_samples", 8), ("val_samples", 2)].map(|(k, v)| (k.to_owned(), v.into())).into();
            data.train_per_class = None;
            if let Some(episodes) = &mut data.episodes {
                (episodes.way, episodes.query, episodes.train_way) = (2, 1, Some(4));
            }
            if let Some(source) = &mut data.source {
                source.val = "target".into();
            }
            if let Some(target) = &mut data.target {
                (target.train, target.val) = ("shifted".into(), None);
            }
        }
        // Eight classes in two groups, and the other domain as a task of its own.
        for task in spec.tasks.values_mut() {
            (task.format, task.params) = (None, spec::Params::new());
            match &mut task.train {
                Some(train) => (*train, task.val) = ("shifted".into(), Some("shifted".into())),
                None => task.classes = grouped(),
            }
        }
        // Texts that go with pictures line by line, or pictures of another domain.
        let texts = data.pairs.as_ref().is_some_and(|p| p.format == "text");
        if let Some(pairs) = &mut data.pairs {
            let place = if texts { words.display().to_string() } else { "shifted".into() };
            let (format, by) = if texts { ("text", PairedBy::Order) } else { ("generated", PairedBy::Label) };
            (pairs.format, pairs.by) = (format.into(), by);
            (pairs.train, pairs.val) = (place.clone(), Some(place));
        }
        let (judges, keeps) = (spec.stage.is_empty(), data.source.is_some());
        let nets = spec.nets.iter_mut().map(|(role, net)| (net, role == TOWER));
        for (model, second) in spec.model.iter_mut().map(|m| (m, false)).chain(nets) {
            let reads = text || (second && (texts || judges));
            let learned = match () {
                () if judges => &left.pair,
                () if reads => &left.reads,
                () if keeps => &left.other,
                () => &left.drawn,
            };
            let weights = if is_left(model) { model.weights.clone() } else { Some(learned.display().to_string()) };
            let weights = weights.filter(|_| model.weights.is_some());
            let backbone = if reads { "transformer_small" } else { "small_cnn" };
            let head = model.head.clone();
            *model = ModelSection { backbone: backbone.into(), weights, head, ..ModelSection::default() };
        }
        spec
    }

    /// The classes of the drawn samples in two groups.
    fn grouped() -> std::collections::BTreeMap<String, Vec<String>> {
        let (plain, outlined) =
            (["circle", "square", "triangle", "star-4"], ["ring", "square-outline", "triangle-outline", "star-6"]);
        [("plain", plain), ("outlined", outlined)].map(|(k, of)| (k.to_owned(), of.map(str::to_owned).into())).into()
    }

    #[test]
    fn what_an_earlier_step_would_leave_is_new_and_nothing_is_about_it() {
        let job = |weights: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"multitask\" }}\n\
                 model = {{ backbone = \"small_cnn\", weights = \"{weights}\", head = {{ keep = true }} }}\n\
                 data = {{ format = \"generated\", train = \"source\", val = \"source\", batch = 8, \
                 source = {{ val = \"target\" }} }}\nmodifiers = {{ l2_sp = {{}}, ema = {{}} }}\n\
                 tasks.a = {{ classes = {{ x = [\"0\"], y = [\"1\"] }}, head = {{ keep = true }} }}\n"
            );
            let mut spec = spec::parse(&text).unwrap();
            without_steps(&mut spec, &rank::catalog());
            let (model, source) = (spec.model.unwrap(), spec.data.unwrap().source.is_some());
            (model.weights, model.head.keep, spec.tasks["a"].head.keep, source, spec.modifiers.len())
        };
        assert_eq!(job("step:first"), (None, false, false, false, 1));
        assert_eq!(job("w"), (Some("w".to_owned()), true, true, true, 2));
    }

    #[test]
    fn a_job_that_only_judges_by_what_is_not_there_yet_is_passed_over() {
        let waits = |kind: &str, model: &str, tower: &str| {
            let net = |weights: &str| format!("{{ backbone = \"small_cnn\", weights = {weights:?} }}");
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = {kind:?} }}\nmodel = {}\nnets = {{ tower = {} }}\n",
                net(model),
                net(tower)
            );
            super::waits(&spec::parse(&text).unwrap(), &rank::catalog())
        };
        assert!(waits("zero_shot", "step:learn", "step:learn") && waits("zero_shot", "w", "step:learn"));
        assert!(!waits("zero_shot", "w", "w") && !waits("contrastive", "step:learn", "w"));
    }

    #[test]
    fn every_recipe_gives_the_same_on_more_ranks() {
        let (dir, catalog) = (tempfile::tempdir().unwrap(), rank::catalog());
        let words = dir.path().join("words.tsv");
        let text =
            |i: usize| format!("{}\t{} a lot of word{i}\n", i % 2, if i.is_multiple_of(2) { "good" } else { "bad" });
        std::fs::write(&words, (0..40).map(text).collect::<String>()).unwrap();
        let left = Left::new(&dir.path().join("left"), &words);
        let mut kinds = std::collections::BTreeMap::new();
        for (name, files) in RECIPES.iter().map(|r| (r.name, r.files)) {
            files.iter().for_each(|(file, text)| std::fs::write(dir.path().join(file), text).unwrap());
            let spec = spec_file::load(&dir.path().join(files[0].0), &[], &catalog).unwrap();
            for (step, inner, _) in spec.steps() {
                let inner = small(inner.clone(), &words, &left);
                let folder = dir.path().join(name).join(step);
                let verified = verify(&inner, &catalog, &Place::Host, folder, 2);
                let trains = match verified.unwrap_or_else(|e| panic!("{name}, {step}: {e}")) {
                    Verified::Trains(all) => {
                        assert!(!all.is_empty(), "{name}");
                        all.iter().for_each(|c| assert!(c.holds(), "{name}: {}", line(c)));
                        true
                    }
                    Verified::Judges(all) => {
                        assert!(all.len() == 2 && all[0].samples > 0, "{name}");
                        all.iter().for_each(|j| assert!(j.holds(), "{name}: {}", told(j)));
                        false
                    }
                };
                kinds.insert(inner.job.kind, trains);
            }
        }
        for kind in &catalog.objectives {
            assert_eq!(kinds.get(&kind.name), Some(&!kind.untrained), "`{}` and its recipe: {kinds:?}", kind.name);
        }
    }

    #[test]
    fn a_difference_is_named() {
        let c = Compared {
            stage: "all".into(),
            ranks: 2,
            steps: 3,
            ordered: Some(rank::Difference { step: 3, tensor: "head.weight".into() }),
            fast: 2e-7,
            statistics: Some(3e-8),
            apart: Some(Apart { step: 2, tensor: "objective.scale".into(), by: 2e-4, room: 1e-5 }),
        };
        let head = "stage `all`, 2 ranks, 3 steps: ";
        assert_eq!(
            line(&c),
            format!(
                "{head}ordered: DIFFERS first at step 3 in `head.weight`; \
                 fast: APART by 2.0e-4, more than 1e-5, first at step 2, most in `objective.scale`"
            )
        );
        assert!(!c.holds());
        let c = Compared { ordered: None, apart: None, ..c };
        let same = format!("{head}ordered: the same bits; fast: gradients within 2.0e-7");
        assert_eq!(line(&c), format!("{same}, sums of batch-norms within 3.0e-8"));
        assert_eq!(line(&Compared { statistics: None, ..c }), same);
        let j = Judged { ranks: 3, samples: 16, differs: None };
        assert_eq!(told(&j), "trains nothing, 3 ranks, 16 samples judged: says the same");
        let j = Judged { differs: Some("evaluation.loss".into()), ..j };
        assert!(told(&j).ends_with("says something else, first in `evaluation.loss`") && !j.holds());
    }
}
