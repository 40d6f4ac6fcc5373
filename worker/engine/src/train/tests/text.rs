//! Whole runs on text.

use super::*;
use crate::{
    backbone::{DISTILBERT, Shape},
    data::tokens::{self, Text},
    predict::{Asked, Model},
    weights::{Contract, testing::bare},
};

/// Sentences whose class is the kind of their last word.
pub(super) fn sentences(dir: &Path) {
    let (good, bad) = (["fine", "great", "lovely", "nice"], ["awful", "dull", "poor", "weak"]);
    let starts = ["the film was", "i think it is", "that song , for me , is rather", "we found the food"];
    for (part, shift) in [("train", 0), ("val", 1)] {
        let mut lines = String::new();
        for i in 0..64 {
            let (label, words) = if i % 2 == 0 { ("good", good) } else { ("bad", bad) };
            lines += &format!("{label}\t{} {}\n", starts[(i / 2 + shift) % 4], words[(i / 8) % 4]);
        }
        std::fs::write(dir.join(format!("{part}.tsv")), lines).unwrap();
    }
}

pub(super) fn job(dir: &Path, model: &str, stages: &str) -> String {
    let (train, val) = (dir.join("train.tsv"), dir.join("val.tsv"));
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 7 }}\nmodel = {model}\n\
         data = {{ format = \"text\", train = \"{}\", val = \"{}\", batch = 15, grains = 3 }}\n{stages}",
        train.display(),
        val.display()
    )
}

pub(super) fn stage(name: &str, train: &str, epochs: u32, lr: f64) -> String {
    format!("[[stage]]\nname = \"{name}\"\nepochs = {epochs}\ntrain = [{train}]\nlr = {lr}\n")
}

/// A tiny encoder with random weights, in a folder as Hugging Face has it.
pub(super) fn folder(backbone: &str, dir: &Path, config: &str) -> String {
    let shape = Shape { layers: 2, hidden: 16, heads: 2, wide: 32, words: 60, positions: 20, ..DISTILBERT };
    let kinds = if config.contains("type_vocab_size\": 1") { 1 } else { shape.kinds };
    let shape = Shape { pre_classifier: config.contains("seq_classif_dropout"), kinds, ..shape };
    let text = std::fs::read_to_string(dir.join("train.tsv")).unwrap();
    let learned = tokens::learn(text.lines().map(|l| l.split_once('\t').unwrap().1), 60).unwrap();
    let text = Text::new(12, Some(shape), learned.clone());
    let contract = Contract { text: Some(text), ..Contract::named("unit", 32, None).unwrap() };
    let backbone = crate::backbone::find(backbone).unwrap();
    let mut network = crate::backbone::Network::build(backbone, &contract, &Default::default(), 2, 1);
    network
        .initial
        .params
        .iter_mut()
        .filter(|e| !e.name.contains("classifier"))
        .for_each(|e| e.name.insert_str(0, "bert."));
    let place = dir.join(backbone.name);
    std::fs::create_dir_all(&place).unwrap();
    let (merged, parts, loaded, tower, taps) = Default::default();
    bare(&Net { backbone, network, contract, merged, parts, loaded, tower, taps }, &place.join("model.safetensors"));
    std::fs::write(place.join("tokenizer.json"), learned).unwrap();
    std::fs::write(place.join("config.json"), config).unwrap();
    place.display().to_string()
}

pub(super) const CONFIG: &str = r#"{"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 60, "max_position_embeddings": 20}"#;

#[test]
fn an_encoder_is_fine_tuned_in_stages_and_any_number_of_ranks_gives_the_same_file() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let model = |weights: &str| format!("{{ backbone = \"minilm\", weights = \"{weights}\", input = 16 }}");
    let stages = stage("head", "\"head\"", 1, 0.01)
        + &stage("top", "\"head\", \"encoder.layer.1\"", 2, 0.01)
        + &stage("all", "\"*\"", 8, 0.01);
    let job_text = job(data.path(), &model(&folder("minilm", data.path(), CONFIG)), &stages);
    let mut wanted = None;
    for (world, apart) in [(1, false), (3, true)] {
        let dir = tempfile::tempdir().unwrap();
        for warm in [false, true] {
            let report = train(&job_text, world, apart, dir.path(), &[], &Recorder::default()).unwrap();
            let firsts: Vec<&str> = report.stages.iter().map(|s| s.first_unit.as_str()).collect();
            assert_eq!(firsts, ["classifier", "encoder.layer.1", "embeddings"]);
            assert_eq!(report.prefix.computed, if warm { 0 } else { report.prefix.computed });
            assert!(report.evaluation.accuracy > 0.95, "{}", report.evaluation.accuracy);
            let got = (model_of(dir.path()), report.evaluation);
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks, warm: {warm}");
        }
        // What was exported needs nothing else: not its folder, not the weights that it began with.
        let alone = dir.path().join("alone.safetensors");
        std::fs::copy(dir.path().join("work/model/model.safetensors"), &alone).unwrap();
        let model = Model::open(&alone).unwrap();
        let said = model.predict_text("the film was great").unwrap();
        assert!(model.classes()[1] == "good" && said[1] > 0.5, "{said:?}");
        let place = data.path().join("val.tsv").display().to_string();
        let again = model.evaluate(&Asked::of("text", &place, Default::default(), 0)).unwrap();
        assert_eq!(again, wanted.as_ref().unwrap().1);
        assert!(dir.path().join("work/model/tokenizer.json").is_file());
    }
}

#[test]
fn every_kind_of_encoder_and_the_two_from_scratch_learn() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let distil = r#"{"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60,
        "max_position_embeddings": 20, "activation": "gelu"}"#;
    let weighted = |name: &str, config: &str| {
        let weights = folder(name, data.path(), config);
        format!("{{ backbone = \"{name}\", weights = \"{weights}\", input = 12 }}")
    };
    let scratch = |name: &str| format!("{{ backbone = \"{name}\", input = 12, head = {{ hidden = [32] }} }}");
    let models = [
        (weighted("bert", CONFIG), 30, 0.01),
        (weighted("distilbert", distil), 30, 0.01),
        (scratch("transformer_small"), 30, 0.0003),
        (scratch("embedding_lstm"), 20, 0.01),
    ];
    for (model, epochs, lr) in models {
        let dir = tempfile::tempdir().unwrap();
        let job = job(data.path(), &model, &stage("all", "\"*\"", epochs, lr));
        let report = train(&job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
        assert!(report.evaluation.accuracy > 0.9, "{model}: {}", report.evaluation.accuracy);
    }
}

#[test]
fn texts_that_are_read_in_part_are_told_in_a_plan_in_the_run_and_in_its_report() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let told = |input: u32| {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let model = format!("{{ backbone = \"transformer_small\", input = {input} }}");
        let job = job(data.path(), &model, &stage("all", "\"*\"", 1, 0.001));
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        let report = train(&job, 2, false, dir.path(), &[], &link).unwrap();
        let said: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("that were looked at")).collect();
        assert_eq!(said, report.clipped);
        assert!(said.iter().all(|said| report.to_text().contains(said)));
        let notices = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::TextsCut).count();
        assert_eq!(notices, said.len());
        said
    };
    // One sentence in four has nine words and signs, the others have fewer.
    assert!(told(9).is_empty());
    let said = told(8);
    assert_eq!(said.len(), 2);
    let wanted =
        "8 of 32 texts of `data.train` that were looked at have more than the 8 tokens that are read of each, up to 9";
    assert!(said[0].starts_with(wanted) && said[0].contains("`model.input`"), "{said:?}");
}

#[test]
fn training_samples_of_two_classes_are_told_in_a_plan_and_in_the_run() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let told = || {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let small = "{ backbone = \"transformer_small\", input = 12 }";
        let job = job(data.path(), small, &stage("all", "\"*\"", 1, 0.001));
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        train(&job, 2, false, dir.path(), &[], &link).unwrap();
        let said: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("more than one class")).collect();
        let notices = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::TwoClasses).count();
        assert_eq!(notices, said.len());
        said
    };
    assert!(told().is_empty());
    let train = data.path().join("train.tsv");
    let more = std::fs::read_to_string(&train).unwrap() + "bad\ta new one\ngood\ta new one\n";
    std::fs::write(&train, more).unwrap();
    let wanted = "2 of 66 samples of `data.train` are in more than one class by what is in them, first `line 65` in `bad` and \
                  `line 66` in `good`";
    let said = told();
    assert!(said.len() == 1 && said[0].starts_with(wanted), "{said:?}");
}

#[test]
fn a_model_that_began_anew_is_run_with_what_it_has_learned() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sentences(data.path());
    let weights = folder("bert", data.path(), CONFIG);
    let model = format!("{{ backbone = \"bert\", weights = \"{weights}\", random = true, input = 12 }}");
    let job = job(data.path(), &model, &stage("all", "\"*\"", 2, 0.01));
    let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let place = data.path().join("val.tsv").display().to_string();
    let again = Model::open(&dir.path().join("work/model")).unwrap();
    assert_eq!(again.evaluate(&Asked::of("text", &place, Default::default(), 0)).unwrap(), report.evaluation);
}

#[test]
fn what_is_judged_may_lack_a_class_and_has_no_other() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |name: &str, classes: &[&str]| {
        let line = |i: usize| format!("{}\tthe word{} of it\n", classes[i % classes.len()], i % 3);
        std::fs::write(data.path().join(name), (0..24).map(line).collect::<String>()).unwrap();
    };
    write("train.tsv", &["a", "b", "c"]);
    write("val.tsv", &["c", "a"]);
    write("one.tsv", &["b"]);
    write("odd.tsv", &["a", "d"]);
    let small = "{ backbone = \"transformer_small\", input = 12 }";
    let job = job(data.path(), small, &stage("all", "\"*\"", 1, 0.001));
    let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let support = |e: &crate::eval::Evaluation| e.classes.iter().map(|c| c.support).collect::<Vec<_>>();
    assert_eq!(support(&report.evaluation), [12, 0, 12]);
    let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
    let said = plan.warnings.join("\n");
    assert!(said.contains("1 of 3 classes have no samples in `data.val`"), "{said}");
    let error = train(&job.replace("val.tsv", "odd.tsv"), 1, false, dir.path(), &[], &Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("class `d` is in `data.val` but not in `data.train`"), "{error}");

    let model = Model::open(&dir.path().join("work/model")).unwrap();
    let place = |name: &str| data.path().join(name).display().to_string();
    let scored = |name: &str| model.evaluate(&Asked::of("text", &place(name), Default::default(), 0));
    assert_eq!(scored("val.tsv").unwrap().confusion, report.evaluation.confusion);
    assert_eq!(support(&scored("one.tsv").unwrap()), [0, 24, 0]);
    let error = scored("odd.tsv").unwrap_err();
    assert!(error.to_string().contains("class `d` of"), "{error}");
    assert!(error.to_failure().hint.ends_with("`a`, `b`, `c`"), "{}", error.to_failure().hint);

    let lines = model.predict_lines(&data.path().join("val.tsv"), &Default::default()).unwrap();
    assert_eq!((lines.len(), lines[2].0.as_str()), (24, "line 3"));
    let chances: Vec<f64> = lines[2].1[0].chances.iter().map(|(_, p)| *p).collect();
    assert_eq!(chances, model.predict_text("the word2 of it").unwrap());
}

#[test]
fn weights_that_lack_a_pooler_alone_are_those_of_the_mean() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sentences(data.path());
    let weights = folder("minilm", data.path(), CONFIG);
    let model = format!("{{ backbone = \"bert\", weights = \"{weights}\", input = 12 }}");
    let job = job(data.path(), &model, &stage("head", "\"head\"", 1, 0.01));
    let error = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("no pooler.dense."), "{error}");
    assert!(error.to_failure().hint.contains("`backbone = \"minilm\"`"), "{}", error.to_failure().hint);
}

#[test]
fn text_and_images_are_not_mixed_up() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let dir = tempfile::tempdir().unwrap();
    let stages = stage("head", "\"head\"", 1, 0.01);
    let images = job(data.path(), "{ backbone = \"small_cnn\" }", &stages);
    let error = train(&images, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert_eq!(error, "small_cnn wants images, and `data.train` has text");
    let text = JOB.replace("backbone = \"small_cnn\"", "backbone = \"embedding_lstm\"");
    let error = train(&text, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert_eq!(error, "embedding_lstm wants text, and `data.train` has images");
    let long = job(data.path(), "{ backbone = \"minilm\", input = 600 }", &stages);
    let error = train(&long, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert_eq!(error, "the network takes texts of 512 tokens, and `model.input` is 600");
    let mixed = job(data.path(), "{ backbone = \"embedding_lstm\" }", &stages) + "[modifiers.mixup]\n";
    let error = train(&mixed, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("say nothing of text"), "{error}");
}

#[test]
fn dropout_inside_blocks_is_what_the_config_says_unless_the_job_says_another() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let weights = folder("minilm", data.path(), &CONFIG.replacen('{', "{\"hidden_dropout_prob\": 0.2, ", 1));
    let run = |said: &str| {
        let dir = tempfile::tempdir().unwrap();
        let model = format!("{{ backbone = \"minilm\", weights = \"{weights}\", input = 12{said} }}");
        let job = job(data.path(), &model, &stage("all", "\"*\"", 1, 0.01));
        train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        // What is written says what the blocks drop; what the weights are is another matter.
        let net = Model::open(&dir.path().join("work/model/model.safetensors")).unwrap();
        net.predict_text("the film was great").unwrap()
    };
    let usual = run("");
    assert_eq!(usual, run(", dropout = 0.2, attention_dropout = 0.1"));
    assert_ne!(usual, run(", dropout = 0.1"));
    assert_ne!(usual, run(", attention_dropout = 0.0"));
}

/// The tensor `name` of BERT with its own head for these classes; `said` stands at the beginning of `config.json`.
fn of_bert(dir: &Path, said: &str, classes: &[&str], name: &str) -> Result<(Vec<usize>, Vec<f32>, usize)> {
    let weights = folder("bert", dir, &CONFIG.replacen('{', &format!("{{{said}"), 1));
    let head = tl_proto::spec::HeadSection { keep: true, ..Default::default() };
    let (backbone, weights) = ("bert".into(), Some(weights));
    let model = tl_proto::spec::ModelSection { backbone, weights, head, ..Default::default() };
    let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
    let net = Net::build(&model, &classes, false, 9, &[].into())?;
    let store = &net.network.initial;
    let entry = store.params.iter().find(|e| e.name == name).unwrap();
    let longest = net.contract.text.as_ref().unwrap().max_length;
    Ok((entry.shape.clone(), store.values[entry.range.clone()].to_vec(), longest))
}

#[test]
fn the_outputs_of_a_head_are_the_classes_that_its_config_names() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sentences(data.path());
    let rows = |said: &str, classes: &[&str]| of_bert(data.path(), said, classes, "classifier.weight");
    let values = |said: &str| rows(said, &["bad", "good"]).unwrap().1;
    let lies = values("");
    let turned = [&lies[16..], &lies[..16]].concat();
    for (said, wanted) in [
        (r#""id2label": {"0": "bad", "1": "good"}, "#, &lies),
        (r#""id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "#, &lies),
        (r#""id2label": {"0": "GOOD", "1": "BAD"}, "#, &turned),
        (r#""label_names": ["good", "bad"], "#, &turned),
    ] {
        assert_eq!(&values(said), wanted, "{said}");
    }
    let other = r#""id2label": {"0": "POOR", "1": "FINE"}, "#;
    assert_eq!(&values(other), &lies, "in order, where no name is a class");
    let error = rows(r#""id2label": {"0": "good", "1": "poor"}, "#, &["bad", "good"]).unwrap_err().to_string();
    assert!(error.contains("is for `good`, `poor`, and not for the class `bad` of the data"), "{error}");
    let error = rows("", &["a", "b", "c"]).unwrap_err().to_string();
    assert!(error.contains("is for 2 classes, and the data have 3"), "{error}");
    // A look tells it, and so does the run; a new head is for anything.
    let named = CONFIG.replacen('{', r#"{"id2label": {"0": "good", "1": "bad"}, "#, 1);
    let weights = folder("bert", data.path(), &named);
    for (keep, times) in [(true, 1), (false, 0)] {
        let model = format!("{{ backbone = \"bert\", weights = \"{weights}\", head = {{ keep = {keep} }} }}");
        let job = job(data.path(), &model, &stage("head", "\"head\"", 1, 0.01));
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        let told = plan.warnings.iter().filter(|w| w.contains("the classes `bad`, `good` are its outputs `1`, `0`"));
        assert_eq!(told.count(), times, "{:?}", plan.warnings);
        let link = Recorder::default();
        train(&job, 2, false, dir.path(), &[], &link).unwrap();
        let told = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::OutputsNamed).count();
        assert_eq!(told, times);
    }
}

#[test]
fn an_encoder_has_as_many_kinds_of_tokens_and_takes_texts_as_long_as_its_config_says() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    for (said, kinds) in [("", 2), ("\"type_vocab_size\": 1, ", 1)] {
        let name = "embeddings.token_type_embeddings.weight";
        let (shape, _, longest) = of_bert(data.path(), said, &["bad", "good"], name).unwrap();
        assert_eq!((shape, longest), (vec![kinds, 16], 20), "the usual 128 tokens are more than it has places for");
    }
}

const DISTIL: &str = r#"{"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60,
    "max_position_embeddings": 20, "seq_classif_dropout": 0.2}"#;

#[test]
fn a_classifier_behind_a_prefix_has_all_of_its_layers() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    for (backbone, config) in [("bert", CONFIG), ("distilbert", DISTIL)] {
        let weights = folder(backbone, data.path(), config);
        let path = Path::new(&weights).join("model.safetensors");
        let file = crate::weights::read(&path).unwrap();
        let build = |called: &dyn Fn(&str) -> String| {
            let named = file.iter().map(|(name, t)| (called(name), t.clone()));
            candle_core::safetensors::save(&named.collect(), &path).unwrap();
            let head = tl_proto::spec::HeadSection { keep: true, ..Default::default() };
            let (backbone, weights) = (backbone.to_owned(), Some(weights.clone()));
            let model = tl_proto::spec::ModelSection { backbone, weights, head, ..Default::default() };
            let net = Net::build(&model, &["bad".into(), "good".into()], false, 9, &[].into()).unwrap();
            let units: Vec<String> = net.network.units.iter().map(|unit| unit.name.clone()).collect();
            (units, net.network.initial.values.to_vec())
        };
        let plain = build(&|name: &str| name.to_owned());
        // As PyTorch Lightning keeps a classifier of transformers', and the same without the prefix of the encoder.
        assert_eq!(build(&|name: &str| format!("model.{name}")), plain, "{backbone}");
        let bare = |name: &str| format!("model.{}", name.strip_prefix("bert.").unwrap_or(name));
        assert_eq!(build(&bare), plain, "{backbone}");
    }
}

#[test]
fn a_classifier_of_distilbert_keeps_both_of_its_layers() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let model = |keep: bool| {
        let weights = folder("distilbert", data.path(), DISTIL);
        let head = tl_proto::spec::HeadSection { keep, ..Default::default() };
        tl_proto::spec::ModelSection {
            backbone: "distilbert".into(),
            weights: Some(weights),
            input: Some(12),
            head,
            ..Default::default()
        }
    };
    let net = Net::build(&model(true), &["bad".into(), "good".into()], false, 9, &[].into()).unwrap();
    let units: Vec<&str> = net.network.units.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(units[3..], ["pool", "pre_classifier", "classifier"]);
    let other = Net::build(&model(true), &["bad".into(), "good".into()], false, 8, &[].into()).unwrap();
    assert_eq!(net.network.initial.values, other.network.initial.values, "all of it came from the file");
}
