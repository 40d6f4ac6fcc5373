//! Runs that are held to what their network could do before, and how much of it is gone.

use std::sync::OnceLock;

use super::*;
use crate::{
    nn::Pass,
    train::{
        fisher,
        origin::{Origin, Source},
    },
};

/// Stripes, upright ones of the source and level ones of the target, whose class is how many there are; and noise.
fn stripes(dir: &Path, name: &str, (count, classes, level): (u32, u32, bool)) {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for i in 0..count {
        let class = i % classes;
        labels.push(class as u8);
        for at in 0..1024 {
            let (x, y) = (at % 32, at / 32);
            let turns = f64::from((2 + 3 * class) * if level { y } else { x }) / 32.0 + f64::from(i) * 0.37;
            let noise = f64::from((at * 7_919 + i * 104_729) % 1_009) / 1_009.0 - 0.5;
            pixels.push((128.0 + 60.0 * (std::f64::consts::TAU * turns).sin() + 280.0 * noise) as u8);
        }
    }
    let idx = |sizes: &[u32], bytes: &[u8]| {
        let sizes: Vec<u8> = sizes.iter().flat_map(|n| n.to_be_bytes()).collect();
        [&[0, 0, 8, sizes.len() as u8 / 4], &sizes[..], bytes].concat()
    };
    std::fs::write(dir.join(format!("{name}-images-idx3-ubyte")), idx(&[count, 32, 32], &pixels)).unwrap();
    std::fs::write(dir.join(format!("{name}-labels-idx1-ubyte")), idx(&[count], &labels)).unwrap();
}

/// A network that knows the source's stripes, beside the data, in a folder that stays.
fn pretrained() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        stripes(dir.path(), "source", (200, 4, false));
        stripes(dir.path(), "target", (60, 3, true));
        let job = format!(
            "schema = 1\njob = {{ name = \"p\", kind = \"finetune\", seed = 1 }}\nmodel = {{ backbone = \"small_cnn\", head = {{ hidden = [24], norm = \"batch\" }} }}\n\
             data = {{ format = \"idx\", batch = 20, train = {0}, val = {0} }}\n\
             [[stage]]\nname = \"all\"\nepochs = 6\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n",
            place(dir.path(), "source"),
        );
        train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        dir
    });
    dir.path()
}

/// The file of a part of the data, as a job names it.
fn place(dir: &Path, part: &str) -> String {
    format!("{:?}", dir.join(format!("{part}-images-idx3-ubyte")).display().to_string())
}

/// A job on the target, from the weights of the source.
pub(super) fn job(modifiers: &str, lr: f64, source: &str, train: &str) -> String {
    let dir = pretrained();
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 5 }}\n\
         model = {{ backbone = \"small_cnn\", weights = {:?} }}\noptimizer = {{ name = \"sgd\", weight_decay = 0 }}\n\
         data = {{ format = \"idx\", batch = 20, grains = 2, train = {1}, val = {1}, source = {{ val = {2} {source} }} }}\n\
         {modifiers}\n[[stage]]\nname = \"all\"\nepochs = 6\ntrain = [{train}]\nlr = {lr}\nbn = \"train\"\n",
        dir.join("work/model").display().to_string(),
        place(dir, "target"),
        place(dir, "source"),
    )
}

fn run_once(job: &str, world: usize) -> (Report, blake3::Hash, Recorder) {
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    let report = train(job, world, false, dir.path(), &[], &link).unwrap();
    (report, model_of(dir.path()), link)
}

const EWC: &str = "[modifiers.ewc]\nlambda = 300\nsamples = 70";
/// Where a job learns what matters.
pub(super) fn train_on() -> String {
    format!(", train = {}", place(pretrained(), "source"))
}

#[test]
fn a_run_that_is_held_forgets_less_and_says_how_much() {
    let left = |modifiers: &str, source: &str| {
        let job = job(modifiers, 0.05, source, "\"*\"").replace("bn = \"train\"", "bn = \"frozen\"");
        let (report, ..) = run_once(&job.replace("epochs = 6", "epochs = 16"), 1);
        let source = report.source.clone().unwrap();
        assert!(source.before > 0.9, "it knew its source: {}", source.before);
        assert_eq!(source.after.samples, 200);
        assert!(report.to_text().contains(&source.sentence()));
        (source.after.loss, report.evaluation.accuracy)
    };
    let (free, l2_sp) = (left("", ""), left("[modifiers.l2_sp]\nalpha = 0.3", ""));
    let (ewc, lwf) = (left(EWC, &train_on()), left("[modifiers.lwf]\nlambda = 3", ""));
    assert!(free.0 > 0.2, "there is something to forget: {free:?}");
    for (name, held) in [("l2_sp", l2_sp), ("ewc", ewc), ("lwf", lwf)] {
        assert!(held.0 < 0.7 * free.0, "{name}: {held:?} {free:?}");
        assert!(held.1 > 0.9, "{name} still learns: {held:?}");
    }
}

#[test]
fn what_holds_a_run_gives_the_same_file_for_any_number_of_ranks() {
    let lines = format!("{EWC}\n[modifiers.l2_sp]\n[modifiers.lwf]");
    let job = job(&lines, 0.01, &train_on(), "\"*\"").replace("epochs = 6", "epochs = 2");
    let (one, model, link) = run_once(&job, 1);
    let rows = link.rows.lock().unwrap().clone();
    assert!(rows.iter().any(|r| r.values.get("penalty").is_some_and(|p| *p > 0.0)));
    assert_eq!(rows[0].values["penalty"], {
        // Where it began, only what is new is away from anything.
        let (.., alone) = run_once(&job.replace(EWC, "").replace(&train_on(), ""), 1);
        let alone = alone.rows.lock().unwrap();
        alone[0].values["penalty"]
    });
    for world in [2, 3] {
        let (report, other, _) = run_once(&job, world);
        assert_eq!((report.source, other), (one.source.clone(), model), "{world}");
    }
}

#[test]
fn a_run_that_trains_only_its_head_forgets_nothing_and_a_checkpoint_goes_on_to_the_same_bits() {
    let head = job("[modifiers.lwf]", 0.01, "", "\"head\"").replace("bn = \"train\"", "bn = \"frozen\"");
    let (report, ..) = run_once(&head, 1);
    assert_eq!(report.source.unwrap().forgotten(), 0.0);
    let job = job(&format!("{EWC}\n[modifiers.lwf]"), 0.01, &train_on(), "\"*\"").replace("epochs = 6", "epochs = 2");
    let job = job.replace("[[stage]]", "[checkpoint]\nevery = 1\n[[stage]]");
    let (_, whole, _) = run_once(&job, 1);
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder { stop_after: Some(3), ..Recorder::default() });
    assert!(matches!(train(&job, 1, false, dir.path(), &[], &link), Err(Error::Stopped)));
    let checkpoints = link.checkpoints.lock().unwrap().clone();
    train(&job, 2, false, dir.path(), &checkpoints, &Recorder::default()).unwrap();
    assert_eq!(model_of(dir.path()), whole);
}

#[test]
fn what_matters_is_learned_once_and_goes_on_with_the_run() {
    let job = job(EWC, 0.01, &train_on(), "\"*\"").replace("epochs = 6", "epochs = 2");
    let job = job.replace("[[stage]]", "[checkpoint]\nevery = 1\n[[stage]]");
    let learned = |link: &Recorder| link.activities.lock().unwrap().contains("learn what matters");
    let (_, whole, link) = run_once(&job, 1);
    assert!(learned(&link));
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder { stop_after: Some(3), ..Recorder::default() });
    train(&job, 2, false, dir.path(), &[], &link).unwrap_err();
    let newest = link.checkpoints.lock().unwrap()[0].clone();
    let model = JobSpec::from_toml(&job, &[]).unwrap().model.unwrap();
    let net = Net::build(&model, &["0", "1", "2"].map(str::to_owned), false, 1, &[].into()).unwrap();
    let mut state = RunState::from_bytes(std::fs::read(&newest).unwrap(), &net.network.initial).unwrap();
    assert!(state.importance.len() == state.store.values.len() && state.importance.iter().any(|f| *f > 0.0));
    // As left by a release that learned it whenever a run went on.
    state.importance.clear();
    let older = dir.path().join("older.tlc");
    std::fs::write(&older, state.to_bytes().unwrap()).unwrap();
    for (from, world, anew) in [(&newest, 3, false), (&older, 2, true)] {
        let (dir, again) = (tempfile::tempdir().unwrap(), Recorder::default());
        train(&job, world, false, dir.path(), std::slice::from_ref(from), &again).unwrap();
        assert_eq!(model_of(dir.path()), whole, "{world} ranks");
        assert_eq!(learned(&again), anew, "{world} ranks");
    }
}

#[test]
fn what_matters_is_the_mean_square_of_the_slopes_of_single_samples() {
    use crate::{data::augment::View, eval, modifier::Importance, num::rng::Philox, weights::testing::bare};
    let spec = JobSpec::from_toml(&job("", 0.1, &train_on(), "\"*\""), &[]).unwrap();
    let source = Source::open(spec.data.as_ref().unwrap(), 1).unwrap().unwrap();
    let classes = source.val.dataset.classes().to_vec();
    let model = |weights: Option<String>| tl_proto::spec::ModelSection {
        backbone: "small_cnn".into(),
        weights,
        preprocess: Some("unit".into()),
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    bare(&Net::build(&model(None), &classes, false, 4, &[].into()).unwrap(), &path);
    let model = model(Some(path.display().to_string()));
    let student = Net::build(&model, &["x".into(), "y".into()], false, 9, &[].into()).unwrap();
    let origin = Origin::open(&spec, &model, &student, Some(&source), &[].into()).unwrap().unwrap();
    let how = Importance { samples: 19, given: true };
    let got = fisher::importance(&student, &origin, how, 1, &mut Solo, &mut Recorder::default()).unwrap();
    let (net, samples) = (&origin.net, source.train.as_ref().unwrap());
    let chosen = &Philox::new(1, "fisher-samples").permutation(samples.count(), 0)[..19];
    let names = &student.network.initial.params;
    // A head that goes on is held as everything else is.
    let head = tl_proto::spec::HeadSection { keep: true, ..Default::default() };
    let keeping = tl_proto::spec::ModelSection { head, ..model.clone() };
    let keeping = Net::build(&keeping, &classes, false, 9, &[].into()).unwrap();
    assert!(keeping.keeps_head() && !student.keeps_head());
    let kept = fisher::importance(&keeping, &origin, how, 1, &mut Solo, &mut Recorder::default()).unwrap();
    for (name, at, (got, names)) in [
        ("block0.conv.weight", 7, (&got, names)),
        ("block2.conv.weight", 1234, (&got, names)),
        ("block3.norm.weight", 5, (&got, names)),
        ("fc.weight", 9, (&kept, &keeping.network.initial.params)),
    ] {
        let place = net.network.initial.params.iter().find(|e| e.name == name).unwrap().range.start + at;
        let loss = |index: usize, by: f32| {
            let mut store = net.network.initial.clone();
            store.values[place] += by;
            let x = samples.batch(&[(index, View::PLAIN)], &net.contract, false).unwrap();
            let logits = net.forward(&Pass::eval(&store), x, 0, net.network.units.len()).unwrap();
            eval::judge(&super::super::net::rows(&logits).unwrap()[0], samples.dataset.labels()[index]).loss
        };
        let slope = |index: &usize| (loss(*index, 5e-3) - loss(*index, -5e-3)) / 1e-2;
        let want = chosen.iter().map(slope).map(|s| s * s).sum::<f64>() / 19.0;
        let own = f64::from(got[names.iter().find(|e| e.name == name).unwrap().range.start + at]);
        assert!((own - want).abs() < 0.05 * want && want > 0.0, "{name}: {own} {want}");
    }
    let head = names.iter().find(|e| e.name == "fc.weight").unwrap();
    assert!(got[head.range.clone()].iter().all(|f| *f == 0.0), "the new head matters to nobody");
    let mut link = Recorder { stop_after: Some(0), ..Recorder::default() };
    let stopped = fisher::importance(&student, &origin, how, 1, &mut Solo, &mut link);
    assert!(matches!(stopped, Err(Error::Stopped)));
}

#[test]
fn a_head_that_is_kept_is_judged_as_it_goes_out() {
    // More of what it was trained on, with its own head.
    let model = "backbone = \"small_cnn\", head = { hidden = [24], norm = \"batch\", keep = true },";
    let job = job("", 0.2, "", "\"head\"").replace("backbone = \"small_cnn\",", model);
    let job = job.replace(&place(pretrained(), "target"), &place(pretrained(), "source"));
    let (report, ..) = run_once(&job.replace("epochs = 6", "epochs = 1"), 1);
    let source = report.source.unwrap();
    let (after, own) = (source.after, report.evaluation);
    assert_eq!(after.accuracy, own.accuracy, "the same samples, and the same network");
    assert!((after.loss - own.loss).abs() < 1e-9, "{} {}", after.loss, own.loss);
}

#[test]
fn a_source_of_other_classes_than_the_head_has_is_told_with_both_numbers() {
    let source = |part: &str| format!("source = {{ val = {}", place(pretrained(), part));
    let job = job("", 0.1, "", "\"*\"").replace(&source("source"), &source("target"));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&job, dir.path(), "cache", Vec::new());
    let error = crate::train::probe::probe(&config).err().unwrap().to_string();
    assert!(error.contains("is for 4 classes, and `data.source.val` has 3"), "{error}");
}

#[test]
fn what_holds_nothing_and_what_it_takes_to_learn_what_matters_are_told() {
    let warned = |modifiers: &str, source: &str, train: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&job(modifiers, 0.1, source, train), dir.path(), "cache", Vec::new());
        crate::train::probe::probe(&config).unwrap().warnings.join("\n")
    };
    let idle = warned("[modifiers.l2_sp]", "", "\"head\"");
    assert!(idle.contains("`modifiers.l2_sp` can hold nothing"), "{idle}");
    let held = warned("[modifiers.l2_sp]", "", "\"*\"");
    assert!(!held.contains("can hold nothing"), "{held}");
    let learned = warned(EWC, &train_on(), "\"*\"");
    assert!(learned.contains("`modifiers.ewc` runs 70 samples"), "{learned}");
}
