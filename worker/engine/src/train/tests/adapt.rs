//! Runs that bring a network to another domain.

use super::*;

/// Two stages, batch-norms that learn, dropout, views, an odd batch and a tail, target samples that run out in the middle
/// of a step.
const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "adapt", seed = 3 }
data = { format = "generated", train = "source", val = "source", batch = 23, grains = 5, params = { train_samples = 8, val_samples = 5 }, augment = { flip = true, views = 2 }, target = { train = "shifted", val = "shifted", params = { train_samples = 5, val_samples = 4 } } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
objective = { OBJECTIVE }
[[stage]]
name = "top"
epochs = 1
train = ["head", "block3"]
lr = 0.003
bn = "train"
[[stage]]
name = "all"
epochs = 2
train = ["*"]
lr = 0.003
bn = "train"
"#;

const METHODS: [&str; 8] = [
    "method = \"dann\", hidden = 32",
    "method = \"cdan\", hidden = 32",
    "method = \"mmd\"",
    "method = \"mmd\", estimator = \"quadratic\"",
    "method = \"coral\", variant = \"domainbed\"",
    "method = \"mcc\"",
    "method = \"self_training\", threshold = 0.2",
    "method = \"direct\"",
];

#[test]
fn every_method_gives_the_same_file_for_any_number_of_ranks() {
    let mut files = std::collections::BTreeSet::new();
    for (i, method) in METHODS.iter().enumerate() {
        let job = JOB.replace("OBJECTIVE", method);
        let job = if method.contains("self") { format!("{job}[modifiers.ema]\ndecay = 0.9\n") } else { job };
        let mut wanted = None;
        for world in [1, 2 + i % 2] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&job, world, world == 3, dir.path(), &[], &Recorder::default())
                .unwrap_or_else(|e| panic!("{method}: {e}"));
            let target = report.target.clone().expect("the other domain is judged");
            assert_eq!(target.samples, 32, "{method}");
            let got = (model_of(dir.path()), report.evaluation, target);
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{method}, {world} ranks");
            let file = std::fs::read(dir.path().join("work/model/model.safetensors")).unwrap();
            let names = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert!(names.names().iter().all(|n| !n.starts_with("objective")), "{method}");
        }
        assert!(files.insert(wanted.unwrap().0.to_hex().to_string()), "{method} changes nothing");
    }
}

#[test]
fn a_run_that_adapts_goes_on_where_it_stopped() {
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let job = job.replace("objective =", "checkpoint = { every = 2 }\nobjective =");
    let undisturbed = tempfile::tempdir().unwrap();
    train(&job, 1, false, undisturbed.path(), &[], &Recorder::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let link = Recorder { stop_after: Some(5), ..Recorder::default() };
    train(&job, 2, false, dir.path(), &[], &link).unwrap_err();
    let resume = link.checkpoints.lock().unwrap().clone();
    train(&job, 3, false, dir.path(), &resume, &Recorder::default()).unwrap();
    assert_eq!(model_of(dir.path()), model_of(undisturbed.path()));
}

#[test]
fn a_domain_with_other_classes_or_without_samples_is_refused() {
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let run = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string()
    };
    let error = run(&job.replace("val = \"shifted\"", "val = \"target\""));
    assert!(error.contains("is in `data.target.val` but not in `data.train`"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let place = format!("format = \"image_folder\", train = {:?}, params", empty.path());
    let error = run(&job.replace(
        "train = \"shifted\", val = \"shifted\", params = { train_samples = 5, val_samples = 4 }",
        &place.replace(", params", ""),
    ));
    assert!(error.contains("has no samples"), "{error}");
}

#[test]
fn the_first_steps_of_every_stage_are_verified_on_more_ranks() {
    for job in [JOB.replace("OBJECTIVE", METHODS[1]), super::JOB.to_owned()] {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&job, dir.path(), "cache", Vec::new());
        let compared = crate::train::verify::verify(&config, 3).unwrap();
        let stages = config.spec.stage.len();
        assert_eq!(compared.len(), 2 * stages);
        for (i, c) in compared.iter().enumerate() {
            assert_eq!((c.ranks, c.steps, &c.stage), (2 + i % 2, 3, &config.spec.stage[i / 2].name));
            assert!(c.holds() && c.fast < 1e-6, "{c:?}");
        }
        // The fast reduction adds in another order: some bits are others.
        assert!(compared.iter().any(|c| c.fast > 0.0));
    }
}
