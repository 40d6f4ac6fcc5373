//! Runs in which a student looks inside its teacher, or has several.

use super::*;

/// One stage that trains everything, nothing that depends on the grain, and nothing but what is added to the logits' part.
const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "distill", seed = 5 }
data = { format = "generated", train = "source", val = "source", batch = 24, grains = 3, params = { train_samples = 3, val_samples = 2 } }
model = { backbone = "small_cnn" }
objective = { OBJECTIVE }
optimizer = { name = "sgd", momentum = 0.0, weight_decay = 0.0 }
[nets.teacher]
backbone = "resnet20"
[[stage]]
name = "all"
epochs = 3
train = ["*"]
lr = 0.01
bn = "affine_only"
"#;

const METHODS: [&str; 6] = [
    "method = \"attention\"",
    "method = \"attention\", taps = [\"block1:layer2.0\", \"block1:layer3.1\"]",
    "method = \"hint\", taps = [\"block2:layer3.2\", \"pool\"]",
    "method = \"attention\", taps = [\"block1:layer2.2\"]",
    "method = \"logits\", top_k = 3",
    "method = \"hint\", logits = \"f16\"",
];

fn job(method: &str, more: &str) -> String {
    JOB.replace("OBJECTIVE", &format!("{method}, {more}"))
}

#[test]
fn a_student_that_looks_inside_gives_the_same_file_for_any_number_of_ranks() {
    let mut files = std::collections::BTreeSet::new();
    let others = other_methods("distill", &METHODS);
    let methods = METHODS.into_iter().chain(others.iter().map(String::as_str));
    for (i, method) in methods.enumerate() {
        // Mixing rules kept outputs of the teacher out: then it runs in every step.
        for more in ["", "[modifiers.mixup]\n"].into_iter().take(if i < METHODS.len() { 2 } else { 1 }) {
            let job = job(method, "soft_weight = 0.5") + more;
            let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
            train(&job, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
            train(&job, 2 + i % 2, true, dirs[1].path(), &[], &Recorder::default()).unwrap();
            assert_eq!(model_of(dirs[0].path()), model_of(dirs[1].path()), "{method}");
            assert!(files.insert(model_of(dirs[0].path()).to_hex().to_string()), "{method} changes nothing");
            let file = std::fs::read(dirs[0].path().join("work/model/model.safetensors")).unwrap();
            let names = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert!(names.names().iter().all(|n| !n.starts_with("objective")), "{method}");
        }
    }
}

/// FitNets' two stages, as two jobs.
#[test]
fn hints_alone_come_first_and_what_the_teacher_says_after_them() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let hints = job("method = \"hint\", taps = [\"block2:layer3.2\"]", "soft_weight = 0, hard_weight = 0");
    let below = hints.replace("train = [\"*\"]", "train = [\"block0\", \"block1\", \"block2\"]");
    let report = train(&below, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
    let losses: Vec<f64> = report.history.iter().map(|h| h.values["train.loss"]).collect();
    assert!(losses[0] > losses[2] && losses[2] > 0.0, "{losses:?}");
    // What lies above the hint learns nothing from it, and is not to be trained.
    let dir = tempfile::tempdir().unwrap();
    let error = train(&hints, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("was zero in each of the 3 steps"), "{error}");
    let weights = format!("backbone = \"small_cnn\", weights = {:?}", dirs[0].path().join("work/model"));
    let then = job("method = \"logits\"", "soft_weight = 1").replacen("backbone = \"small_cnn\"", &weights, 1);
    train(&then, 1, false, dirs[1].path(), &[], &Recorder::default()).unwrap();
}

#[test]
fn two_teachers_teach_something_else_than_one() {
    let second = "[nets.teacher_2]\nbackbone = \"small_cnn\"\n[[stage]]";
    let one = job("method = \"logits\"", "soft_weight = 1");
    let two = one.replace("[[stage]]", second);
    let weighted = two.replace("soft_weight = 1", "soft_weight = 1, teacher_weights = [1, 0]");
    let models = [&one, &two, &weighted].map(|job| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
        model_of(dir.path())
    });
    assert_ne!(models[0], models[1]);
    assert_ne!(models[1], models[2]);
    let dir = tempfile::tempdir().unwrap();
    let short = two.replace("soft_weight = 1", "soft_weight = 1, teacher_weights = [1, 2, 3]");
    let error = train(&short, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("3 numbers for 2 teachers"), "{error}");
}

#[test]
fn what_other_nodes_have_worked_out_is_not_computed_again_and_gives_the_same_file() {
    let second = "[nets.teacher_2]\nbackbone = \"small_cnn\"\n[[stage]]";
    let two = "grains = 3, augment = { rotate = 0.1, views = 2 },";
    for (method, views) in [(METHODS[0], 1), (METHODS[4], 1), (METHODS[5], 1), (METHODS[4], 2)] {
        let mut job = job(method, "soft_weight = 0.5").replace("[[stage]]", second);
        if views == 2 {
            job = job.replace("grains = 3,", two);
        }
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let alone = train(&job, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
        assert_eq!(alone.prefix.computed, 2 * 24 * views, "{method}");
        let features = units(&job, 3, dirs[1].path());
        let (computed, notices) = taught(&job, features, dirs[2].path());
        assert_eq!((computed, notices), (0, Vec::new()), "{method}");
        assert_eq!(model_of(dirs[0].path()), model_of(dirs[2].path()), "{method}");
    }
}

#[test]
fn what_does_not_arrive_whole_or_at_all_is_computed_and_the_file_is_the_same() {
    let job = job(METHODS[5], "soft_weight = 0.5");
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    train(&job, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
    let mut features = units(&job, 3, dirs[1].path());
    let whole = std::fs::read(&features[0]).unwrap();
    std::fs::write(&features[0], &whole[..whole.len() / 2]).unwrap();
    features.remove(1);
    let (computed, notices) = taught(&job, features, dirs[2].path());
    assert_eq!((computed, notices), (16, vec![Notice::CacheDamaged]));
    assert_eq!(model_of(dirs[0].path()), model_of(dirs[2].path()));
}

#[test]
fn a_cache_without_room_for_what_units_left_costs_time_only() {
    let job = job(METHODS[4], "soft_weight = 0.5");
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    train(&job, 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
    let features = units(&job, 3, dirs[1].path());
    let config = Config { features, cache_bytes: 0, ..config(&job, dirs[2].path(), "cache", Vec::new()) };
    let pool = crate::num::pool::build(2);
    let report = pool.install(|| run(&config, &mut Solo, &mut Recorder::default())).unwrap();
    assert_eq!(report.prefix.computed, 24);
    assert_eq!(model_of(dirs[0].path()), model_of(dirs[2].path()));
}

#[test]
fn a_unit_ends_where_more_samples_than_may_be_left_out_will_not_decode() {
    let dir = tempfile::tempdir().unwrap();
    let folder = photos_of_which_one_is_none(dir.path());
    let job = job("method = \"logits\"", "soft_weight = 1");
    let generated = job.lines().find(|l| l.starts_with("data =")).unwrap();
    let with = |skip_bad: u32| {
        let photos = format!(
            "data = {{ format = \"image_folder\", train = \"{folder}\", val = \"{folder}\", batch = 6, \
             skip_bad = {skip_bad} }}"
        );
        let config = config(&job.replace(generated, &photos), dir.path(), "cache", Vec::new());
        teach::unit(&config, (0, 1), &mut Recorder::default())
    };
    let error = with(0).unwrap_err().to_string();
    assert!(error.starts_with("1 of 12 samples"), "{error}");
    assert!(with(1).unwrap());
}

#[test]
fn a_teacher_that_runs_in_every_step_has_no_units_work() {
    let job = job(METHODS[4], "soft_weight = 0.5") + "[modifiers.mixup]\n";
    let dir = tempfile::tempdir().unwrap();
    assert!(units(&job, 1, dir.path()).iter().all(|path| !path.exists()));
}

#[test]
fn a_look_tells_what_teachers_have_not_said_yet() {
    let dir = tempfile::tempdir().unwrap();
    let of_teacher = "schema = 1\njob = { name = \"t\", kind = \"finetune\", seed = 3 }\n\
        data = { format = \"generated\", train = \"source\", val = \"source\", batch = 16, \
        params = { train_samples = 2, val_samples = 1 } }\nmodel = { backbone = \"small_cnn\" }\n\
        [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\nbn = \"train\"\n";
    let theirs = dir.path().join("teacher");
    train(of_teacher, 1, false, &theirs, &[], &Recorder::default()).unwrap();
    let weights = theirs.join("work/model");
    let teacher = format!("backbone = \"small_cnn\"\nweights = {weights:?}");
    let job = job("method = \"logits\"", "soft_weight = 1").replace("backbone = \"resnet20\"", &teacher);
    let look = |job: &str| {
        let config = config(job, dir.path(), "cache", Vec::new());
        (crate::train::probe::probe(&config).unwrap().teaching, config)
    };
    assert_eq!(look(&job).0, None, "24 samples are not worth it");
    let job = job.replace("train_samples = 3", "train_samples = 8");
    let (found, config) = look(&job);
    let found = found.unwrap();
    assert_eq!((found.rows, found.bytes), (64, 64 * 8 * 4));
    assert!(found.seconds > 0.0 && found.opening > 0.0);
    let maps = job.replace("method = \"logits\"", "method = \"attention\", taps = [\"block1\"]");
    assert_eq!(look(&maps).0.unwrap().bytes, 64 * (16 * 16 + 8) * 4, "of 32 channels one number a place");
    let small = Config { cache_bytes: found.bytes - 1, ..config.clone() };
    assert_eq!(crate::train::probe::probe(&small).unwrap().teaching, None, "the cache would not keep it");
    teach::unit(&config, (0, 1), &mut Recorder::default()).unwrap();
    assert_eq!(look(&job).0, None, "it is in the cache of this node");
}
