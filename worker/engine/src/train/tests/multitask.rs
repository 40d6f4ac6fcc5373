//! Runs with several tasks: the same for any number of ranks, and what each task comes to.

use super::*;
use crate::predict::{Asked, Model};

/// Three tasks: shapes, whether they are outlines, and the shapes of another domain, fewer of them in a step. Two stages,
/// batch-norms that learn in the network and in heads, dropout, views, an odd batch and a tail.
const JOB: &str = concat!(
    r#"
schema = 1
job = { name = "t", kind = "multitask", seed = 3 }
data = { format = "generated", train = "source", val = "source", batch = 23, grains = 5, params = { train_samples = 8, val_samples = 5 }, augment = { flip = true, views = 2 } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
objective = { OBJECTIVE }
[tasks.outline]
classes = { plain = ["circle", "square", "triangle", "star-4"], outlined = ["ring", "square-outline", "triangle-outline", "star-6"] }
head = { dropout = 0.2 }
[tasks.other]
train = "target"
val = "target"
batch = 11
params = { train_samples = 7, val_samples = 4 }
head = { hidden = [12], norm = "batch" }
"#,
    stages!("top", r#"["head", "block3"]"#, r#"{ "*" = 0.003, "tasks.outline.head" = 0.001 }"#)
);

fn job(objective: &str) -> String {
    JOB.replace("OBJECTIVE", objective)
}

fn file(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("work/model/model.safetensors")).unwrap()
}

fn refused(job: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string()
}

#[test]
fn tasks_give_the_same_file_for_any_number_of_ranks_and_any_cache() {
    let methods = [
        "method = \"fixed\", weight = 0.7",
        "method = \"uncertainty\", label_smoothing = 0.1, variance_lr = 0.02",
        "method = \"gradnorm\", rate = 0.1",
    ];
    let others = other_methods("multitask", &methods).into_iter().map(|method| job(&method));
    let more = [
        job("method = \"gradnorm\"").replace("bn = \"train\"", "bn = \"train\"\nbn_scope = \"batch\""),
        format!("{}[modifiers.mixup]\n[modifiers.cutmix]\n", job("")),
    ];
    let mut files = std::collections::BTreeSet::new();
    for (i, job) in methods.into_iter().map(job).chain(more).chain(others).enumerate() {
        let mut wanted = None;
        for (world, apart) in [(1, false), (2 + i % 2, i % 2 == 0)] {
            let dir = tempfile::tempdir().unwrap();
            for warm in [false, true] {
                let report = train(&job, world, apart, dir.path(), &[], &Recorder::default())
                    .unwrap_or_else(|e| panic!("{job}: {e}"));
                let history: Vec<_> = report.history.iter().map(|h| format!("{:?}", h.values)).collect();
                let got = (model_of(dir.path()), history, report.tasks);
                assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks, warm: {warm}, {job}");
            }
        }
        assert!(files.insert(wanted.unwrap().0.to_hex().to_string()), "another objective changes nothing: {job}");
    }
}

#[test]
fn a_run_of_several_tasks_goes_on_where_it_stopped() {
    for method in ["gradnorm", "uncertainty"] {
        let job =
            job(&format!("method = \"{method}\"")).replace("objective =", "checkpoint = { every = 2 }\nobjective =");
        let [wanted, got] = gone_on(&job, 5, [2, 3]);
        assert_eq!((got.tasks, got.history), (wanted.tasks, wanted.history));
    }
}

#[test]
fn variances_learn_at_the_rate_of_the_stage_or_at_one_of_their_own() {
    for (given, rate) in [("", 0.003), (", variance_lr = 0.05", 0.05)] {
        let job = job(&format!("method = \"uncertainty\"{given}"));
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder { stop_after: Some(1), ..Recorder::default() });
        train(&job, 1, false, dir.path(), &[], &link).unwrap_err();
        let rows = link.rows.lock().unwrap().clone();
        let first = rows.iter().find(|r| r.values.contains_key("lr")).unwrap();
        for task in ["main", "outline", "other"] {
            // The first step of Adam is as long as the rate.
            let moved = first.values[&format!("tasks.{task}.weight")].ln().abs();
            assert!((moved - rate).abs() < 1e-3 * rate, "{task}: {moved} for {rate}");
        }
    }
}

#[test]
fn one_task_alone_is_fine_tuning_bit_by_bit() {
    let head = JOB.split("[tasks.outline]").next().unwrap();
    let stages = "[[stage]]\nname = \"top\"\nepochs = 1\ntrain = [\"head\", \"block3\"]\nlr = 0.003\nbn = \"train\"\n\
                  [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.003\nbn = \"train\"\n";
    let several = format!("{}{stages}", head.replace("objective = { OBJECTIVE }", ""));
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    for (job, dir) in [several.clone(), several.replace("multitask", "finetune")].iter().zip(&dirs) {
        train(job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    }
    assert_eq!(file(dirs[0].path()), file(dirs[1].path()));
}

#[test]
fn a_task_that_nothing_hears_leaves_the_first_head_as_fine_tuning_makes_it() {
    // The network is frozen and the other heads are not trained: what is left is the first task.
    let stage = |train: &str| format!("[[stage]]\nname = \"head\"\nepochs = 2\ntrain = [\"{train}\"]\nlr = 0.003\n");
    let head = JOB.split("[[stage]]").next().unwrap().replace("objective = { OBJECTIVE }", "");
    let alone = head.split("[tasks.outline]").next().unwrap().replace("multitask", "finetune");
    let jobs = [head.clone() + &stage("tasks.main.head"), alone + &stage("head")];
    let tensors = jobs.map(|job| {
        let dir = tempfile::tempdir().unwrap();
        train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        let file = file(dir.path());
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let all = tensors.iter().filter(|(name, _)| !name.starts_with("tasks."));
        let mut all: Vec<_> = all.map(|(name, t)| (name.to_owned(), t.data().to_vec())).collect();
        all.sort();
        all
    });
    assert_eq!(tensors[0], tensors[1]);
}

#[test]
fn what_is_minimised_is_the_sum_of_what_tasks_count_and_what_is_told_the_mean() {
    // Nothing moves: what is reported of a step is the network as it came.
    let job = job("weight = 0.5").replace("0.003", "1e-12").replace("0.001", "1e-12");
    let job = job.replace("[tasks.other]", "[tasks.other]\nweight = 3.0").replace("dropout = 0.3, ", "");
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&job, 2, false, dir.path(), &[], &link).unwrap();
    let rows = link.rows.lock().unwrap().clone();
    let steps: Vec<_> = rows.iter().filter(|r| r.values.contains_key("lr")).collect();
    assert_eq!(steps.len(), 9);
    for row in steps {
        let of = |task: &str| row.values[&format!("tasks.{task}.train_loss")];
        let want = 0.5 * of("main") + of("outline") + 3.0 * of("other");
        let objective = row.values["train.objective"];
        assert!((objective - want).abs() < 1e-5 * want, "{objective} for {want}");
        let mean = ["main", "outline", "other"].map(of).iter().sum::<f64>() / 3.0;
        assert!((row.values["train.loss"] - mean).abs() < 1e-12);
        let accuracy = ["main", "outline", "other"].map(|t| row.values[&format!("tasks.{t}.train_accuracy")]);
        assert!((row.values["train.accuracy"] - accuracy.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }
}

#[test]
fn tasks_on_mixed_samples_tell_losses_and_no_accuracy_in_training() {
    let job = format!("{}[modifiers.mixup]\n", job("weight = 0.5"));
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&job, 1, false, dir.path(), &[], &link).unwrap();
    let rows = link.rows.lock().unwrap();
    let steps: Vec<_> = rows.iter().filter(|r| r.values.contains_key("lr")).collect();
    assert!(!steps.is_empty());
    for row in steps {
        let mean = ["main", "outline", "other"].map(|t| row.values[&format!("tasks.{t}.train_loss")]);
        assert!((row.values["train.loss"] - mean.iter().sum::<f64>() / 3.0).abs() < 1e-12);
        assert!(row.values.contains_key("train.objective"));
        assert!(row.values.keys().all(|name| !name.contains("train") || !name.ends_with("accuracy")), "{row:?}");
    }
}

#[test]
fn every_head_is_in_the_file_and_says_what_it_says() {
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    let job = job("method = \"gradnorm\", rate = 0.2");
    let report = train(&job, 2, false, dir.path(), &[], &link).unwrap();
    let mean = report.tasks.values().map(|t| t.evaluation.accuracy).sum::<f64>() / 3.0;
    let last = &report.history.last().unwrap().values;
    assert!((last["val.accuracy"] - mean).abs() < 1e-12);
    assert_eq!(last["tasks.outline.accuracy"], report.tasks["outline"].evaluation.accuracy);
    let weights: Vec<f64> = report.tasks.values().map(|t| t.weight).collect();
    assert!(
        (weights.iter().sum::<f64>() - 3.0).abs() < 1e-9 && weights.iter().any(|w| (w - 1.0).abs() > 0.05),
        "{weights:?}"
    );
    assert_eq!(report.evaluation, report.tasks["main"].evaluation);
    let text = report.to_text();
    assert!(
        text.contains("task `main`, which counts") && text.contains("outlined") && text.contains("pentagon"),
        "{text}"
    );

    let folder = dir.path().join("work/model");
    let bytes = file(dir.path());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("fc.weight"), [8, 16]);
    assert_eq!(shape("tasks.outline.fc.weight")[0], 2);
    assert_eq!((shape("tasks.other.head.0.weight")[0], shape("tasks.other.fc.weight")), (12, vec![6, 12]));
    assert!(tensors.names().iter().all(|n| !n.starts_with("objective")));

    let model = Model::open(&folder).unwrap();
    let asked = |task: Option<&str>, place: &str, n: u32| {
        let params = [("val_samples".to_owned(), n.into())].into();
        Asked { task: task.map(str::to_owned), ..Asked::of("generated", place, params, 3) }
    };
    for (task, place, n) in
        [(None, "source", 5), (Some("main"), "source", 5), (Some("outline"), "source", 5), (Some("other"), "target", 4)]
    {
        let scored = model.evaluate(&asked(task, place, n)).unwrap();
        assert_eq!(scored, report.tasks[task.unwrap_or("main")].evaluation, "{task:?}");
    }
    let error = model.evaluate(&asked(Some("othr"), "target", 4)).unwrap_err();
    assert!(error.to_string().contains("no task `othr`"), "{error}");
    // Some of the classes that those of a task are made of, and others.
    let some = Asked { classes: vec!["circle".into(), "ring".into()], ..asked(Some("outline"), "source", 5) };
    let counts: Vec<_> = model.evaluate(&some).unwrap().classes.into_iter().map(|c| (c.class, c.support)).collect();
    assert_eq!(counts, [("outlined".to_owned(), 5), ("plain".to_owned(), 5)]);
    let error = model.evaluate(&asked(Some("outline"), "target", 4)).unwrap_err();
    assert!(error.to_string().contains("class `pentagon` of `target` is none that the model knows"), "{error}");
    let photo = dir.path().join("a.png");
    image::RgbImage::from_pixel(40, 32, image::Rgb([200, 30, 90])).save(&photo).unwrap();
    let said = model.predict_all(&photo).unwrap();
    let names: Vec<_> = said.iter().map(|s| (s.task.as_deref(), s.chances.len())).collect();
    assert_eq!(names, [(Some("main"), 8), (Some("other"), 6), (Some("outline"), 2)]);

    // All of it is where another job begins: with the heads, or with the network alone.
    let weights = format!("model = {{ weights = {:?}, backbone", folder.display().to_string());
    let again = job.replace("model = { backbone", &weights).replace("0.003", "1e-12").replace("0.001", "1e-12");
    let again =
        again.replace("bn = \"train\"", "bn = \"frozen\"").replace("norm = \"batch\"", "norm = \"batch\", keep = true");
    let again = again.replace("head = { dropout = 0.2 }", "head = { dropout = 0.2, keep = true }");
    let kept = tempfile::tempdir().unwrap();
    let same = train(&again, 1, false, kept.path(), &[], &Recorder::default()).unwrap();
    for (name, task) in &same.tasks {
        let (a, b) = (&task.evaluation, &report.tasks[name].evaluation);
        assert!((a.accuracy - b.accuracy).abs() < 0.1, "{name}: {a:?} {b:?}");
    }
    let again_bytes = file(kept.path());
    let learned = safetensors::SafeTensors::deserialize(&again_bytes).unwrap();
    let values = |t: safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for name in ["fc.weight", "tasks.outline.fc.weight", "tasks.outline.fc.bias", "tasks.other.fc.weight"] {
        let (a, b) = (values(tensors.tensor(name).unwrap()), values(learned.tensor(name).unwrap()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{name} is not that of the file");
    }
    // What came with the weights is held to them as such, and no head that is new.
    let spec = JobSpec::from_toml(&again, &[]).unwrap();
    let outline = ["outlined", "plain"].map(str::to_owned);
    for keep in [true, false] {
        let net = Net::build(spec.model.as_ref().unwrap(), model.classes(), true, 1, &[].into()).unwrap();
        let head = tl_proto::spec::HeadSection { keep, ..spec.tasks["outline"].head.clone() };
        let path = folder.join("model.safetensors");
        let net = net.with_tasks([("outline", &head, &outline[..])], 1, Some(path.as_path())).unwrap();
        assert!(net.loaded.contains("fc.weight"));
        assert_eq!(net.loaded.contains("tasks.outline.fc.weight"), keep);
    }
    let wide = again.replace("head = { hidden = [12],", "head = { hidden = [13],");
    let run = train(&wide, 1, false, tempfile::tempdir().unwrap().path(), &[], &Recorder::default());
    let Some(Error::User { message, hint }) = run.err() else { panic!("no error") };
    assert!(message.contains("tasks.other.") && hint.contains("`tasks.other.head`"), "{message}: {hint}");
    let other = again.replace("plain = [", "bare = [");
    assert!(refused(&other).contains("class 1 of weights"), "{}", refused(&other));
}

#[test]
fn a_frozen_network_runs_once_for_tasks_of_the_same_samples() {
    let job = job("").split("[[stage]]\nname = \"all\"").next().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let first = train(&job, 2, true, dir.path(), &[], &Recorder::default()).unwrap();
    // 64 samples of 8 classes and 42 of 6 in two views, 40 and 24 that are judged.
    assert_eq!(first.prefix.computed, 64 * 2 + 40 + 42 * 2 + 24);
    let second = train(&job, 2, true, dir.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(second.prefix.computed, 0);
}

#[test]
fn texts_of_several_tasks_go_through_one_encoder() {
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, n: usize, text: fn(usize) -> String| {
        std::fs::write(data.path().join(name), (0..n).map(text).collect::<String>()).unwrap();
        format!("{:?}", data.path().join(name).display().to_string())
    };
    let ours = write("a.tsv", 24, |i| format!("{}\tthe word{} of it\n", i % 3, i % 3));
    let theirs = write("b.tsv", 14, |i| format!("{}\tanother text{} that is longer than those\n", i % 2, i % 2));
    let job = format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"multitask\", seed = 3 }}\n\
         data = {{ format = \"text\", train = {ours}, val = {ours}, batch = 8, grains = 3 }}\n\
         model = {{ backbone = \"transformer_small\", input = 12 }}\n\
         [tasks.b]\ntrain = {theirs}\nval = {theirs}\nbatch = 5\n\
         [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\n"
    );
    let models = [1, 3].map(|world| {
        let dir = tempfile::tempdir().unwrap();
        train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        model_of(dir.path())
    });
    assert_eq!(models[0], models[1]);
    let images = job.replace("[tasks.b]\n", "[tasks.b]\nformat = \"generated\"\n").replace(&theirs, "\"source\"");
    let error = refused(&images);
    assert!(error.contains("transformer_small wants text, and `tasks.b.train` has images"), "{error}");
}

#[test]
fn what_is_no_task_of_these_samples_is_refused_by_name() {
    let job = job("");
    for (from, to, part) in [
        ("\"star-6\"] }", "\"star-7\"] }", "names `star-7`, which is no class"),
        (", \"star-6\"] }", "] }", "class `star-6` of the samples goes to no class of task `outline`"),
        ("val = \"target\"", "val = \"source\"", "is in `tasks.other.val` but not in `tasks.other.train`"),
        ("\"head\", \"block3\"", "\"tasks.othr.head\"", "`tasks.othr.head` names no parameters"),
        ("head = { dropout = 0.2 }", "head = { keep = true }", "the job has no weights to take it from"),
        ("head = { dropout = 0.2 }", "class_weights = [1, 2, 3]", "`tasks.outline.class_weights` has 3 numbers for 2"),
    ] {
        let changed = job.replace(from, to);
        assert_ne!(changed, job, "{from}");
        let error = refused(&changed);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn tasks_are_watched_by_name() {
    let job = job("").replace(
        "[[stage]]\nname = \"top\"",
        "[stop]\nmonitor = \"tasks.other.loss\"\nrestore_best = true\n[[stage]]\nname = \"top\"",
    );
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let of_last = report.history.iter().filter(|h| h.stage == "all").map(|h| h.values["tasks.other.loss"]);
    let best = of_last.fold(f64::INFINITY, f64::min);
    assert!((report.tasks["other"].evaluation.loss - best).abs() < 1e-9);
}

#[test]
fn what_tasks_counted_comes_back_with_the_best_values() {
    // No later epoch is better by so much.
    let stop =
        "[stop]\nmonitor = \"tasks.other.loss\"\nmin_delta = 100\nrestore_best = true\n[[stage]]\nname = \"top\"";
    let job = job("method = \"gradnorm\", rate = 0.1").replace("[[stage]]\nname = \"top\"", stop);
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    let of_last: Vec<_> = report.history.iter().filter(|h| h.stage == "all").collect();
    assert_eq!(of_last.len(), 2);
    for (name, task) in &report.tasks {
        let weights = [0usize, 1].map(|epoch| of_last[epoch].values[&format!("tasks.{name}.weight")]);
        assert_eq!(task.weight, weights[0], "{name}");
        assert_ne!(weights[0], weights[1], "{name}");
    }
}

#[test]
fn a_head_that_no_stage_trains_is_told() {
    let warned = |train: &str| {
        let stage = format!("[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"{train}\"]\nlr = 0.003\n");
        let job = job("").split("[[stage]]").next().unwrap().to_owned() + &stage;
        let dir = tempfile::tempdir().unwrap();
        crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap().warnings
    };
    let warnings = warned("tasks.main.head").join("\n");
    assert!(["outline", "other"].iter().all(|t| warnings.contains(&format!("add `tasks.{t}.head`"))), "{warnings}");
    assert!(!warnings.contains("tasks.main.head"), "{warnings}");
    let warnings = warned("head");
    assert!(warnings.iter().all(|w| !w.contains("no stage trains it")), "{warnings:?}");
}

#[test]
fn the_first_steps_of_tasks_are_verified_on_more_ranks() {
    for method in other_methods("multitask", &[]) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&job(&method), dir.path(), "cache", Vec::new());
        // Weights that are learned from what the tasks came to are others after the first steps.
        let steps = if method.contains("gradnorm") { 3 } else { 2 };
        for c in crate::train::verify::verify(&config, steps).unwrap() {
            assert!(c.holds(), "{method}: {c:?}");
        }
    }
}

/// Takes down gradients at the last shared kernel, of the whole loss and of each task, and rows.
#[derive(Default)]
struct Watcher {
    rows: Vec<Row>,
    kernel: Vec<Vec<f32>>,
    asides: Vec<Vec<f32>>,
}

impl Link for Watcher {
    fn row(&mut self, row: &Row) {
        self.rows.push(row.clone());
    }
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn stop_requested(&self) -> bool {
        false
    }
    fn gradient(&mut self, gradient: &crate::link::Gradient<'_>) {
        let kernel = gradient.tensors().find(|(name, _)| name == "block3.conv.weight").unwrap().1;
        self.kernel.push(kernel.to_vec());
        self.asides.push(gradient.flat[gradient.layout.total_len()..].to_vec());
    }
}

#[test]
fn weights_follow_the_gradients_of_the_tasks_at_the_last_shared_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&job("method = \"gradnorm\", alpha = 0.7, rate = 0.05"), dir.path(), "cache", Vec::new());
    let mut link = Watcher::default();
    run(&config, &mut Solo, &mut link).unwrap();
    let steps: Vec<&Row> = link.rows.iter().filter(|r| r.values.contains_key("lr")).collect();
    assert_eq!((steps.len(), link.asides.len()), (9, 9));
    const TASKS: [&str; 3] = ["main", "other", "outline"];
    let (mut weights, mut first) = ([1.0f64; 3], None);
    for (row, (kernel, asides)) in steps.iter().zip(link.kernel.iter().zip(&link.asides)) {
        let width = kernel.len();
        assert_eq!(asides.len(), 3 * width);
        // What the tasks add is the gradient of the whole.
        let of = |t: usize| &asides[t * width..(t + 1) * width];
        let norm = |g: &[f32]| g.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let apart: Vec<f32> = (0..width).map(|i| of(0)[i] + of(1)[i] + of(2)[i] - kernel[i]).collect();
        assert!(norm(&apart) < 1e-5 * norm(kernel), "{} of {}", norm(&apart), norm(kernel));
        // Chen et al., equation 1 and 2, with a step of 0.05 in units of the mean norm.
        let losses = TASKS.map(|t| row.values[&format!("tasks.{t}.train_loss")]);
        let first: &mut [f64; 3] = first.get_or_insert(losses);
        let norms: Vec<f64> = (0..3).map(|t| norm(of(t))).collect();
        let mean = norms.iter().sum::<f64>() / 3.0;
        let ratio: Vec<f64> = (0..3).map(|t| losses[t] / first[t]).collect();
        let average = ratio.iter().sum::<f64>() / 3.0;
        for t in 0..3 {
            let wanted = mean * (ratio[t] / average).powf(0.7);
            weights[t] -= 0.05 * (norms[t] - wanted).signum() * norms[t] / weights[t] / mean;
        }
        let total: f64 = weights.iter().sum();
        weights = weights.map(|w| w * 3.0 / total);
        for (task, want) in TASKS.iter().zip(weights) {
            let got = row.values[&format!("tasks.{task}.weight")];
            assert!((got - want).abs() < 1e-9, "{task}: {got} for {want}");
        }
    }
    assert!(weights.iter().any(|w| (w - 1.0).abs() > 0.1), "{weights:?}");
}
