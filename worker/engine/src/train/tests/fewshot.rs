//! Runs on few-shot episodes.

use tl_proto::spec::Params;

use super::*;
use crate::{
    objective::fewshot::{self, Method},
    predict::{Asked, Model, Towers},
    train::verify::{self, Judged, Verified},
};

/// Two stages, batch-norms that learn, dropout, views, an odd number of episodes a step and a tail; rotations, and classes
/// of one data set divided by name.
const JOB: &str = concat!(
    r#"
schema = 1
job = { name = "t", kind = "fewshot", seed = 3 }
data = { format = "generated", train = "source", val = "source", batch = 5, grains = 3, train_classes = ["circle", "ring", "square*"], val_classes = ["4..7"], params = { train_samples = 6, val_samples = 8 }, augment = { flip = true, views = 2 }, episodes = { way = 3, shot = 2, query = 3, train_way = 4, train_query = 2, per_epoch = 7, val = 9, test = 20, rotations = "train" } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
checkpoint = { every = 1 }
objective = { OBJECTIVE }
[stop]
monitor = "val.accuracy"
restore_best = true
"#,
    stages!("top", r#"["head", "block3"]"#, "0.003")
);

/// The method of a line of `[objective]`, and its parameters.
fn said(line: &str) -> (&'static Method, Params) {
    let params = JobSpec::from_toml(&JOB.replace("OBJECTIVE", line), &[]).unwrap().objective;
    (fewshot::method(&params), params)
}

/// The job with a method; what adapts trains on as many classes as it is judged with.
fn job(line: &str) -> String {
    let (job, (method, params)) = (JOB.replace("OBJECTIVE", line), said(line));
    if method.classifies() && method.trains(&params) { job.replace("train_way = 4, ", "") } else { job }
}

/// The same without training.
fn untrained(method: &str) -> String {
    job(method).split("[stop]").next().unwrap().to_owned()
}

const TRAINED: [&str; 4] = [
    "method = \"prototype\"",
    "method = \"matching\", scale = 5",
    "method = \"maml\", steps = 2, inner_lr = 0.05",
    "method = \"maml\", adapt = [\"head\"], inner_lr = 0.05",
];

const UNTRAINED: [&str; 4] = [
    "method = \"prototype\"",
    "method = \"linear\"",
    "method = \"fine_tune\", steps = 3",
    "method = \"fine_tune\", steps = 3, layers = [\"head\"]",
];

/// Methods that neither list names, which are trained or are not.
fn others(trained: bool) -> Vec<String> {
    let mut lines = other_methods("fewshot", &[TRAINED, UNTRAINED].concat());
    lines.retain(|line| {
        let (method, params) = said(line);
        method.trains(&params) == trained
    });
    lines
}

#[test]
fn every_method_gives_the_same_file_and_figures_for_any_number_of_ranks() {
    let mut files = std::collections::BTreeSet::new();
    for (i, method) in TRAINED.into_iter().chain(others(true).iter().map(String::as_str)).enumerate() {
        let mut wanted = None;
        for world in [1, 2 + i % 2] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&job(method), world, world == 3, dir.path(), &[], &Recorder::default())
                .unwrap_or_else(|e| panic!("{method}: {e}"));
            let got =
                (model_of(dir.path()), report.evaluation.clone(), report.baselines.clone(), report.history.clone());
            let episodes = report.evaluation.episodes.clone().unwrap();
            assert_eq!((episodes.count, report.evaluation.samples, report.steps), (20, 20 * 9, 3 * 2));
            assert!(report.overlap.is_empty() && report.history.iter().all(|h| h.values.contains_key("val.interval")));
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{method}, {world} ranks");
        }
        assert!(files.insert(wanted.unwrap().0.to_hex().to_string()), "{method} changes nothing");
    }
}

#[test]
fn a_frozen_network_is_judged_alike_by_any_number_of_ranks_and_what_is_beside_it_too() {
    let mut accuracies = Vec::new();
    for method in UNTRAINED.into_iter().chain(others(false).iter().map(String::as_str)) {
        let mut wanted = None;
        for world in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&untrained(method), world, false, dir.path(), &[], &Recorder::default())
                .unwrap_or_else(|e| panic!("{method}: {e}"));
            let names: Vec<&str> = report.baselines.iter().map(|b| b.name.as_str()).collect();
            assert_eq!(names.len(), if method.contains("prototype") { 1 } else { 2 }, "{names:?}");
            assert_eq!((report.steps, report.prefix.needed > 0), (0, true));
            let got = (report.evaluation.clone(), report.baselines.clone());
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{method}, {world} ranks");
        }
        let (evaluation, baselines) = wanted.unwrap();
        accuracies.push((evaluation, baselines.last().unwrap().evaluation.clone()));
    }
    // Beside the others stands what the first of them is: the same network on the same episodes.
    assert_eq!(accuracies[0].0, accuracies[1].1);
    assert!((1..4).all(|i| accuracies[i].0 != accuracies[0].0), "each method has figures of its own");
}

#[test]
fn a_run_on_episodes_goes_on_where_it_stopped_with_what_it_had_measured() {
    for method in [TRAINED[0], TRAINED[2]] {
        let [whole, report] = gone_on(&job(method), 3, [2, 3]);
        assert_eq!((report.baselines, report.evaluation), (whole.baselines, whole.evaluation));
    }
}

#[test]
fn the_first_steps_of_episodes_are_verified_on_more_ranks() {
    for method in TRAINED.into_iter().chain(others(true).iter().map(String::as_str)) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&job(method), dir.path(), "cache", Vec::new());
        let compared = verify::verify(&config, 2).unwrap();
        assert!(compared.len() == 4 && compared.iter().all(|c| c.holds()), "{method}: {compared:?}");
    }
}

#[test]
fn what_is_said_without_training_is_verified_on_more_ranks() {
    for method in UNTRAINED.into_iter().chain(others(false).iter().map(String::as_str)) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&untrained(method), dir.path(), "cache", Vec::new());
        let verified = verify::verified(&config, 2).unwrap();
        let Verified::Judges(all) = verified else { panic!("it trains nothing: {verified:?}") };
        // Twenty episodes of three classes, three queries each.
        let wanted = [2, 3].map(|ranks| Judged { ranks, samples: 20 * 9, differs: None });
        assert_eq!(all, wanted, "{method}");
        let left = std::fs::read_dir(dir.path().join("work")).unwrap().count();
        assert_eq!(left, 0, "what was written on the way is gone");
    }
}

#[test]
fn batch_norms_may_take_the_statistics_of_all_episodes_of_a_step() {
    let job = job(TRAINED[0]).replace("bn = \"train\"", "bn = \"train\"\nbn_scope = \"batch\"");
    let files = [1, 2].map(|world| {
        let dir = tempfile::tempdir().unwrap();
        train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        model_of(dir.path())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn figures_of_few_episodes_say_so_in_plan_and_report() {
    for (test, says) in [(20, true), (599, true), (600, false)] {
        let job = untrained(UNTRAINED[0]).replace("test = 20", &format!("test = {test}"));
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        let said = format!("judged by {test} episodes, and published figures are means over 600");
        assert_eq!(plan.warnings.iter().any(|w| w.contains(&said)), says, "{:?}", plan.warnings);
        let text = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap().to_text();
        assert_eq!(text.contains(&said), says, "{text}");
    }
}

#[test]
fn classes_that_were_trained_on_are_told_and_change_nothing() {
    let both = job(TRAINED[0]).replace("\"square*\"", "\"square*\", \"triangle\"");
    let dir = tempfile::tempdir().unwrap();
    let link = Recorder::default();
    let report = train(&both, 1, false, dir.path(), &[], &link).unwrap();
    assert_eq!(report.overlap, ["triangle"]);
    assert!(report.to_text().contains("1 of the classes that were judged were trained on too"), "{}", report.to_text());
    assert!(link.notices.lock().unwrap().contains(&Notice::SameClasses));
    let plan = crate::train::probe::probe(&config(&both, dir.path(), "cache", Vec::new())).unwrap();
    assert!(plan.warnings[0].contains("class `triangle` is in `data.train` and in `data.val`"), "{:?}", plan.warnings);
    let episodes = plan.episodes.unwrap();
    // Five classes in four turns, and four as they are.
    assert_eq!((episodes.classes, plan.steps_per_epoch, plan.grains), ([20, 4], 2, 3));
    assert_eq!(plan.grain_samples, 2 * 4 * (2 + 2), "two episodes of the largest grain");
}

#[test]
fn a_finished_model_learns_the_classes_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job(TRAINED[0]), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let model = Model::open(&dir.path().join("work/model")).unwrap();
    // The same episodes again, from the file.
    let spec = JobSpec::from_toml(&job(TRAINED[0]), &[]).unwrap();
    let data = spec.data.unwrap();
    let asked = Asked {
        format: data.format,
        place: data.val,
        params: data.params,
        seed: 3,
        classes: data.val_classes,
        ..Asked::default()
    };
    assert_eq!(model.evaluate(&asked).unwrap(), report.evaluation);
    let other = model.evaluate(&Asked { way: Some(2), query: Some(1), episodes: Some(30), ..asked.clone() }).unwrap();
    assert_eq!((other.samples, other.episodes.unwrap().count), (60, 30));
    assert!(
        model.evaluate(&Asked { shot: Some(6), ..asked }).unwrap_err().to_string().contains("6 to show and 3 to ask")
    );

    let picture = |name: &str, dark: bool| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let side = |x: u32| if (x < 16) == dark { 20 } else { 230 };
        image::RgbImage::from_fn(32, 32, |x, _| image::Rgb([side(x); 3])).save(&path).unwrap();
        path
    };
    let refused = model.predict(&picture("query.png", true)).unwrap_err();
    assert!(refused.to_string().contains("no classes of its own"), "{refused}");
    for (name, dark) in [("two/left/0.png", true), ("two/left/1.png", true), ("two/right/0.png", false)] {
        picture(name, dark);
    }
    picture("flat/a.png", false);
    picture("flat/b.png", true);
    for (folder, classes, chosen) in [("two", ["left", "right"], 0), ("flat", ["a", "b"], 1)] {
        let learned = model.learn(&dir.path().join(folder)).unwrap();
        assert_eq!(learned.classes(), classes);
        let chances = learned.predict(&dir.path().join("query.png")).unwrap();
        assert!(chances[chosen] > 0.5 && (chances.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{chances:?}");
    }
    picture("one/only/0.png", true);
    assert!(model.learn(&dir.path().join("one")).is_err());

    // Runs of two classes, the first with the right answers and the second with the wrong ones.
    for (run, answers) in [("run01", [1, 2]), ("run02", [2, 1])] {
        for (i, dark) in [(1, true), (2, false)] {
            picture(&format!("runs/{run}/training/class0{i}.png"), dark);
            picture(&format!("runs/{run}/test/item0{i}.png"), dark);
        }
        let line = |(i, of): (usize, i32)| format!("{run}/test/item0{i}.png {run}/training/class0{of}.png\n");
        let list: String = (1..).zip(answers).map(line).collect();
        std::fs::write(dir.path().join("runs").join(run).join("class_labels.txt"), list).unwrap();
    }
    let runs = dir.path().join("runs");
    let asked = Asked::of("image_folder", &runs.display().to_string(), Default::default(), 0);
    let scored = model.evaluate_runs(&asked).unwrap();
    let learned = model.learn(&runs.join("run01/training")).unwrap();
    let said = [1, 2].map(|i| learned.predict(&runs.join(format!("run01/test/item0{i}.png"))).unwrap());
    assert!(said[0][0] > 0.5 && said[1][1] > 0.5, "{said:?}");
    // Each of the four chances is once that of the right answer and once that of the wrong one.
    let loss = -said.iter().flatten().map(|p| p.ln()).sum::<f64>() / 4.0;
    assert!((scored.loss - loss).abs() < 1e-3 * loss.max(1.0), "{} {loss}", scored.loss);
    assert_eq!((scored.accuracy, scored.samples), (0.5, 4));
    let episodes = scored.episodes.unwrap();
    // 1.96·√½/√2, of the accuracies one and nothing.
    assert!((episodes.interval - 0.98).abs() < 1e-9 && episodes.count == 2, "{episodes:?}");
    assert_eq!((episodes.shape.way, episodes.shape.shot, episodes.shape.query), (2, 1, 1));
    picture("runs/run02/training/class03.png", true);
    picture("runs/run02/test/item03.png", true);
    let more = "run02/test/item01.png run02/training/class01.png\nrun02/test/item02.png run02/training/class02.png\n\
        run02/test/item03.png run02/training/class03.png\n";
    std::fs::write(runs.join("run02/class_labels.txt"), more).unwrap();
    let error = model.evaluate_runs(&asked).unwrap_err().to_string();
    assert_eq!(error, "`run01` shows 2 classes and asks for 1 samples of each, and `run02` 3 and 1");
    let none = Towers::open(&dir.path().join("work/model")).err().unwrap().to_string();
    assert!(none.contains("does not hold two networks"), "{none}");
}

/// Files that lie as Omniglot's own do: characters in folders of alphabets. In `negative` there are their negatives.
#[test]
fn a_finished_model_reads_nested_folders_and_negatives() {
    let dir = tempfile::tempdir().unwrap();
    train(&job(TRAINED[0]), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let model = Model::open(&dir.path().join("work/model")).unwrap();
    for (character, alphabet) in ["Greek", "Greek", "Greek", "Latin"].iter().enumerate() {
        for drawer in 0..3 {
            // A bar somewhere: characters are alike, so that nothing is certain.
            let first = 10 + 12 * drawer + 4 * character as u32;
            let ink = |x: u32| (first..first + 6).contains(&x);
            for (folder, [dark, light]) in [("plain", [0u8, 255]), ("negative", [255, 0])] {
                let path = dir.path().join(format!("{folder}/{alphabet}/character0{character}/{drawer}.png"));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let bar = image::GrayImage::from_fn(105, 105, |x, _| image::Luma([if ink(x) { dark } else { light }]));
                bar.save(path).unwrap();
            }
        }
    }
    let judged = |folder: &str, params: serde_json::Value| {
        let (format, place) = ("image_folder".to_owned(), dir.path().join(folder).display().to_string());
        let params = serde_json::from_value(params).unwrap();
        let (classes, way, shot, query) = (vec!["Greek/*".to_owned()], Some(2), Some(1), Some(1));
        let asked = Asked { format, place, params, classes, way, shot, query, episodes: Some(30), ..Asked::default() };
        model.evaluate(&asked).map_err(|e| e.to_string())
    };
    let negatives = judged("negative", serde_json::json!({ "depth": 2 })).unwrap();
    assert_eq!((negatives.samples, negatives.episodes.as_ref().unwrap().count), (60, 30));
    assert_eq!(judged("plain", serde_json::json!({ "depth": 2, "invert": true })).unwrap(), negatives);
    assert_ne!(judged("plain", serde_json::json!({ "depth": 2 })).unwrap(), negatives);
    let error = judged("plain", serde_json::json!({ "depth": 2, "inverted": true })).unwrap_err();
    assert!(error.contains("unknown key `params.inverted`"), "{error}");
    // The same of files, by the classes of a folder.
    let said = |model: &Model, folder: &str| {
        let place = dir.path().join(folder);
        model.learn(&place.join("Greek")).unwrap().predict(&place.join("Latin/character03/0.png")).unwrap()
    };
    let (plain, negatives) = (said(&model, "plain"), said(&model, "negative"));
    assert_ne!(plain, negatives);
    assert_eq!(said(&model.inverting(true).unwrap(), "plain"), negatives);
}

#[test]
fn a_model_that_adapts_is_judged_by_episodes_and_refuses_single_files() {
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job(TRAINED[2]), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let model = Model::open(&dir.path().join("work/model")).unwrap();
    let data = JobSpec::from_toml(&job(TRAINED[2]), &[]).unwrap().data.unwrap();
    let (format, place, params, classes) = (data.format, data.val, data.params, data.val_classes);
    let asked = Asked { format, place, params, seed: 3, classes, ..Asked::default() };
    assert_eq!(model.evaluate(&asked).unwrap(), report.evaluation);
    let error = model.evaluate(&Asked { way: Some(2), ..asked }).unwrap_err().to_string();
    assert!(error.contains("tells 3 classes apart"), "{error}");
    assert!(model.learn(dir.path()).err().unwrap().to_string().contains("steps on its weights"));
    let runs = Asked::of("image_folder", "runs", Default::default(), 0);
    assert!(model.evaluate_runs(&runs).unwrap_err().to_string().contains("steps on its weights"));
}
