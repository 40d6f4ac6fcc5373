//! Whole runs: the same bits for any number of ranks, cold or warm cache, interrupted or not.

/// Two stages: one epoch of what is named, then two of everything at the last rate; batch-norms learn in both.
macro_rules! stages {
    ($name:literal, $train:literal, $lr:literal) => {
        concat!(
            "[[stage]]\nname = \"",
            $name,
            "\"\nepochs = 1\ntrain = ",
            $train,
            "\nlr = 0.003\nbn = \"train\"\n",
            "[[stage]]\nname = \"all\"\nepochs = 2\ntrain = [\"*\"]\nlr = ",
            $lr,
            "\nbn = \"train\"\n"
        )
    };
}

mod adapt;
mod audio;
mod by_layer;
mod coupled;
mod distill;
mod fewshot;
mod forget;
mod lockstep;
mod masked;
mod multitask;
mod pairs;
mod parts;
mod precision;
mod strokes;
mod techniques;
mod text;
mod verified;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tl_proto::spec::JobSpec;

use super::{Config, export::Report, net::Net, run, state::RunState, teach};
use crate::{
    Error, Result,
    collective::{Solo, on_loopback},
    link::{Link, Notice, Row},
};

/// Odd batch, dropout, mixup, batch statistics per grain, clipping, three stages that unfreeze downwards.
const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune", seed = 7 }
data = { format = "generated", train = "source", val = "source", batch = 23, grains = 5, params = { train_samples = 8, val_samples = 5 }, augment = { flip = true, views = 2 } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
optimizer = { name = "adamw", clip_norm = 1.0 }
stop = { monitor = "val.accuracy", restore_best = true }
checkpoint = { every = 2 }
[[stage]]
name = "head"
epochs = 2
train = ["head"]
lr = 0.01
[[stage]]
name = "top"
epochs = 2
train = ["head", "block3"]
lr = 0.003
bn = "train"
layer_decay = 0.8
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.001
schedule = "cosine"
bn = "affine_only"
"#;

#[derive(Clone, Default)]
struct Recorder {
    rows: Arc<Mutex<Vec<Row>>>,
    checkpoints: Arc<Mutex<Vec<PathBuf>>>,
    notices: Arc<Mutex<Vec<Notice>>>,
    activities: Arc<Mutex<BTreeSet<String>>>,
    stop_after: Option<u64>,
    compares: bool,
}

impl Link for Recorder {
    fn row(&mut self, row: &Row) {
        self.rows.lock().unwrap().push(row.clone());
    }
    fn activity(&mut self, name: &str, _: u64, _: u64) {
        self.activities.lock().unwrap().insert(name.to_owned());
    }
    fn checkpoint(&mut self, _: u64, path: &Path) {
        self.checkpoints.lock().unwrap().insert(0, path.to_owned());
    }
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, notice: Notice, _: &str) {
        self.notices.lock().unwrap().push(notice);
    }
    fn compares(&self) -> bool {
        self.compares
    }
    fn stop_requested(&self) -> bool {
        let done = self.rows.lock().unwrap().last().map_or(0, |r| r.step);
        self.stop_after.is_some_and(|s| done >= s)
    }
}

fn config(job: &str, dir: &Path, cache: &str, resume: Vec<PathBuf>) -> Config {
    let spec = JobSpec::from_toml(job, &[]).unwrap();
    tl_proto::spec::check(&spec, &crate::catalog()).unwrap();
    Config {
        spec,
        inputs: [].into(),
        pushed: [].into(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        work: dir.join("work"),
        cache: dir.join(cache),
        cache_bytes: 1 << 30,
        features: Vec::new(),
        resume,
        place: Default::default(),
    }
}

/// Runs with `world` ranks, each with a cache of its own if `apart`.
fn train(job: &str, world: usize, apart: bool, dir: &Path, resume: &[PathBuf], link: &Recorder) -> Result<Report> {
    train_each(&vec![job; world], apart, dir, resume, link)
}

/// The same with a job for each rank: what nodes see may differ.
fn train_each(jobs: &[&str], apart: bool, dir: &Path, resume: &[PathBuf], link: &Recorder) -> Result<Report> {
    let world = jobs.len();
    let weights: Vec<u32> = (1..=world as u32).collect();
    let results = on_loopback(&weights, Duration::from_secs(10), |group| {
        let rank = group.rank();
        let cache = if apart { format!("cache{rank}") } else { "cache".into() };
        let config = config(jobs[rank], dir, &cache, resume.to_vec());
        let mut link = link.clone();
        // As a rank's process does: its run is inside the pool and holds one of its threads. Here one of two, or the
        // only one.
        let pool = crate::num::pool::build(1 + (world + rank) % 2);
        pool.install(|| run(&config, group, &mut link))
    });
    let results = results.unwrap();
    let errors = results.iter().filter_map(|r| r.as_ref().err());
    errors.for_each(|e| assert!(!e.to_string().contains("panicked"), "{e}"));
    results.into_iter().next().unwrap()
}

/// A job by one rank without a break, and stopped after so many steps and gone on with by others: one model. What both
/// runs report.
fn gone_on(job: &str, stop_after: u64, worlds: [usize; 2]) -> [Report; 2] {
    let (undisturbed, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = train(job, 1, false, undisturbed.path(), &[], &Recorder::default()).unwrap();
    let link = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
    train(job, worlds[0], false, dir.path(), &[], &link).unwrap_err();
    let resume = link.checkpoints.lock().unwrap().clone();
    assert!(!resume.is_empty(), "it begins anew");
    let later = train(job, worlds[1], false, dir.path(), &resume, &Recorder::default()).unwrap();
    assert_eq!(model_of(dir.path()), model_of(undisturbed.path()), "stopped after {stop_after}");
    [whole, later]
}

/// Has units of what a job's teachers say done, each on a node of its own; what they leave.
fn units(job: &str, units: usize, dir: &Path) -> Vec<PathBuf> {
    let one = |unit: usize| {
        let config = config(job, &dir.join(format!("node{unit}")), "cache", Vec::new());
        teach::unit(&config, (unit, units), &mut Recorder::default()).unwrap();
        config.work.join("features")
    };
    (0..units).map(one).collect()
}

/// Trains on a node that has seen no teacher, with what others have left; how often one was asked, and what was told.
fn taught(job: &str, features: Vec<PathBuf>, dir: &Path) -> (u64, Vec<Notice>) {
    let config = Config { features, ..config(job, dir, "cache", Vec::new()) };
    let mut link = Recorder::default();
    let report = crate::num::pool::build(2).install(|| run(&config, &mut Solo, &mut link)).unwrap();
    let notices = link.notices.lock().unwrap().clone();
    (report.prefix.computed, notices)
}

/// Lines of `[objective]` for the methods of a kind of job that are in none of `lines`, each as it is if nothing is said: a
/// new method is tried with those that are named.
fn other_methods(kind: &str, lines: &[&str]) -> Vec<String> {
    let kind = crate::catalog().objectives.into_iter().find(|e| e.name == kind).unwrap();
    let all = kind.methods.iter().map(|m| format!("method = \"{}\"", m.name));
    all.filter(|line| !lines.iter().any(|named| named.starts_with(line.as_str()))).collect()
}

fn model_of(dir: &Path) -> blake3::Hash {
    blake3::hash(&std::fs::read(dir.join("work/model/model.safetensors")).unwrap())
}

#[test]
fn any_number_of_ranks_and_any_cache_gives_the_same_file_and_series() {
    let mut wanted = None;
    for (world, apart) in [(1, false), (2, false), (3, true), (5, true)] {
        let dir = tempfile::tempdir().unwrap();
        for warm in [false, true] {
            let link = Recorder::default();
            let report = train(JOB, world, apart, dir.path(), &[], &link).unwrap();
            let rows: Vec<_> = link
                .rows
                .lock()
                .unwrap()
                .iter()
                .map(|r| (r.step, r.values.get("train.loss").map(|v| v.to_bits())))
                .collect();
            let got = (model_of(dir.path()), rows, report.evaluation.clone());
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks, warm: {warm}");
            assert_eq!(
                report.stages.iter().map(|s| s.first_unit.as_str()).collect::<Vec<_>>(),
                ["head.0", "block3", "block0"]
            );
        }
    }
}

#[test]
fn mixing_gives_the_same_file_for_any_number_of_ranks() {
    let job = format!("{JOB}\n[modifiers.mixup]\nalpha = 0.4\n[modifiers.cutmix]\n");
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let link = Recorder::default();
    let report = train(&job, 1, false, dirs[0].path(), &[], &link).unwrap();
    train(&job, 2, false, dirs[1].path(), &[], &Recorder::default()).unwrap();
    assert_eq!(model_of(dirs[0].path()), model_of(dirs[1].path()));
    // How often a mixed sample is judged by its own label says nothing of what was asked for.
    let rows = link.rows.lock().unwrap();
    let mut told = rows.iter().map(|row| &row.values).chain(report.history.iter().map(|epoch| &epoch.values));
    assert!(told.all(|values| !values.contains_key("train.accuracy") && !values.contains_key("train.epoch_accuracy")));
    assert!(report.history.iter().all(|epoch| epoch.values.contains_key("train.loss")));
}

#[test]
fn a_frozen_prefix_runs_once_per_sample_and_view_and_never_again() {
    let job = JOB.split("[[stage]]\nname = \"all\"").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let first = train(job, 2, true, dir.path(), &[], &Recorder::default()).unwrap();
    // 8 classes: 64 training samples of 2 views, 40 validation samples.
    assert_eq!(first.prefix.computed, 64 * 2 + 40);
    let second = train(job, 2, true, dir.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(second.prefix.computed, 0);
    let alone = train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(alone.prefix.computed, 64 * 2 + 40, "a machine without a cache computes for itself");
}

#[test]
fn a_stopped_run_goes_on_with_other_ranks_and_ends_with_the_same_file() {
    let undisturbed = tempfile::tempdir().unwrap();
    train(JOB, 1, false, undisturbed.path(), &[], &Recorder::default()).unwrap();
    for (stop_after, worlds) in [(1, [2, 1]), (4, [1, 3]), (9, [3, 2]), (13, [2, 2])] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
        let error = train(JOB, worlds[0], false, dir.path(), &[], &link).unwrap_err();
        assert!(matches!(error, Error::Stopped | Error::LostPeer { .. }), "{error}");
        let resume = link.checkpoints.lock().unwrap().clone();
        let again = Recorder::default();
        train(JOB, worlds[1], false, dir.path(), &resume, &again).unwrap();
        assert_eq!(model_of(dir.path()), model_of(undisturbed.path()), "stopped after {stop_after}");
        assert!(resume.is_empty() || again.notices.lock().unwrap().contains(&Notice::Resumed));
    }
}

#[test]
fn a_truncated_checkpoint_is_passed_over_and_said_so() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(JOB, 1, false, a.path(), &[], &Recorder::default()).unwrap();
    let link = Recorder { stop_after: Some(7), ..Recorder::default() };
    train(JOB, 1, false, b.path(), &[], &link).unwrap_err();
    let resume = link.checkpoints.lock().unwrap().clone();
    let bytes = std::fs::read(&resume[0]).unwrap();
    std::fs::write(&resume[0], &bytes[..bytes.len() / 2]).unwrap();
    let again = Recorder::default();
    train(JOB, 1, false, b.path(), &resume, &again).unwrap();
    assert_eq!(model_of(a.path()), model_of(b.path()));
    assert_eq!(again.notices.lock().unwrap()[..2], [Notice::CheckpointDamaged, Notice::Resumed]);
}

#[test]
fn the_fast_reduction_has_one_ranks_loss_and_gradient_norm_in_its_first_step() {
    let job = JOB.replace("schema = 1", "schema = 1\ncluster = { reduction = \"fast\" }");
    let first = |world| {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder::default();
        train(&job, world, false, dir.path(), &[], &link).unwrap();
        let rows = link.rows.lock().unwrap();
        (rows[0].values["grad_norm"], rows[0].values["train.loss"])
    };
    let (one, three) = (first(1), first(3));
    assert!((one.0 - three.0).abs() <= 1e-6 * one.0 && (one.1 - three.1).abs() <= 1e-9 * one.1, "{one:?} {three:?}");
}

#[test]
fn ranks_that_see_other_samples_are_refused_before_they_train() {
    let other = JOB.replace("train_samples = 8", "train_samples = 9");
    let dir = tempfile::tempdir().unwrap();
    let error = train_each(&[JOB, JOB, &other], true, dir.path(), &[], &Recorder::default()).unwrap_err();
    assert_eq!(error.to_string(), "rank 2 sees other samples in `data.train` than rank 0");
}

/// One step of plain gradient descent, at a rate so large that the values are the gradient.
#[test]
fn gradients_of_the_fast_reduction_are_one_ranks_to_a_millionth() {
    let head = JOB.split("[[stage]]").next().unwrap().replace("every = 2", "every = 1");
    let job = head.replace("\"adamw\", clip_norm = 1.0", "\"sgd\", momentum = 0.0, weight_decay = 0.0")
        + "[[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1000.0\nbn = \"train\"\n";
    let gradient = |world: usize, reduction: &str| -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        let job = job.replace("schema = 1", &format!("schema = 1\ncluster = {{ reduction = \"{reduction}\" }}"));
        let link = Recorder { stop_after: Some(1), ..Recorder::default() };
        // What so large a step does to the loss is no matter.
        let ended = train(&job, world, false, dir.path(), &[], &link);
        let config = config(&job, dir.path(), "cache", Vec::new());
        let classes: Vec<String> = (0..8).map(|c| c.to_string()).collect();
        let net = Net::build(config.spec.model.as_ref().unwrap(), &classes, false, 7, &[].into()).unwrap();
        // Written, if not published: the next step may be beyond all numbers.
        let first = dir.path().join("work/checkpoint-0000000001.tlc");
        let state =
            RunState::from_bytes(std::fs::read(&first).unwrap_or_else(|_| panic!("{ended:?}")), &net.network.initial)
                .unwrap();
        let before = &net.network.initial.values;
        state.store.values.iter().zip(before).map(|(a, b)| f64::from(a - b) / 1e3).collect()
    };
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let one = gradient(1, "fast");
    assert!(norm(&one) > 1e-3);
    for world in [2, 3, 5] {
        let off: Vec<f64> = gradient(world, "fast").iter().zip(&one).map(|(a, b)| a - b).collect();
        assert!(norm(&off) <= 1e-6 * norm(&one), "{world} ranks: {:e}", norm(&off) / norm(&one));
    }
    assert_eq!(gradient(3, "ordered"), gradient(1, "ordered"));
}

#[test]
fn a_full_disk_is_survived_so_often_and_then_named() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the folder should be: every checkpoint fails.
    std::fs::write(dir.path().join("work"), b"").unwrap();
    let link = Recorder::default();
    let error = train(JOB, 1, false, dir.path(), &[], &link).unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error}");
    assert_eq!(link.notices.lock().unwrap().iter().filter(|n| **n == Notice::CheckpointFailed).count(), 4);
}

#[test]
fn a_loss_that_is_not_finite_names_its_step() {
    let job =
        JOB.replace("lr = 0.01", "lr = 900.0").replace("\"adamw\", clip_norm = 1.0", "\"sgd\", weight_decay = 10.0");
    let error = train(&job, 1, false, tempfile::tempdir().unwrap().path(), &[], &Recorder::default()).unwrap_err();
    assert!(matches!(&error, Error::NotFinite(m) if m.contains("step ")), "{error}");
}

#[test]
fn features_of_a_prefix_that_was_trained_in_between_are_not_used_again() {
    let again = "\n[[stage]]\nname = \"again\"\nepochs = 1\ntrain = [\"head\"]\nlr = 0.01\n";
    let job = JOB.replace("restore_best = true", "patience = 9") + again;
    let report = train(&job, 2, false, tempfile::tempdir().unwrap().path(), &[], &Recorder::default()).unwrap();
    // The last evaluation starts from pixels here, that of the last epoch from cached features.
    assert_eq!(report.history.last().unwrap().values["val.loss"], report.evaluation.loss);
}

#[test]
fn a_plateau_lowers_the_rate_and_patience_ends_the_stage() {
    // No improvement can be as large as this: every epoch after the first one counts as none.
    let stop = "monitor = \"val.loss\", min_delta = 900.0, patience = 3, plateau_factor = 0.5, plateau_patience = 2";
    let job = JOB.replace("monitor = \"val.accuracy\", restore_best = true", stop).replace("epochs = 2", "epochs = 20");
    let job = job.split("[[stage]]\nname = \"top\"").next().unwrap();
    let link = Recorder::default();
    let report = train(job, 1, false, tempfile::tempdir().unwrap().path(), &[], &link).unwrap();
    assert_eq!(report.history.len(), 4, "the first epoch, and three without improvement");
    assert!(link.notices.lock().unwrap().contains(&Notice::StoppedEarly));
    let rates: Vec<f64> = link.rows.lock().unwrap().iter().filter_map(|r| r.values.get("lr").copied()).collect();
    let per_epoch = rates.len() / 4;
    let by_epoch: Vec<f64> = rates.chunks(per_epoch).map(|e| e[0]).collect();
    assert_eq!(by_epoch, [0.01, 0.01, 0.01, 0.005]);
}

#[test]
fn a_student_learns_from_an_exported_teacher_whose_logits_are_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let one_stage = |kind: &str, nets: &str| {
        let head = JOB.split("[[stage]]").next().unwrap().replace("\"finetune\"", kind);
        format!("{head}{nets}\n[[stage]]\nname = \"all\"\nepochs = 2\ntrain = [\"*\"]\nlr = 0.003\nbn = \"train\"\n")
    };
    train(&one_stage("\"finetune\"", ""), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let file = dir.path().join("work/model/model.safetensors");
    let head = "{ hidden = [16], dropout = 0.3, norm = \"batch\" }";
    let teacher =
        format!("[nets.teacher]\nbackbone = \"small_cnn\"\nweights = \"{}\"\nhead = {head}\n", file.display());
    let student = one_stage("\"distill\"", &teacher);
    let run = |world| {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&student, world, true, dir.path(), &[], &Recorder::default()).unwrap();
        // All stages train everything: the only frozen thing is the teacher, on 64 samples of 2 views.
        assert_eq!(report.prefix.computed, 64 * 2);
        model_of(dir.path())
    };
    assert_eq!(run(1), run(2));
}

/// A folder of twelve photos in two classes, of which `b/3.png` is none.
fn photos_of_which_one_is_none(dir: &Path) -> String {
    for (class, shade) in [("a", 40u8), ("b", 200)] {
        for i in 0..6u8 {
            let path = dir.join(format!("data/{class}/{i}.png"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(40, 36, image::Rgb([shade, shade + i, 9])).save(path).unwrap();
        }
    }
    std::fs::write(dir.join("data/b/3.png"), b"not an image").unwrap();
    dir.join("data").display().to_string()
}

#[test]
fn a_sample_that_will_not_decode_fails_the_job_by_name_or_is_left_out_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let folder = photos_of_which_one_is_none(dir.path());
    std::fs::write(dir.path().join("data/a/Thumbs.db"), b"no sample at all").unwrap();
    let generated = JOB.lines().find(|l| l.starts_with("data =")).unwrap();
    let photos = format!(
        "data = {{ format = \"image_folder\", train = \"{folder}\", val = \"{folder}\", batch = 6, skip_bad = 0 }}"
    );
    let job = JOB.replace(generated, &photos);
    let error = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err();
    assert!(error.to_string().starts_with("`b/3.png` cannot be decoded"), "{error}");
    let job = job.replace("skip_bad = 0", "skip_bad = 1");
    let run = |world| {
        let link = Recorder::default();
        let report = train(&job, world, false, dir.path(), &[], &link).unwrap();
        assert_eq!(report.samples, [11, 11]);
        let told = |notice: Notice| link.notices.lock().unwrap().iter().filter(|n| **n == notice).count();
        assert_eq!((told(Notice::SamplesSkipped), told(Notice::FilesPassedOver)), (2, 2));
        model_of(dir.path())
    };
    assert_eq!(run(1), run(2));
    let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
    let said = "`data.val`: 1 file is no JPEG or PNG image, first `a/Thumbs.db`: passed over".to_owned();
    assert!(plan.warnings.contains(&said), "{:?}", plan.warnings);
}
