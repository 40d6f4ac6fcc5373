//! Runs that are held to what their network could do before, and how much of it is gone.

use std::sync::OnceLock;

use super::*;
use crate::train::{fisher, origin::Origin, samples::Samples};

const DATA: &str =
    "format = \"generated\", batch = 32, grains = 2, params = { train_samples = 40, val_samples = 25, noise = 0.1 }";

/// A network that knows the shapes of the source, in a folder that stays.
fn pretrained() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let job = format!(
            "schema = 1\njob = {{ name = \"p\", kind = \"finetune\", seed = 1 }}\nmodel = {{ backbone = \"small_cnn\", head = {{ hidden = [24], norm = \"batch\" }} }}\n\
             data = {{ {DATA}, train = \"source\", val = \"source\" }}\n\
             [[stage]]\nname = \"all\"\nepochs = 12\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n"
        );
        train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        dir
    });
    dir.path()
}

fn job(modifiers: &str, lr: f64, source: &str, train: &str) -> String {
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 5 }}\n\
         model = {{ backbone = \"small_cnn\", weights = {:?} }}\noptimizer = {{ name = \"sgd\", weight_decay = 0 }}\n\
         data = {{ {DATA}, train = \"target\", val = \"target\", train_per_class = 16, source = {{ val = \"source\" {source} }} }}\n\
         {modifiers}\n[[stage]]\nname = \"all\"\nepochs = 6\ntrain = [{train}]\nlr = {lr}\nbn = \"train\"\n",
        pretrained().join("work/model").display().to_string()
    )
}

fn run_once(job: &str, world: usize) -> (Report, blake3::Hash, Recorder) {
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    let report = train(job, world, false, dir.path(), &[], &link).unwrap();
    (report, model_of(dir.path()), link)
}

const EWC: &str = "[modifiers.ewc]\nlambda = 300\nsamples = 70";
const TRAIN: &str = ", train = \"source\"";

#[test]
fn a_run_that_is_held_forgets_less_and_says_how_much() {
    let forgotten = |modifiers: &str, source: &str| {
        let (report, ..) = run_once(&job(modifiers, 0.03, source, "\"*\""), 1);
        let source = report.source.clone().unwrap();
        assert!(source.before > 0.6, "it knew its source: {}", source.before);
        assert_eq!(source.after.samples, 200);
        assert!(report.to_text().contains(&source.sentence()));
        (source.forgotten(), report.evaluation.accuracy)
    };
    let (free, l2_sp) = (forgotten("", ""), forgotten("[modifiers.l2_sp]\nalpha = 3", ""));
    let (ewc, lwf) = (forgotten(EWC, TRAIN), forgotten("[modifiers.lwf]\nlambda = 3", ""));
    eprintln!("forgotten points and accuracy: free {free:?}, l2_sp {l2_sp:?}, ewc {ewc:?}, lwf {lwf:?}");
    for (name, held) in [("l2_sp", l2_sp), ("ewc", ewc), ("lwf", lwf)] {
        assert!(held.0 < free.0 - 5.0, "{name}: {held:?} {free:?}");
        assert!(held.1 > 0.3, "{name} still learns: {held:?}");
    }
}

#[test]
fn what_holds_a_run_gives_the_same_file_for_any_number_of_ranks() {
    let lines = format!("{EWC}\n[modifiers.l2_sp]\n[modifiers.lwf]");
    let job = job(&lines, 0.01, TRAIN, "\"*\"").replace("epochs = 6", "epochs = 2");
    let (one, model, link) = run_once(&job, 1);
    let rows = link.rows.lock().unwrap().clone();
    assert!(rows.iter().any(|r| r.values.get("penalty").is_some_and(|p| *p > 0.0)));
    assert_eq!(rows[0].values["penalty"], {
        // Where it began, only what is new is away from anything.
        let (.., alone) = run_once(&job.replace(EWC, "").replace(TRAIN, ""), 1);
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
    let job = job(&format!("{EWC}\n[modifiers.lwf]"), 0.01, TRAIN, "\"*\"").replace("epochs = 6", "epochs = 2");
    let job = job.replace("[[stage]]", "[checkpoint]\nevery = 1\n[[stage]]");
    let (_, whole, _) = run_once(&job, 1);
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder { stop_after: Some(3), ..Recorder::default() });
    assert!(matches!(train(&job, 1, false, dir.path(), &[], &link), Err(Error::Stopped)));
    let checkpoints = link.checkpoints.lock().unwrap().clone();
    train(&job, 2, false, dir.path(), &checkpoints, &Recorder::default()).unwrap();
    assert_eq!(model_of(dir.path()), whole);
}

#[test]
fn what_matters_is_the_mean_square_of_the_slopes_of_single_samples() {
    use crate::{data::augment::View, eval, modifier::Importance, num::rng::Philox, weights::testing::bare};
    let spec = JobSpec::from_toml(&job("", 0.1, TRAIN, "\"*\""), &[]).unwrap();
    let samples = || Samples::open(&spec.data.as_ref().unwrap().of_source().unwrap(), "train", 1).unwrap();
    let classes = samples().dataset.classes().to_vec();
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
    let mut origin = Origin::of(&model, Some(&classes), 1, &[].into()).unwrap();
    origin.train = Some(samples());
    let student = Net::build(&model, &["x".into(), "y".into()], false, 9, &[].into()).unwrap();
    let how = Importance { samples: 19, given: true };
    let got = fisher::importance(&student, &origin, how, 1, &mut Solo, &mut Recorder::default()).unwrap();
    let (net, samples) = (&origin.net, samples());
    let chosen = &Philox::new(1, "fisher-samples").permutation(samples.count(), 0)[..19];
    let names = &student.network.initial.params;
    for (name, at) in [("block0.conv.weight", 7), ("block2.conv.weight", 1234), ("block3.norm.weight", 5)] {
        let place = net.network.initial.params.iter().find(|e| e.name == name).unwrap().range.start + at;
        let loss = |index: usize, by: f32| {
            let mut store = net.network.initial.clone();
            store.values[place] += by;
            let x = samples.batch(&[(index, View::PLAIN)], &net.contract, false).unwrap();
            let logits = net.forward(&store, x, 0, net.network.units.len()).unwrap();
            eval::judge(&super::super::net::rows(&logits).unwrap()[0], samples.dataset.labels()[index]).loss
        };
        let slope = |index: &usize| (loss(*index, 5e-3) - loss(*index, -5e-3)) / 1e-2;
        let want = chosen.iter().map(slope).map(|s| s * s).sum::<f64>() / 19.0;
        let own = f64::from(got[names.iter().find(|e| e.name == name).unwrap().range.start + at]);
        assert!((own - want).abs() < 0.05 * want && want > 0.0, "{name}: {own} {want}");
    }
    let head = names.iter().find(|e| e.name == "fc.weight").unwrap();
    assert!(got[head.range.clone()].iter().all(|f| *f == 0.0), "the new head matters to nobody");
}
