//! Batch-norms over the whole batch: `bn_scope = "batch"`.

use super::*;
use crate::train::state::file_name;

/// Every stage over the batch, and all of the network in one of them.
fn job() -> String {
    JOB.replace("name = \"head\"", "name = \"head\"\nbn_scope = \"batch\"")
        .replace("bn = \"train\"", "bn = \"train\"\nbn_scope = \"batch\"")
        .replace("train = [\"head\", \"block3\"]", "train = [\"*\"]")
        .replace("bn = \"affine_only\"", "bn = \"affine_only\"\nbn_scope = \"batch\"")
}

#[test]
fn any_number_of_ranks_gives_the_same_file_and_another_one_than_statistics_of_grains() {
    let mut wanted = None;
    // Of five ranks with weights 1 to 5, the first has no grain.
    for world in [1, 2, 3, 5] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder::default();
        let report = train(&job(), world, false, dir.path(), &[], &link).unwrap();
        let rows: Vec<_> =
            link.rows.lock().unwrap().iter().map(|r| (r.step, r.values.get("train.loss").copied())).collect();
        let got = (model_of(dir.path()), rows, report.evaluation.clone());
        assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks");
    }
    let dir = tempfile::tempdir().unwrap();
    let grains = job().replace("bn_scope = \"batch\"", "bn_scope = \"grain\"");
    train(&grains, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert_ne!(wanted.unwrap().0, model_of(dir.path()));
}

#[test]
fn a_stopped_run_goes_on_with_other_ranks_and_ends_with_the_same_file() {
    let undisturbed = tempfile::tempdir().unwrap();
    train(&job(), 1, false, undisturbed.path(), &[], &Recorder::default()).unwrap();
    for (stop_after, worlds) in [(4, [1, 3]), (9, [3, 2])] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
        let error = train(&job(), worlds[0], false, dir.path(), &[], &link).unwrap_err();
        assert!(matches!(error, Error::Stopped | Error::LostPeer { .. }), "{error}");
        let resume = link.checkpoints.lock().unwrap().clone();
        train(&job(), worlds[1], false, dir.path(), &resume, &Recorder::default()).unwrap();
        assert_eq!(model_of(dir.path()), model_of(undisturbed.path()), "stopped after {stop_after}");
    }
}

#[test]
fn grains_are_one_grain_of_the_whole_batch_to_rounding_in_gradients_and_running_statistics() {
    // 64 samples are one step; of plain gradient descent at rate 1, so that the change of the weights is the gradient.
    let head = JOB.split("[[stage]]").next().unwrap();
    let head = head.replace("\"adamw\", clip_norm = 1.0", "\"sgd\", momentum = 0.0, weight_decay = 0.0");
    let head = head.replace("dropout = 0.3, ", "").replace("batch = 23, grains = 5", "batch = 64, grains = G");
    let stage =
        "[[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1.0\nbn = \"train\"\nbn_scope = \"SCOPE\"\n";
    let step = |grains: usize, scope: &str, world: usize| -> [Vec<f64>; 2] {
        let job = format!("{head}{stage}").replace("grains = G", &format!("grains = {grains}")).replace("SCOPE", scope);
        let dir = tempfile::tempdir().unwrap();
        train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        let config = config(&job, dir.path(), "cache", Vec::new());
        let classes: Vec<String> = (0..8).map(|c| c.to_string()).collect();
        let net = Net::build(config.spec.model.as_ref().unwrap(), &classes, false, 7, &[].into()).unwrap();
        let bytes = std::fs::read(dir.path().join("work").join(file_name(1))).unwrap();
        let (state, before) = (RunState::from_bytes(bytes, &net.network.initial).unwrap(), &net.network.initial);
        let change = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect();
        [change(&state.store.values, &before.values), change(&state.store.buffer_values, &before.buffer_values)]
    };
    let whole = step(1, "grain", 1);
    assert_eq!(step(1, "batch", 1), whole, "of one grain there is one sum");
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = |a: &[f64], b: &[f64]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b);
    // Also of one sample each, in whose own statistics there is nothing to learn.
    for (grains, world) in [(2, 1), (8, 3), (64, 2)] {
        for (ours, wanted) in step(grains, "batch", world).iter().zip(&whole) {
            assert!(off(ours, wanted) < 1e-5, "{grains} grains: {:e}", off(ours, wanted));
        }
    }
    assert!(off(&step(8, "grain", 1)[0], &whole[0]) > 1e-2);
}

#[test]
fn the_plan_says_what_it_costs_and_where_it_does_nothing() {
    let plan = |job: &str| crate::train::probe::probe(&config(job, Path::new("."), "cache", Vec::new())).unwrap();
    let told = plan(&job());
    assert_eq!(told.warnings.len(), 3, "{:?}", told.warnings);
    assert!(told.warnings[1].contains("stage `top` takes the statistics of 5 batch-norms"), "{:?}", told.warnings);
    assert_eq!(told.grain_samples, 23);
    let bare = plan(&job().replace(", norm = \"batch\"", ""));
    assert!(bare.warnings[0].contains("no batch-norm learns in stage `head`"), "{:?}", bare.warnings);
    let apart = plan(&job().replace("schema = 1", "schema = 1\ncluster = { ranks = \"2..4\" }"));
    assert_eq!(apart.grain_samples, 13, "three of five grains");
    let grains = plan(JOB);
    assert!(grains.warnings.is_empty() && grains.grain_samples == 5);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_step_on_every_rank() {
    let job =
        job().replace("lr = 0.01", "lr = 900.0").replace("\"adamw\", clip_norm = 1.0", "\"sgd\", weight_decay = 10.0");
    let error = train(&job, 3, false, tempfile::tempdir().unwrap().path(), &[], &Recorder::default()).unwrap_err();
    assert!(matches!(&error, Error::NotFinite(m) if m.contains("step ")), "{error}");
}
