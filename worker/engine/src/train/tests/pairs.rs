//! Runs that learn from pairs: the same for any number of ranks, and what two networks come to.

use tl_proto::spec::PairedBy;

use super::*;
use crate::{
    eval::Evaluation,
    predict::{Asked, Towers},
};

/// Two networks of other shapes, a stage in which the second is locked but for its head, one that trains everything;
/// batch-norms that learn, dropout on both sides, views, an odd batch and a tail, more halves than samples.
const JOB: &str = concat!(
    r#"
schema = 1
job = { name = "t", kind = "contrastive", seed = 3 }
data = { format = "generated", train = "source", val = "source", batch = 23, grains = 5, params = { train_samples = 8, val_samples = 5 }, augment = { flip = true, views = 2 }, pairs = { format = "generated", train = "shifted", val = "shifted", by = "label", params = { train_samples = 9, val_samples = 4 }, augment = { flip = true, views = 2 } } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
objective = { dimensions = 12, OBJECTIVE }
[nets.tower]
backbone = "small_cnn"
head = { hidden = [24], dropout = 0.2 }
"#,
    stages!("locked", r#"["*", "tower.head"]"#, r#"{ "*" = 0.003, "tower.block0" = 0.001 }"#)
);

/// The first stage with the second network locked.
pub(super) fn job(objective: &str) -> String {
    let all = "train = [\"*\", \"tower.head\"]";
    JOB.replace("OBJECTIVE", objective).replace(all, "train = [\"block3\", \"head\", \"tower.head\"]")
}

/// A teacher of `source`, and the job of a student of `shifted` that learns from it on pairs.
fn crossed(dir: &Path, objective: &str) -> String {
    let teacher = JOB
        .split("[nets.tower]")
        .next()
        .unwrap()
        .replace("contrastive", "finetune")
        .replace("objective = { dimensions = 12, OBJECTIVE }\n", "")
        .replace("epochs = 1", "epochs = 4");
    let teacher = teacher.split(", pairs").next().unwrap().to_owned()
        + " }\n"
        + "model = { backbone = \"small_cnn\" }\n[[stage]]\nname = \"all\"\nepochs = 6\ntrain = [\"*\"]\nlr = 0.01\nbn = \"train\"\n";
    train(&teacher, 1, false, &dir.join("teacher"), &[], &Recorder::default()).unwrap();
    let weights = dir.join("teacher").join("work").join("model");
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"cross_distill\", seed = 3 }}\n\
         data = {{ format = \"generated\", train = \"shifted\", val = \"shifted\", batch = 23, grains = 5, \
         params = {{ train_samples = 8, val_samples = 5 }}, pairs = {{ format = \"generated\", train = \"source\", \
         by = \"label\", params = {{ train_samples = 9 }} }} }}\n\
         model = {{ backbone = \"small_cnn\", head = {{ hidden = [16], dropout = 0.3 }} }}\n\
         objective = {{ {objective} }}\nnets = {{ teacher = {{ backbone = \"small_cnn\", weights = {weights:?} }} }}\n\
         [[stage]]\nname = \"all\"\nepochs = 2\ntrain = [\"*\"]\nlr = 0.003\nbn = \"train\"\n"
    )
}

#[test]
fn pairs_give_the_same_file_for_any_number_of_ranks() {
    let teacher = tempfile::tempdir().unwrap();
    let jobs = [
        crossed(teacher.path(), "method = \"logits\""),
        crossed(teacher.path(), "method = \"hint\""),
        crossed(teacher.path(), "method = \"relational\""),
        // Inside both networks, and with a second teacher.
        crossed(teacher.path(), "method = \"attention\", teacher_weights = [3, 1]")
            .replace("nets = { teacher =", "nets = { teacher_2 = { backbone = \"small_cnn\" }, teacher ="),
    ];
    let jobs = other_methods("contrastive", &[]).into_iter().map(|method| job(&method)).chain(jobs);
    let mut files = std::collections::BTreeSet::new();
    for (i, job) in jobs.enumerate() {
        let mut wanted = None;
        for (world, apart) in [(1, false), (2 + i % 2, i % 2 == 1)] {
            let dir = tempfile::tempdir().unwrap();
            for warm in [false, true] {
                let report = train(&job, world, apart, dir.path(), &[], &Recorder::default())
                    .unwrap_or_else(|e| panic!("{job}: {e}"));
                let history: Vec<_> = report.history.iter().map(|h| format!("{:?}", h.values)).collect();
                let got = (model_of(dir.path()), history, report.evaluation, report.retrieval);
                assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks, warm: {warm}, {job}");
            }
        }
        assert!(files.insert(wanted.unwrap().0.to_hex().to_string()), "another objective changes nothing: {job}");
    }
}

#[test]
fn two_networks_lie_in_one_file_and_go_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job("method = \"clip\""), 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    let model = dir.path().join("work/model");
    let file = std::fs::read(model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!((shape("fc.weight"), shape("tower.fc.weight")), (vec![12, 16], vec![12, 24]));
    assert!(tensors.names().iter().all(|n| !n.starts_with("objective")));
    let found = report.retrieval.clone().unwrap();
    assert!(found.to_pairs[0] <= found.to_pairs[1] && found.to_pairs[1] <= found.to_pairs[2]);
    let last = &report.history.last().unwrap().values;
    assert_eq!(last["val.recall_5"], found.mean()[1]);
    assert!(!last.contains_key("train.accuracy"), "nothing is looked up in labels");
    // What the stages do to both networks, by name.
    let rate = |stage: usize, unit: &str| report.stages[stage].units.iter().find(|u| u.name == unit).unwrap().lr;
    assert_eq!((rate(0, "block0"), rate(0, "tower.block0"), rate(0, "tower.block3")), (None, None, None));
    assert!(rate(0, "block3").is_some() && report.stages[0].units.last().unwrap().lr.is_some());
    assert!((rate(1, "tower.block0").unwrap() - 0.001).abs() < 1e-9 && rate(1, "tower.block1") == rate(1, "block1"));

    // The same pairs again, from the file.
    let asked = |place: &str, n: u32| {
        Asked::of("generated", place, [("val_samples".to_owned(), n.into())].into_iter().collect(), 3)
    };
    let towers = Towers::open(&model).unwrap();
    let again = towers.evaluate([&asked("source", 5), &asked("shifted", 4)], PairedBy::Label).unwrap();
    assert_eq!((again.pairs, again.retrieval, again.left_out.len()), ([40, 32], found, 0));
    assert_eq!(again.by_class.unwrap().accuracy, report.evaluation.accuracy);
    let other = towers.evaluate([&asked("source", 5), &asked("target", 4)], PairedBy::Label).unwrap_err();
    assert!(other.to_string().contains("no sample of `data.val` goes with one of `data.pairs.val`"), "{other}");

    // Both networks from the file, their heads kept: so small a step changes nothing that anybody sees.
    let weights = format!("weights = {:?}", model.display().to_string());
    let again = job("method = \"clip\"")
        .replace("[model]", "")
        .replace(
            "model = { backbone = \"small_cnn\", head = {",
            &format!("model = {{ backbone = \"small_cnn\", {weights}, head = {{ keep = true,"),
        )
        .replace("head = { hidden = [24],", &format!("{weights}\nhead = {{ keep = true, hidden = [24],"))
        .replace("lr = 0.003", "lr = 1e-12")
        .replace("\"*\" = 0.003, \"tower.block0\" = 0.001", "\"*\" = 1e-12")
        .replace("bn = \"train\"", "bn = \"frozen\"");
    let kept = tempfile::tempdir().unwrap();
    let same = train(&again, 1, false, kept.path(), &[], &Recorder::default()).unwrap();
    let close = |a: &Evaluation, b: &Evaluation| (a.accuracy - b.accuracy).abs() < 0.08;
    assert!(close(&same.evaluation, &report.evaluation), "{:?}, {:?}", same.evaluation, report.evaluation);
    let error = crate::predict::Model::open(&model).err().unwrap().to_string();
    assert!(error.contains("one of two networks"), "{error}");
}

#[test]
fn two_networks_that_begin_anew_have_the_shape_of_their_weights_and_none_of_their_values() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = |job: &str, name: &str| {
        let dir = dir.path().join(name);
        train(job, 1, false, &dir, &[], &Recorder::default()).unwrap();
        let file = std::fs::read(dir.join("work/model/model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let all = tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec()));
        all.collect::<std::collections::BTreeMap<_, _>>()
    };
    let plain = job("method = \"clip\"");
    let first = tensors(&plain, "first");
    let weights = format!("weights = {:?}", dir.path().join("first").join("work").join("model"));
    let anew = plain
        .replace(
            "model = { backbone = \"small_cnn\",",
            &format!("model = {{ backbone = \"small_cnn\", {weights}, random = true,"),
        )
        .replace("[nets.tower]\n", &format!("[nets.tower]\n{weights}\nrandom = true\n"));
    assert!(first.keys().any(|name| name.starts_with("tower.")) && tensors(&anew, "anew") == first);
}

#[test]
fn a_run_of_two_networks_goes_on_where_it_stopped() {
    let job = job("method = \"siglip\"").replace("objective =", "checkpoint = { every = 2 }\nobjective =");
    gone_on(&job, 5, [2, 3]);
}

#[test]
fn a_look_at_two_networks_tells_what_is_kept_of_both_and_what_both_take() {
    let looked = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { look: true, ..config(job, dir.path(), "cache", Vec::new()) };
        crate::train::probe::probe(&config).unwrap().stages
    };
    let [locked, all] = <[_; 2]>::try_from(looked(&job("method = \"clip\""))).unwrap();
    let saving = locked.saving.unwrap();
    assert_eq!(locked.cached, ["block3", "tower.head.0"]);
    // 64 samples and 72 halves in two views, 40 and 32 that are judged; an epoch draws a half for each sample.
    assert_eq!((saving.encoded, saving.passes), (64 * 2 + 40 + 72 * 2 + 32, 64 + 40 + 64 + 32));
    assert_eq!((all.saving.unwrap().bytes, all.cached.len(), all.saving.unwrap().passes), (0, 0, 2 * 200));
    // One network trained, the other not at all.
    let alone = job("method = \"clip\"").replace("\"head\", \"tower.head\"", "\"head\"");
    let [alone, _] = <[_; 2]>::try_from(looked(&alone)).unwrap();
    assert_eq!(alone.cached, ["block3", "tower.end"]);
    // What is kept of the second is all that differs: embeddings of 12 numbers for 176 views of halves.
    let open = job("method = \"clip\"").replace("\"head\", \"tower.head\"", "\"head\", \"tower.*\"");
    let [open, _] = <[_; 2]>::try_from(looked(&open)).unwrap();
    assert_eq!(open.cached, ["block3"]);
    assert_eq!(alone.saving.unwrap().bytes - open.saving.unwrap().bytes, 4 * 12 * (72 * 2 + 32));
}

#[test]
fn a_list_says_which_pictures_are_learned_from() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let job = captions(data.path());
    std::fs::write(data.path().join("some.txt"), "5.png\n1\n4.png\n2.png\n6.png\n").unwrap();
    let place = |name: &str| data.path().join(name);
    let [train_place, val, list] = ["train", "val", "some.txt"].map(place);
    let listed = job.replace(
        &format!("train = {train_place:?}, val = {val:?}, batch"),
        &format!("train = {list:?}, val = {val:?}, params = {{ root = {train_place:?} }}, batch"),
    );
    // The texts of the others go with nothing.
    let report = train(&listed, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(report.samples, [5, 8]);
}

/// Photos and lines of text that go with them by name; some have none.
pub(super) fn captions(dir: &Path) -> String {
    for part in ["train", "val"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
        for i in 0..9u8 {
            let color = image::Rgb([i * 20, 255 - i * 20, if i % 2 == 0 { 0 } else { 200 }]);
            image::RgbImage::from_pixel(20, 20, color).save(dir.join(part).join(format!("{i}.png"))).unwrap();
        }
        let line = |i: usize| format!("{}.png#{}\tit is number{i} of them\n", i % 10, i / 10);
        std::fs::write(
            dir.join(format!("{part}.tsv")),
            (0..20).filter(|i| *i != 3 && *i != 13).map(line).collect::<String>(),
        )
        .unwrap();
    }
    let place = |name: &str| dir.join(name).display().to_string();
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"contrastive\", seed = 3 }}\n\
         data = {{ format = \"image_folder\", train = {:?}, val = {:?}, batch = 4, pairs = {{ format = \"text\", \
         train = {:?}, val = {:?} }} }}\nmodel = {{ backbone = \"small_cnn\" }}\nobjective = {{ dimensions = 8 }}\n\
         nets = {{ tower = {{ backbone = \"transformer_small\", input = 12 }} }}\n\
         [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\nbn = \"train\"\n",
        place("train"),
        place("val"),
        place("train.tsv"),
        place("val.tsv"),
    )
}

#[test]
fn pictures_and_texts_find_each_other_by_name_and_what_is_alone_is_left_out() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let job = captions(data.path());
    let link = Recorder::default();
    let report = train(&job, 2, false, dir.path(), &[], &link).unwrap();
    // Of ten names and nine photos, one photo has no text, and texts of one name have no photo.
    assert_eq!(report.samples, [8, 8]);
    assert_eq!(report.evaluation.samples, 8);
    assert!(report.evaluation.classes.is_empty());
    assert_eq!(link.notices.lock().unwrap().iter().filter(|n| **n == Notice::SamplesSkipped).count(), 4);
    let asked = |format: &str, name: &str| {
        Asked::of(format, &data.path().join(name).display().to_string(), Default::default(), 0)
    };
    let towers = Towers::open(&dir.path().join("work/model")).unwrap();
    let both = [&asked("image_folder", "val"), &asked("text", "val.tsv")];
    let again = towers.evaluate(both, PairedBy::Name).unwrap();
    assert_eq!((again.pairs, again.by_class, again.left_out.len()), ([8, 16], None, 2));
    assert_eq!(Some(again.retrieval), report.retrieval);
    let turned = towers.evaluate([both[1], both[0]], PairedBy::Name).unwrap_err().to_string();
    assert_eq!(turned, "the network wants images, and `data.val` has text");
    let other = tempfile::tempdir().unwrap();
    train(&job, 1, false, other.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(model_of(dir.path()), model_of(other.path()));
}

#[test]
fn what_goes_with_nothing_is_not_decoded_and_what_does_not_decode_takes_its_half_along() {
    let data = tempfile::tempdir().unwrap();
    let job = captions(data.path());
    let run = |job: &str| {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let report = train(job, 2, false, dir.path(), &[], &link).map_err(|e| e.to_string())?;
        let notices = link.notices.lock().unwrap();
        Ok::<_, String>((report.samples, notices.iter().filter(|n| **n == Notice::SamplesSkipped).count()))
    };
    let spoil = |name: &str| std::fs::write(data.path().join(name), "no image").unwrap();
    // No text names them.
    ["train/3.png", "val/3.png"].into_iter().for_each(spoil);
    assert_eq!(run(&job), Ok(([8, 8], 4)));
    // The photo, and then its two texts.
    spoil("train/5.png");
    assert!(run(&job).unwrap_err().contains("`5.png` cannot be decoded"));
    assert_eq!(run(&job.replace("batch = 4", "batch = 4, skip_bad = 1")), Ok(([7, 8], 6)));
}

#[test]
fn samples_that_are_judged_and_trained_on_are_told_in_a_plan_and_in_the_run() {
    let data = tempfile::tempdir().unwrap();
    let job = captions(data.path());
    let told = |job: &str| {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let plan = crate::train::probe::probe(&config(job, dir.path(), "cache", Vec::new())).unwrap();
        assert_eq!((plan.dimensions, plan.classes.len()), (Some(8), 0));
        train(job, 1, false, dir.path(), &[], &link).unwrap();
        let warnings: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("too, first")).collect();
        let notices = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::SameSamples).count();
        assert_eq!(warnings.len(), notices);
        warnings
    };
    // One of nine photos has no text.
    let said = told(&job);
    assert!(said[0].starts_with("8 of 8 samples of `data.val` are in `data.train` too, first `0.png`"), "{said:?}");
    for i in 0..9u8 {
        let other = image::RgbImage::from_pixel(20, 20, image::Rgb([1, i, 7]));
        other.save(data.path().join(format!("val/{i}.png"))).unwrap();
    }
    assert!(told(&job).is_empty());
    let one = image::RgbImage::from_pixel(20, 20, image::Rgb([1, 2, 7]));
    // What goes with nothing is in neither.
    one.save(data.path().join("train/3.png")).unwrap();
    assert!(told(&job).is_empty());
    one.save(data.path().join("train/4.png")).unwrap();
    assert!(told(&job)[0].starts_with("1 of 8 samples of `data.val` is in `data.train` too, first `2.png`"));
}

#[test]
fn what_goes_with_nothing_is_refused() {
    let refused = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string()
    };
    let clip = job("method = \"clip\"");
    let other_classes = clip.replace("train = \"shifted\", val = \"shifted\"", "train = \"target\", val = \"target\"");
    let error = refused(&other_classes);
    assert!(error.contains("no sample of `data.train` goes with one of `data.pairs.train`: classes"), "{error}");
    let texts = clip.replace(
        "backbone = \"small_cnn\"\nhead = { hidden = [24]",
        "backbone = \"embedding_lstm\"\nhead = { hidden = [24]",
    );
    let error = refused(&texts);
    assert!(error.contains("embedding_lstm wants text, and `data.pairs.train` has images"), "{error}");
    let precise = clip.replace("[nets.tower]", "[nets.tower]\nprecision = \"bf16\"");
    assert!(refused(&precise).contains("different precisions"));
    let unknown = clip.replace("\"tower.head\"", "\"tower.tail\"");
    assert!(refused(&unknown).contains("`tower.tail` names no parameters"));
}

#[test]
fn units_of_a_teacher_of_other_halves_are_of_those() {
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let job = crossed(dirs[0].path(), "method = \"logits\"");
    train(&job, 1, false, dirs[1].path(), &[], &Recorder::default()).unwrap();
    let features = units(&job, 2, dirs[2].path());
    let (computed, _) = taught(&job, features, dirs[3].path());
    assert_eq!((computed, model_of(dirs[3].path())), (0, model_of(dirs[1].path())));
}
