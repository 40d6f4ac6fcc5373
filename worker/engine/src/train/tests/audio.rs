//! Whole runs on sound.

use super::*;
use crate::{
    data::audio::testing::wav,
    predict::{Asked, Model},
};

/// Clips of low and high tones, of two rates and lengths, class and number in their names.
fn tones(dir: &Path) {
    for i in 0..36u32 {
        let (class, hertz) = if i % 2 == 0 { ("low", 300.0) } else { ("high", 1_400.0) };
        let rate = if i % 3 == 0 { 11_025 } else { 8_000 };
        let count = rate / 4 + 37 * i;
        let hertz = hertz + 15.0 * f64::from(i);
        let noise = |t: u32| f64::from((t * 7_919 + i * 31) % 1_009) / 1_009.0 - 0.5;
        let value = |t: u32| (std::f64::consts::TAU * hertz * f64::from(t) / f64::from(rate)).sin() + 0.6 * noise(t);
        let samples: Vec<i16> = (0..count).map(|t| (8_000.0 * value(t)) as i16).collect();
        std::fs::write(dir.join(format!("{class}_{i}.wav")), wav(rate, 1, &samples)).unwrap();
    }
}

fn job(dir: &Path, data: &str, model: &str) -> String {
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 7 }}\nmodel = {{ backbone = \"small_cnn\", {model} }}\n\
         data = {{ format = \"audio_folder\", train = {0:?}, val = {0:?}, batch = 7, grains = 3, {data}, \
         params = {{ label = '^([a-z]+)_', held_out = '[05]\\.wav$', rate = 8000, seconds = 0.3 }} }}\n\
         [[stage]]\nname = \"all\"\nepochs = 8\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n",
        dir.display().to_string()
    )
}

#[test]
fn a_network_for_images_learns_to_hear_and_the_model_hears_as_it_was_trained() {
    let data = tempfile::tempdir().unwrap();
    tones(data.path());
    let job = job(data.path(), "augment = { crop = 0.1, erase = 0.2, views = \"fresh\" }", "input = 24");
    let mut files = Vec::new();
    for world in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        assert_eq!((report.samples, report.evaluation.accuracy), ([28, 8], 1.0));
        files.push((model_of(dir.path()), dir));
    }
    assert_eq!(files[0].0, files[1].0);
    // Nothing is said any more of how clips are heard: it is in the file.
    let model = Model::open(&files[0].1.path().join("work/model")).unwrap();
    assert_eq!(model.classes(), ["high", "low"]);
    for (name, class) in [("low_10.wav", 1), ("high_15.wav", 0)] {
        let chances = model.predict(&data.path().join(name)).unwrap();
        assert!(chances[class] > 0.5, "{name}: {chances:?}");
    }
    let by_name: tl_proto::spec::Params = [("label".to_owned(), "^([a-z]+)_".into())].into();
    let place = data.path().display().to_string();
    let scored = model.evaluate(&Asked::of("audio_folder", &place, by_name.clone(), 0)).unwrap();
    assert_eq!(scored.accuracy, 1.0);
    let other = [("rate".to_owned(), 16_000.into())].into_iter().chain(by_name).collect();
    let error = model.evaluate(&Asked::of("audio_folder", &place, other, 0)).unwrap_err().to_string();
    assert!(error.contains("trained on sound heard as 0.3 s at 8000 Hz"), "{error}");
    let list = data.path().join("some.txt");
    std::fs::write(&list, "low_10.wav low\nhigh_15 high\n").unwrap();
    let asked = Asked::of("audio_folder", &list.display().to_string(), tl_proto::spec::Params::new(), 0);
    let scored = model.evaluate(&asked).unwrap();
    assert_eq!((scored.samples, scored.accuracy), (2, 1.0));
    std::fs::write(data.path().join("text.txt"), "no sound").unwrap();
    let error = model.predict(&data.path().join("text.txt")).unwrap_err().to_string();
    assert!(error.contains("neither WAV nor FLAC"), "{error}");
    let error = model.predict(data.path()).unwrap_err().to_failure();
    assert!(error.message.ends_with("is a folder") && error.hint.contains("/*`"), "{error}: {}", error.hint);
    let error = Model::open(&data.path().join("none")).err().unwrap().to_failure();
    assert!(error.message.starts_with("there is no model at") && error.hint.contains("tl-out"), "{error}");

    // What cannot be decoded is named, and left out where so many may be.
    assert_eq!(model.format(), "audio_folder");
    std::fs::write(data.path().join("cut.wav"), "RIFF").unwrap();
    std::fs::write(&list, "low_10.wav low\nhigh_15.wav high\ncut.wav low\n").unwrap();
    let error = model.evaluate(&asked).unwrap_err().to_failure();
    assert!(error.message.starts_with("`cut.wav` cannot be decoded"), "{error}");
    assert!(error.hint.ends_with("set `--skip-bad 1`"), "{}", error.hint);
    let mut said = Vec::new();
    let some = Asked { skip_bad: 1, ..asked };
    let scored = model.evaluate_telling(&some, &mut |text| said.push(text.to_owned())).unwrap();
    assert_eq!((scored.samples, said.len()), (2, 1), "{said:?}");
}

#[test]
fn clips_that_are_heard_in_part_are_told_in_a_plan_and_in_the_run() {
    let data = tempfile::tempdir().unwrap();
    tones(data.path());
    let told = |seconds: &str| {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let job = job(data.path(), "skip_bad = 0", "input = 24").replace("epochs = 8", "epochs = 1");
        let job = job.replace("seconds = 0.3", &format!("seconds = {seconds}"));
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        train(&job, 1, false, dir.path(), &[], &link).unwrap();
        let warnings: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("that were looked at")).collect();
        let notices = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::ClipsCut).count();
        assert_eq!(warnings.len(), notices);
        warnings
    };
    // They last from 0.25 to 0.41 s.
    assert!(told("0.4").is_empty());
    let warned = told("0.3");
    let [said, judged] = &warned[..] else { panic!("of training samples and of others") };
    assert!(judged.starts_with("4 of 8 clips of `data.val` that were looked at"), "{judged}");
    assert!(said.contains("of 28 clips of `data.train` that were looked at"), "{said}");
    assert!(said.contains("the 0.3 s that are heard of each, up to 0.4 s") && said.contains("`data.params.seconds`"));
}

#[test]
fn a_clip_that_cannot_be_heard_is_counted_and_pictures_are_not_turned() {
    let data = tempfile::tempdir().unwrap();
    tones(data.path());
    std::fs::write(data.path().join("low_99.wav"), "RIFF but no more").unwrap();
    let run = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).map(|r| r.samples).map_err(|e| e.to_string())
    };
    let short = |data_line: &str| job(data.path(), data_line, "input = 24").replace("epochs = 8", "epochs = 1");
    assert!(run(&short("skip_bad = 0")).unwrap_err().contains("low_99.wav"));
    assert_eq!(run(&short("skip_bad = 1")).unwrap(), [28, 8]);
    let error = run(&short("skip_bad = 1, augment = { flip = true, views = 2 }")).unwrap_err();
    assert!(error.contains("no sound has"), "{error}");
    let error = run(&job(data.path(), "skip_bad = 1", "input = 1024").replace("0.3", "0.1")).unwrap_err();
    assert!(error.contains("do not make 1024 frames"), "{error}");
}

/// Bare weights of a network for images, in a folder that stays as long as it is held.
fn for_images() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let model = tl_proto::spec::ModelSection { backbone: "small_cnn".into(), ..Default::default() };
    let classes = ["high", "low"].map(str::to_owned);
    crate::weights::testing::bare(&Net::build(&model, &classes, false, 4, &[].into()).unwrap(), &path);
    let shown = format!("{:?}", path.display().to_string());
    (dir, shown)
}

/// What stops a look at a job, and what stops its run.
fn stopped(job: &str) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap();
    let config = config(job, dir.path(), "cache", Vec::new());
    let looked = crate::train::probe::probe(&config).err().unwrap();
    [looked, run(&config, &mut Solo, &mut Recorder::default()).err().unwrap()].map(|error| error.to_string())
}

#[test]
fn a_teacher_that_has_not_learned_to_hear_is_refused_before_anything_is_computed() {
    let (data, (_weights, path)) = (tempfile::tempdir().unwrap(), for_images());
    tones(data.path());
    let teacher =
        format!("[nets.teacher]\nbackbone = \"small_cnn\"\nweights = {path}\npreprocess = \"unit\"\n[[stage]]");
    let job = job(data.path(), "skip_bad = 0", "input = 24").replace("finetune", "distill");
    for error in stopped(&job.replace("[[stage]]", &teacher)) {
        assert!(error.contains("the network wants images, and `data.train` has sound"), "{error}");
    }
}

#[test]
fn a_task_with_sound_beside_images_is_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    tones(data.path());
    let job = format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"multitask\", seed = 3 }}\nmodel = {{ backbone = \"small_cnn\" }}\n\
         data = {{ format = \"generated\", train = \"source\", val = \"source\", batch = 8, grains = 2, \
         params = {{ train_samples = 3, val_samples = 2 }} }}\n\
         [tasks.b]\nformat = \"audio_folder\"\ntrain = {0:?}\nval = {0:?}\nbatch = 5\n\
         params = {{ label = '^([a-z]+)_', held_out = '[05]\\.wav$', rate = 8000, seconds = 0.3 }}\n\
         [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\n",
        data.path().display().to_string()
    );
    for error in stopped(&job) {
        assert!(error.contains("the network wants images, and `tasks.b.train` has sound"), "{error}");
    }
}

#[test]
fn what_weights_for_images_forget_on_the_way_to_sound_is_not_asked() {
    let (data, (_weights, path)) = (tempfile::tempdir().unwrap(), for_images());
    tones(data.path());
    let source =
        "source = { format = \"generated\", val = \"source\", params = { train_samples = 2, val_samples = 2 } }";
    let model = format!("input = 24, weights = {path}, preprocess = \"unit\"");
    for error in stopped(&job(data.path(), source, &model)) {
        assert!(error.contains("`data.source.val` has images, and `data.train` has sound"), "{error}");
    }
}
