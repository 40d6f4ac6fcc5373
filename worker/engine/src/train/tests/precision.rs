//! Jobs in mixed precision: the same promises, values near those of f32, and parameters that stay f32.

use std::collections::BTreeMap;

use tl_proto::spec::Precision;

use super::{
    text::{job, sentences, stage},
    *,
};
use crate::{
    num::bf16,
    predict::{Asked, Model},
    train::probe::probe,
};

fn within(job: &str, precision: Precision) -> String {
    let said = format!("backbone = \"small_cnn\", precision = \"{precision}\",");
    let out = job.replace("backbone = \"small_cnn\",", &said);
    assert_ne!(out, job);
    out
}

fn in_bf16(job: &str) -> String {
    within(job, Precision::Bf16)
}

/// One stage that trains everything.
fn one_stage(epochs: u32, lr: f64) -> String {
    let head = JOB.split("[[stage]]").next().unwrap();
    format!("{head}[[stage]]\nname = \"all\"\nepochs = {epochs}\ntrain = [\"*\"]\nlr = {lr}\nbn = \"train\"\n")
}

#[test]
fn ranks_and_interruptions_do_not_show_and_the_precision_does() {
    let job = in_bf16(JOB);
    let mut wanted = None;
    for world in [1, 2, 3] {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let report = train(&job, world, false, dir.path(), &[], &link).unwrap();
        let rows: Vec<_> =
            link.rows.lock().unwrap().iter().map(|r| (r.step, r.values.get("train.loss").copied())).collect();
        let got = (model_of(dir.path()), rows, report.evaluation.clone());
        assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks");
    }
    let wanted = wanted.unwrap();
    for (stop_after, worlds) in [(4, [1, 3]), (9, [3, 2])] {
        let (dir, link) =
            (tempfile::tempdir().unwrap(), Recorder { stop_after: Some(stop_after), ..Recorder::default() });
        train(&job, worlds[0], false, dir.path(), &[], &link).unwrap_err();
        let resume = link.checkpoints.lock().unwrap().clone();
        assert!(!resume.is_empty());
        train(&job, worlds[1], false, dir.path(), &resume, &Recorder::default()).unwrap();
        assert_eq!(model_of(dir.path()), wanted.0, "stopped after {stop_after}");
    }
    let dir = tempfile::tempdir().unwrap();
    let link = Recorder::default();
    train(JOB, 1, false, dir.path(), &[], &link).unwrap();
    assert_ne!(wanted.1[0].1, link.rows.lock().unwrap()[0].values.get("train.loss").copied());
}

#[test]
fn sequences_too_are_the_same_for_any_number_of_ranks() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    for backbone in ["transformer_small", "embedding_lstm"] {
        let run = |world: usize, precision: &str| {
            let dir = tempfile::tempdir().unwrap();
            let model = format!("{{ backbone = \"{backbone}\", input = 16, precision = \"{precision}\" }}");
            let job = job(data.path(), &model, &stage("all", "\"*\"", 1, 0.002));
            train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
            model_of(dir.path())
        };
        let full = run(1, "f32");
        for precision in ["tf32", "bf16"] {
            let one = run(1, precision);
            assert_eq!(one, run(3, precision), "{backbone} in {precision}");
            assert_ne!(one, full, "{backbone} in {precision}");
        }
    }
}

#[test]
fn features_of_another_precision_are_not_used() {
    let job = JOB.split("[[stage]]\nname = \"all\"").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let computed = |job: &str| train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap().prefix.computed;
    let jobs = [job.to_owned(), within(job, Precision::Tf32), in_bf16(job)];
    assert_eq!(jobs.each_ref().map(|job| computed(job)), [64 * 2 + 40; 3]);
    let after = model_of(dir.path());
    assert_eq!(jobs.each_ref().map(|job| computed(job)), [0; 3]);
    assert_eq!(model_of(dir.path()), after);
}

/// Losses of the run below in bf16 end within this of those in f32, relative; and those of a model, scored in f32, lie within
/// this of what its job said.
const NEAR: f64 = 0.03;

#[test]
fn a_network_learns_as_well_as_in_f32() {
    let job = one_stage(20, 0.003).replace("augment = { flip = true, views = 2 }", "augment = {}");
    let job = job.replace("dropout = 0.3, ", "").replace("grains = 5", "grains = 1") + "schedule = \"cosine\"\n";
    let losses = |job: &str| -> Vec<f64> {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        train(job, 1, false, dir.path(), &[], &link).unwrap();
        let rows = link.rows.lock().unwrap();
        rows.iter().filter_map(|r| r.values.get("train.loss").copied()).collect()
    };
    let (full, mixed) = (losses(&job), losses(&in_bf16(&job)));
    let ends = |l: &[f64]| l[l.len() - 6..].iter().sum::<f64>() / 6.0;
    assert!(ends(&full) < 0.5 * full[0], "{} of {}", ends(&full), full[0]);
    let far = (ends(&mixed) - ends(&full)).abs() / ends(&full);
    assert!(far < NEAR, "{} against {}", ends(&mixed), ends(&full));
}

#[test]
fn parameters_take_updates_that_bf16_would_lose() {
    // So low a rate that the steps of all epochs come to less than half a step of bf16 for nearly every weight.
    let job = in_bf16(&one_stage(4, 1e-6)).replace(", restore_best = true", "");
    let dir = tempfile::tempdir().unwrap();
    train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let bytes = std::fs::read(dir.path().join("work/model/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = config(&job, dir.path(), "cache", Vec::new());
    let classes: Vec<String> = (0..8).map(|c| c.to_string()).collect();
    let net = Net::build(config.spec.model.as_ref().unwrap(), &classes, false, 7, &[].into()).unwrap();
    let store = &net.network.initial;
    assert_eq!(store.precision, Precision::Bf16);
    let (mut moved, mut all) = (0, 0);
    for entry in store.params.iter().filter(|e| e.name.starts_with("block") && e.decays) {
        let tensor = file.tensor(&entry.name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        let after = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        for (before, after) in store.values[entry.range.clone()].iter().zip(after) {
            let exponent = f32::from_bits(bf16::rounded(*before).to_bits() & 0x7f80_0000);
            let half_a_step = exponent / 256.0;
            moved += usize::from(after != *before && (after - before).abs() < half_a_step);
            all += 1;
        }
    }
    assert!(moved * 10 > all * 9, "{moved} of {all} weights moved by less than half a step");
}

#[test]
fn an_exported_model_is_run_in_f32_and_the_plan_says_what_the_job_computes_in() {
    let params = BTreeMap::from([("train_samples".into(), 8.into()), ("val_samples".into(), 5.into())]);
    let mixed = [Precision::Tf32, Precision::Bf16].map(|precision| (within(JOB, precision), Some(precision)));
    for (job, planned) in [(JOB.to_owned(), None)].into_iter().chain(mixed) {
        let dir = tempfile::tempdir().unwrap();
        let plan = probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        assert_eq!(plan.precision.get("model").copied(), planned);
        let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        let model = Model::open(&dir.path().join("work/model")).unwrap();
        let again = model.evaluate(&Asked::of("generated", "source", params.clone(), 7)).unwrap();
        // Its job has scored it in the precision that it was trained in.
        assert_eq!(again.loss == report.evaluation.loss, planned.is_none());
        assert!((again.loss - report.evaluation.loss).abs() < NEAR * again.loss);
    }
}
