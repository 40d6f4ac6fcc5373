//! Whole runs with what a stage, the data or a modifier can ask for: right, and the same for any number of ranks.

use super::*;
use crate::train::state::file_name;

/// The job with one stage, which trains everything with statistics of the grain.
fn one_stage(lines: &str) -> String {
    let head = JOB.split("[[stage]]").next().unwrap();
    format!("{head}[[stage]]\nname = \"all\"\nepochs = 3\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n{lines}\n")
}

/// Trains in a folder of its own; the report, what was said, the digest of the model, and the folder.
fn run_alone(job: &str, world: usize) -> (Report, Recorder, blake3::Hash, tempfile::TempDir) {
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    let report = train(job, world, false, dir.path(), &[], &link).unwrap();
    let model = model_of(dir.path());
    (report, link, model, dir)
}

fn rates(link: &Recorder) -> Vec<f64> {
    link.rows.lock().unwrap().iter().filter_map(|r| r.values.get("lr").copied()).collect()
}

#[test]
fn balanced_draws_class_weights_and_erasing_give_the_same_file_for_any_number_of_ranks() {
    let job =
        one_stage("").replace("augment = { flip = true, views = 2 }", "augment = { erase = 0.5, views = \"fresh\" }");
    let balanced = job.replace("grains = 5,", "grains = 5, sampling = \"balanced\",");
    let weighted = job.replace("grains = 5,", "grains = 5, class_weights = [1, 2, 3, 4, 5, 6, 7, 8],");
    let models = [&job, &balanced, &weighted].map(|job| {
        let one = run_alone(job, 1);
        assert_eq!(one.2, run_alone(job, 3).2);
        one.2
    });
    assert!(models[0] != models[1] && models[0] != models[2]);
}

#[test]
fn a_list_of_class_weights_that_does_not_fit_is_refused() {
    let job = one_stage("").replace("grains = 5,", "grains = 5, class_weights = [1, 2],");
    let error = train(&job, 1, false, tempfile::tempdir().unwrap().path(), &[], &Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("2 numbers for 8 classes"), "{error}");
}

#[test]
fn a_stage_goes_on_to_the_next_once_it_no_longer_improves() {
    let job = format!(
        "{}[[stage]]\nname = \"more\"\nepochs = 1\ntrain = [\"head\"]\nlr = 0.001\n",
        one_stage("advance = { patience = 2, min_delta = 900.0 }").replace("epochs = 3", "epochs = 30")
    );
    for world in [1, 2] {
        let (report, link, ..) = run_alone(&job, world);
        let stages: Vec<&str> = report.history.iter().map(|h| h.stage.as_str()).collect();
        assert_eq!(stages, ["all", "all", "all", "more"], "the first epoch and two without improvement");
        assert!(link.notices.lock().unwrap().contains(&Notice::StoppedEarly));
    }
}

#[test]
fn a_plateau_lowers_the_rate_of_a_stage() {
    let plateau = "schedule = \"plateau\"\nplateau = { factor = 0.5, patience = 2, min_delta = 900.0, min_lr = 0.003 }";
    let (report, link, ..) = run_alone(&one_stage(plateau).replace("epochs = 3", "epochs = 7"), 2);
    let per_epoch = rates(&link).len() / report.history.len();
    let by_epoch: Vec<f64> = rates(&link).chunks(per_epoch).map(|e| e[0]).collect();
    assert_eq!(by_epoch, [0.01, 0.01, 0.01, 0.005, 0.005, 0.003, 0.003]);
}

#[test]
fn the_exported_model_is_the_average_of_the_steps() {
    let job = one_stage("").replace("restore_best = true", "restore_best = false").replace("every = 2", "every = 1");
    let job = format!("{job}[modifiers.ema]\ndecay = 0.9\nwarmup = 2.0\n");
    let (report, _, model, dir) = run_alone(&job, 1);
    assert_eq!(model, run_alone(&job, 3).2);
    let spec = config(&job, dir.path(), "cache", Vec::new()).spec;
    let classes: Vec<String> = (0..8).map(|c| c.to_string()).collect();
    let net = Net::build(spec.model.as_ref().unwrap(), &classes, false, 7, &[].into()).unwrap();
    let store = &net.network.initial;
    let at = |step: u64| {
        let bytes = std::fs::read(dir.path().join("work").join(file_name(step))).unwrap();
        RunState::from_bytes(bytes, store).unwrap()
    };
    // By hand from the weights after each step but the last, of which only the average is left.
    let steps = report.steps;
    let mut average: Vec<f64> = Vec::new();
    for step in 1..steps {
        let state = at(step);
        let now = state.store.values.iter().chain(&state.store.buffer_values).map(|v| f64::from(*v));
        if step == 1 {
            average = now.collect();
        } else {
            let keep = 0.9f64.min(1.0 - (1.0 + (step - 1) as f64 / 2.0).powf(-2.0 / 3.0));
            average.iter_mut().zip(now).for_each(|(a, n)| *a = keep * *a + (1.0 - keep) * n);
        }
        let (values, buffers) = state.averages.unwrap();
        for (ours, wanted) in values.iter().chain(&buffers).zip(&average) {
            assert!((f64::from(*ours) - wanted).abs() < 1e-5, "step {step}: {ours} {wanted}");
        }
    }
    let last = at(steps);
    assert!(last.averages.is_none(), "the average has taken the place of the weights");
    let file = std::fs::read(dir.path().join("work/model/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let name = &store.params[0].name;
    let bytes = tensors.tensor(name).unwrap().data().to_vec();
    assert_eq!(bytes, crate::collective::to_bytes(&last.store.values[store.params[0].range.clone()]));
    // What the last epoch was judged by is what is exported.
    assert_eq!(report.history.last().unwrap().values["val.loss"], report.evaluation.loss);
}

#[test]
fn an_average_that_lags_behind_is_told_in_a_plan_and_in_the_run() {
    let told = |lines: &str| {
        let job = format!("{}[modifiers.ema]\n{lines}\n", one_stage(""));
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        let warned: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("`modifiers.ema`")).collect();
        let (_, link, ..) = run_alone(&job, 1);
        let noticed = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::AverageLags).count();
        assert_eq!(warned.len(), noticed, "{warned:?}");
        warned
    };
    assert!(told("").is_empty(), "a short run averages its steps if nothing is said");
    // Three steps an epoch, and eight that keep 0.9998 of it.
    let said = told("warmup = 0");
    assert!(said[0].contains("is after the 9 steps of stage `all` still 100 % what the first"), "{said:?}");
}

#[test]
fn an_average_of_the_best_epoch_is_told_by_the_steps_of_that_epoch() {
    let noticed = |stop: &str| {
        let job = format!("{}[modifiers.ema]\ndecay = 0.7\nwarmup = 0\n", one_stage(""));
        let (_, link, ..) = run_alone(&job.replace("restore_best = true", stop), 1);
        link.notices.lock().unwrap().contains(&Notice::AverageLags)
    };
    assert!(!noticed("restore_best = false"), "of nine steps the first is 6 %");
    // No improvement can be as large as this: the first epoch is the best, and the first of its three steps is 49 %.
    assert!(noticed("restore_best = true, min_delta = 900.0"));
}

#[test]
fn averages_survive_an_interruption() {
    let job = format!("{JOB}[modifiers.ema]\ndecay = 0.8\n");
    let whole = run_alone(&job, 1).2;
    for stop_after in [3, 8] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
        train(&job, 2, false, dir.path(), &[], &link).unwrap_err();
        let resume = link.checkpoints.lock().unwrap().clone();
        train(&job, 1, false, dir.path(), &resume, &Recorder::default()).unwrap();
        assert_eq!(model_of(dir.path()), whole, "stopped after {stop_after}");
    }
}

#[test]
fn a_search_for_a_rate_decides_alike_on_all_ranks_and_leaves_the_network_as_it_was() {
    let job = one_stage("lr_find = { steps = 40, end = 3.0, smooth = 0.9, use = \"valley\" }");
    let (report, link, model, _dir) = run_alone(&job, 1);
    let found = &report.lr_find[0];
    assert!(found.rates.len() > 10 && found.rates.len() <= 40);
    let (valley, steepest) = (found.valley.unwrap(), found.steepest.unwrap());
    assert!((1e-6..1.0).contains(&valley) && (1e-6..1.0).contains(&steepest), "{found:?}");
    assert_eq!(rates(&link)[0], valley);
    assert!(report.to_text().contains(&format!("suggested learning rate {valley:.2e} (valley)")));
    assert!(link.notices.lock().unwrap().contains(&Notice::RateFound));
    let swept = link.rows.lock().unwrap().iter().filter(|r| r.values.contains_key("lr_find.loss")).count();
    assert_eq!(swept, found.rates.len());
    let (again, _, same, _dir) = run_alone(&job, 3);
    assert_eq!((&again.lr_find, same), (&report.lr_find, model));
    // The same as a run that is told the rate.
    let told = one_stage("").replace("lr = 0.01", &format!("lr = {valley:e}"));
    let plain = run_alone(&told, 1).0;
    assert_eq!((plain.evaluation, plain.steps), (report.evaluation, report.steps), "what was undone does not count");
    let only = run_alone(&job.replace("epochs = 3", "epochs = 0"), 2).0;
    assert_eq!((only.lr_find, only.steps), (report.lr_find, 0));
}

#[test]
fn a_report_says_which_epoch_it_is_of_where_the_best_one_is_kept() {
    let job = one_stage("").replace("epochs = 3", "epochs = 4");
    let (report, ..) = run_alone(&job, 1);
    let best = report.history.iter().fold(&report.history[0], |best, epoch| {
        if epoch.values["val.accuracy"] > best.values["val.accuracy"] { epoch } else { best }
    });
    let of = |name: &str| report.selection.iter().find(|p| p.criterion == name).map(|p| (p.epoch, p.used));
    assert_eq!((of("the model"), of("val.accuracy")), (Some((best.epoch, false)), Some((best.epoch, true))));
    assert_eq!(report.evaluation.accuracy, best.values["val.accuracy"]);
    let text = report.to_text();
    let said = format!("the model is of epoch {} of 4 of stage `all`, picked by `val.accuracy` on these", best.epoch);
    assert!(text.contains(&said) && !text.contains("oracle"), "{text}");
    let (last, ..) = run_alone(&job.replace("restore_best = true", "restore_best = false"), 1);
    assert!(last.selection.is_empty() && !last.to_text().contains("the model is of epoch"));
}

#[test]
fn grains_add_up_to_the_step_of_the_whole_batch() {
    // Nothing depends on the grain here: no dropout, no statistics of batches. 64 samples are one step.
    let head = JOB.split("[[stage]]").next().unwrap();
    let head = head.replace("\"adamw\", clip_norm = 1.0", "\"sgd\", momentum = 0.0, weight_decay = 0.0");
    let head =
        head.replace("dropout = 0.3, norm = \"batch\"", "").replace("batch = 23, grains = 5", "batch = 64, grains = G");
    let job = format!("{head}[[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1.0\nbn = \"affine_only\"\n");
    let gradient = |grains: usize| -> Vec<f64> {
        let job = job.replace("grains = G", &format!("grains = {grains}"));
        let dir = tempfile::tempdir().unwrap();
        train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        let config = config(&job, dir.path(), "cache", Vec::new());
        let classes: Vec<String> = (0..8).map(|c| c.to_string()).collect();
        let net = Net::build(config.spec.model.as_ref().unwrap(), &classes, false, 7, &[].into()).unwrap();
        let bytes = std::fs::read(dir.path().join("work").join(file_name(1))).unwrap();
        let state = RunState::from_bytes(bytes, &net.network.initial).unwrap();
        let before = &net.network.initial.values;
        state.store.values.iter().zip(before).map(|(a, b)| f64::from(a - b)).collect()
    };
    let whole = gradient(1);
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(norm(&whole) > 1e-3);
    for grains in [2, 8, 64] {
        let off: Vec<f64> = gradient(grains).iter().zip(&whole).map(|(a, b)| a - b).collect();
        assert!(norm(&off) <= 2e-6 * norm(&whole), "{grains} grains: {:e}", norm(&off) / norm(&whole));
    }
}

#[test]
fn the_recipe_of_fastai_runs_in_one_line() {
    let head = JOB.split("[[stage]]").next().unwrap().replace(", clip_norm = 1.0", "");
    let job = head.replace("schema = 1", "schema = 1\nrecipe = { name = \"fine_tune\", epochs = 2 }");
    let (report, link, model, _dir) = run_alone(&job, 1);
    assert_eq!(model, run_alone(&job, 2).2);
    let stages: Vec<&str> = report.history.iter().map(|h| h.stage.as_str()).collect();
    assert_eq!(stages, ["freeze", "fine_tune", "fine_tune"]);
    // combined_cos at the start of both stages: base/25, then base/2/5.
    let rates = rates(&link);
    assert!((rates[0] - 2e-3 / 25.0).abs() < 1e-12 && (rates[rates.len() / 3] - 1e-3 / 5.0).abs() < 1e-12, "{rates:?}");
    assert_eq!(report.stages[1].lr, [1e-5, 1e-3]);
}

#[test]
fn every_way_of_distilling_gives_the_same_file_for_any_number_of_ranks() {
    let job = super::JOB.replace("kind = \"finetune\"", "kind = \"distill\"");
    let job = format!("{job}\n[nets.teacher]\nbackbone = \"resnet20\"\n[objective]\n");
    let mut files = std::collections::BTreeSet::new();
    let methods = [
        "method = \"logits\"",
        "method = \"hint\"",
        "method = \"cosine\"",
        "method = \"relational\"",
        "teacher_weights = [2, 1]\n[nets.teacher_2]\nbackbone = \"small_cnn\"",
    ];
    for (i, method) in methods.iter().enumerate() {
        let job = format!("{job}{method}\n");
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        train(&job, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
        train(&job, 2 + i % 2, false, dirs[1].path(), &[], &Recorder::default()).unwrap();
        assert_eq!(model_of(dirs[0].path()), model_of(dirs[1].path()), "{method}");
        assert!(files.insert(model_of(dirs[0].path()).to_hex().to_string()), "{method} changes nothing");
    }
}
