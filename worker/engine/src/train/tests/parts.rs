//! Whole runs that train small parts in place of the weights: LoRA, IA3, bottlenecks.

use std::collections::BTreeMap;

use tl_proto::spec::ModelSection;

use super::{
    text::{CONFIG, folder, job, sentences, stage},
    *,
};
use crate::{
    predict::{Asked, Model},
    train::{export::StageFigures, probe},
    weights::peft::FILES,
};

const HEAD: &str = "\"head\"";

/// A job on sentences with a tiny encoder that has random weights; `more` goes into its `[model]`.
fn text_job(data: &Path, more: &str, stages: &str, modifiers: &str) -> String {
    text_job_on("bert", data, more, stages, modifiers)
}

fn text_job_on(backbone: &str, data: &Path, more: &str, stages: &str, modifiers: &str) -> String {
    let weights = folder(backbone, data, CONFIG);
    let model = format!("{{ backbone = \"{backbone}\", weights = \"{weights}\", input = 16{more} }}");
    job(data, &model, &format!("{modifiers}\n{stages}"))
}

/// What a finished run left: digests of the model and of the adapter.
fn left(dir: &Path) -> Vec<blake3::Hash> {
    let files = ["model.safetensors", FILES[0], FILES[1]].map(|name| std::fs::read(dir.join("work/model").join(name)));
    files.into_iter().map(|bytes| blake3::hash(&bytes.unwrap())).collect()
}

fn tensors(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect()
}

fn refused(job: &str) -> String {
    let spec = JobSpec::from_toml(job, &[]).unwrap();
    if let Err(e) = tl_proto::spec::check(&spec, &crate::catalog()) {
        return format!("{e}; {}", e.hint);
    }
    let dir = tempfile::tempdir().unwrap();
    match train(job, 1, false, dir.path(), &[], &Recorder::default()) {
        Err(Error::User { message, hint }) => format!("{message}; {hint}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lora_gives_the_same_model_and_adapter_for_any_number_of_ranks() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let stages = stage("one", HEAD, 1, 0.01) + &stage("two", "\"head\", \"pooler\"", 20, 0.02);
    let lora = "[modifiers.lora]\nrank = 4\ndropout = 0.1\n[modifiers.ema]\ndecay = 0.5\n";
    let job = text_job(data.path(), "", &stages, lora);
    let plan = probe::probe(&config(&job, data.path(), "cache", Vec::new())).unwrap();
    assert!(plan.warnings.iter().all(|w| !w.contains("leaves the head out")), "{:?}", plan.warnings);
    let mut wanted = None;
    for (world, apart) in [(1, false), (2, false), (3, true)] {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, world, apart, dir.path(), &[], &Recorder::default()).unwrap();
        let got = (left(dir.path()), report.evaluation.clone());
        assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks");
        // Query and value of two layers, 16 wide, of rank 4; a head of two classes.
        let lora = 2 * 2 * (4 * 16 + 16 * 4);
        assert_eq!(report.stages[0].trained, lora + 2 * 16 + 2);
        assert_eq!(report.stages[1].trained, report.stages[0].trained + 16 * 16 + 16);
        // A plan does not list the units.
        let said: Vec<_> = report.stages.iter().map(|s| StageFigures { units: Vec::new(), ..s.clone() }).collect();
        assert_eq!((&plan.stages, report.stages[0].first_unit.as_str()), (&said, "encoder.layer.0"));
        assert!(report.evaluation.accuracy > 0.9, "{}", report.evaluation.accuracy);

        // The model stands alone, with what was learnt in its weights.
        let model = dir.path().join("work/model/model.safetensors");
        let alone = dir.path().join("alone.safetensors");
        std::fs::copy(&model, &alone).unwrap();
        let place = data.path().join("val.tsv").display().to_string();
        let again = Model::open(&alone).unwrap().evaluate(&Asked::of("text", &place, Default::default(), 0)).unwrap();
        assert_eq!(again.accuracy, report.evaluation.accuracy);
        assert!((again.loss - report.evaluation.loss).abs() < 1e-4, "{} {}", again.loss, report.evaluation.loss);
        let (before, after) = (tensors(&data.path().join("bert/model.safetensors")), tensors(&model));
        let same = |name: &str| before[&format!("bert.{name}")] == after[name];
        assert!(same("encoder.layer.0.attention.self.key.weight") && same("embeddings.word_embeddings.weight"));
        assert!(same("encoder.layer.1.attention.self.query.bias") && !same("pooler.dense.weight"));
        assert!(!same("encoder.layer.0.attention.self.query.weight") && after.keys().all(|n| !n.contains("lora")));
        // What a stage named is saved with the adapter.
        let names: Vec<String> = tensors(&dir.path().join("work/model").join(FILES[1])).into_keys().collect();
        assert_eq!(names.len(), 2 * 2 * 2 + 4, "{names:?}");
        assert!(names.contains(&"base_model.model.bert.pooler.dense.weight".to_owned()), "{names:?}");
    }
}

#[test]
fn an_adapter_is_worked_into_its_base_or_trained_on() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let first = tempfile::tempdir().unwrap();
    let start = text_job(data.path(), "", &stage("s", HEAD, 15, 0.02), "[modifiers.lora]\nalpha = 3\ndropout = 0.25\n");
    let report = train(&start, 1, false, first.path(), &[], &Recorder::default()).unwrap();
    let place = first.path().join("work/model").display().to_string();

    // Base and adapter are the model that the job left, bit by bit.
    let mut model: ModelSection = JobSpec::from_toml(&start, &[]).unwrap().model.unwrap();
    (model.adapter, model.head.keep) = (Some(place.clone()), true);
    let classes = ["bad".to_owned(), "good".to_owned()];
    let net = Net::build(&model, &classes, false, 1, &[].into()).unwrap();
    let whole = tensors(&first.path().join("work/model/model.safetensors"));
    for entry in &net.network.initial.params {
        let bytes = crate::collective::to_bytes(&net.network.initial.values[entry.range.clone()]);
        assert_eq!(whole[&entry.name], bytes, "{}", entry.name);
    }

    let more = |model: &str, modifiers: &str| text_job(data.path(), model, &stage("s", HEAD, 1, 1e-6), modifiers);
    let from = format!(", adapter = \"{place}\", head = {{ keep = true }}");
    let dir = tempfile::tempdir().unwrap();
    let on = train(&more(&from, "[modifiers.lora]\n"), 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert!((on.evaluation.loss - report.evaluation.loss).abs() < 1e-3, "it goes on from where the other job ended");
    assert_eq!(on.stages[0].trained, report.stages[0].trained);
    let config = std::fs::read_to_string(dir.path().join("work/model").join(FILES[0])).unwrap();
    assert!(config.contains("\"lora_alpha\": 3") && config.contains("\"lora_dropout\": 0.25"), "{config}");
    let other =
        train(&more(&from, "[modifiers.lora]\ndropout = 0.5\n"), 1, false, dir.path(), &[], &Recorder::default());
    other.unwrap();
    let config = std::fs::read_to_string(dir.path().join("work/model").join(FILES[0])).unwrap();
    assert!(config.contains("\"lora_dropout\": 0.5"), "{config}");
    let dir = tempfile::tempdir().unwrap();
    let merged = train(&more(&from, ""), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert!(merged.stages[0].trained == 2 * 16 + 2 && merged.stages[0].first_unit == "classifier");
    assert!((merged.evaluation.loss - report.evaluation.loss).abs() < 1e-3);

    let twice = more(&from, "").replace(&folder("bert", data.path(), CONFIG), &place);
    assert!(refused(&twice).contains("is in the weights already;"));
    // Whatever file it is in.
    let copied = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(Path::new(&place).join(name), copied.path().join(name)).unwrap();
    }
    let file = copied.path().join(FILES[1]);
    let bytes = std::fs::read(&file).unwrap();
    let said = [("note".to_owned(), "saved again".to_owned())].into();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    std::fs::write(&file, safetensors::serialize(tensors, Some(said)).unwrap()).unwrap();
    assert_ne!(std::fs::read(&file).unwrap(), bytes);
    let again = twice.replace(&format!("adapter = \"{place}\""), &format!("adapter = \"{}\"", copied.path().display()));
    assert!(again != twice && refused(&again).contains("is in the weights already;"));
    // However many jobs lie in between.
    let base = folder("bert", data.path(), CONFIG);
    let second = dir.path().join("work/model").display().to_string();
    let third = tempfile::tempdir().unwrap();
    let on = more("", "").replace(&base, &second);
    train(&on, 1, false, third.path(), &[], &Recorder::default()).unwrap();
    for from in [second, third.path().join("work/model").display().to_string()] {
        let again = more(&format!(", adapter = \"{place}\""), "").replace(&base, &from);
        assert!(refused(&again).contains("is in the weights already"), "{from}");
    }
    assert!(
        refused(&more(&from, "[modifiers.lora]\nrank = 8")).contains("`modifiers.lora.rank` is said by the adapter")
    );
    assert!(refused(&more(&from, "[modifiers.ia3]")).contains("is not of the kind of `modifiers.ia3`"));
    assert!(refused(&more(", adapter = \"/nowhere\"", "")).contains("the adapter `/nowhere` cannot be used"));
}

#[test]
fn contradictions_and_targets_that_name_nothing_are_refused() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let with =
        |rules: &str, modifiers: &str| refused(&text_job(data.path(), "", &stage("s", rules, 1, 0.1), modifiers));
    for (rules, modifiers, part) in [
        ("\"*\"", "[modifiers.lora]", "stage `s` trains `*`, all weights, and `modifiers.lora` is there to keep them"),
        ("\"*\"", "[modifiers.adapter]", "stage `s` trains `*`"),
        ("\"encoder.layer.1\"", "[modifiers.lora]", "names `encoder.layer.1.attention.self.query.weight`, whose layer"),
        ("\"re:query.bias\"", "[modifiers.lora]", "query.bias`, whose layer learns a change instead"),
        (HEAD, "[modifiers.lora]\ntargets = [\"quary\"]", "`quary` is the end of no name of a dense layer"),
        (HEAD, "[modifiers.lora]\ntargets = [\"quary\"]", "did you mean `query`?"),
        (HEAD, "[modifiers.lora]\ntargets = [\"classifier\"]", "`classifier` is the end of no name"),
        (HEAD, "[modifiers.ia3]\nfeedforward = [\"query\"]", "`query` in `feedforward` is the end of no name"),
        (HEAD, "[modifiers.lora]\nrank = 0", "`modifiers.lora.rank` cannot be 0"),
        (HEAD, "[modifiers.lora]\n[modifiers.adapter]", "different answers to one question"),
    ] {
        let error = with(rules, modifiers);
        assert!(error.contains(part), "{modifiers}: {error}");
    }
    let images = |modifiers: &str| refused(&format!("{}{modifiers}", JOB.replace("\"*\"", "\"head\"")));
    let error = images("[modifiers.adapter]\n");
    assert!(error.contains("wants blocks that normalise sums, as BERT's do, and small_cnn has none"), "{error}");
    let before =
        JOB.replace("small_cnn\"", "vit_s16\", input = 32").replace("\"*\"", "\"head\"") + "[modifiers.adapter]\n";
    assert!(refused(&before).contains("blocks that normalise sums, as BERT's do, and vit_s16 has none"));
    let resnet = JOB.replace("small_cnn\"", "resnet18\", input = 32").replace("\"*\"", "\"head\", \"conv1\"");
    let error = refused(
        &format!("{resnet}[modifiers.lora]\ntargets = [\"layer1.0.conv1\"]\n").replace("\"block3\"", "\"layer4\""),
    );
    assert!(error.contains("trains `conv1`, and peft takes that name for `layer1.0.conv1` too"), "{error}");
    // Ends that are numbers tell nothing, and what is hit alone is depthwise.
    let mobile = JOB.replace("small_cnn\"", "mobilenet_v2\", input = 32").replace("\"*\"", "\"head\"");
    let error = refused(&format!("{mobile}[modifiers.lora]\ntargets = [\"conv.1.0\"]\n"));
    assert!(error.contains("known: features.0.0, ") && error.contains("depthwise convolutions take none"), "{error}");
    let error = images("[modifiers.lora]\n");
    assert!(
        error.contains("small_cnn has none of its usual targets (query, ") && error.contains("end in conv"),
        "{error}"
    );
}

#[test]
fn lora_above_a_cut_leaves_the_prefix_to_the_cache_and_survives_an_interruption() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let lora = "[modifiers.lora]\nrslora = true\ntargets = [\"re:layer\\\\.1\\\\..*(query|dense)\"]\n";
    let job = text_job(data.path(), "", &stage("s", HEAD, 3, 0.01), lora) + "layer_decay = 0.5\n";
    let whole = tempfile::tempdir().unwrap();
    let report = train(&job, 1, false, whole.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(
        (report.stages[0].first_unit.as_str(), report.prefix.computed),
        ("encoder.layer.1", 32),
        "sentences come twice"
    );
    // The encoder's last block is two blocks away from the head, with the pooler between them.
    assert_eq!(report.stages[0].lr, [0.0025, 0.01]);
    let config = std::fs::read_to_string(whole.path().join("work/model").join(FILES[0])).unwrap();
    let layers =
        r"bert\\.encoder\\.layer\\.1\\.(?:attention\\.(?:output\\.dense|self\\.query)|(?:intermediate|output)\\.dense)";
    assert!(config.contains(layers), "{config}");
    for stop_after in [1, 7] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
        train(&job, 2, false, dir.path(), &[], &link).unwrap_err();
        let resume = link.checkpoints.lock().unwrap().clone();
        train(&job, 3, false, dir.path(), &resume, &Recorder::default()).unwrap();
        assert_eq!(left(dir.path()), left(whole.path()), "stopped after {stop_after}");
    }
}

#[test]
fn parts_of_every_kind_learn_what_a_head_cannot_and_what_they_leave_is_whole() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    // The mean of all rows has something of the last word in it even where the encoder is random, unlike `[CLS]` of BERT.
    let job = |stages: &str, modifiers: &str| text_job_on("minilm", data.path(), "", stages, modifiers);
    let stages = stage("s", HEAD, 60, 0.04);
    let dir = tempfile::tempdir().unwrap();
    let alone = train(&job(&stages, ""), 2, false, dir.path(), &[], &Recorder::default()).unwrap().evaluation;
    let looked = probe::probe(&config(&job(&stages, "[modifiers.lora]\n"), dir.path(), "cache", Vec::new())).unwrap();
    assert!(looked.warnings.iter().any(|w| w.contains("peft loads the adapter and leaves the head out")));
    let kind = |kind: &str| format!("[modifiers.adapter]\nreduction = 4\nkind = \"{kind}\"\n");
    // Two layers; bottlenecks are 4 wide.
    let one = 4 * 16 + 4 + 16 * 4 + 16;
    for (modifiers, parts) in [
        ("[modifiers.lora]\nrank = 2\n".into(), 2 * 2 * 2 * (16 + 16)),
        ("[modifiers.ia3]\n".into(), 2 * (3 * 16 + 32)),
        (kind("pfeiffer"), 2 * one),
        (kind("houlsby"), 4 * one),
    ] {
        let mut wanted = None;
        for world in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&job(&stages, &modifiers), world, false, dir.path(), &[], &Recorder::default()).unwrap();
            assert_eq!(report.stages[0].trained, parts + 2 * 16 + 2, "{modifiers}");
            assert_eq!(*wanted.get_or_insert(model_of(dir.path())), model_of(dir.path()), "{modifiers}");
            let (loss, accuracy) = (report.evaluation.loss, report.evaluation.accuracy);
            assert!(accuracy > 0.9 && loss < alone.loss / 2.0, "{modifiers}: {accuracy}, {loss}, head {}", alone.loss);
            let place = data.path().join("val.tsv").display().to_string();
            let file = dir.path().join("work/model");
            let again =
                Model::open(&file).unwrap().evaluate(&Asked::of("text", &place, Default::default(), 0)).unwrap();
            assert!((again.loss - loss).abs() < 1e-4);
            let is_bottleneck = modifiers.contains("kind");
            assert_eq!(file.join(FILES[1]).is_file(), !is_bottleneck, "only peft's kinds have peft's files");
            if !is_bottleneck || world > 1 {
                continue;
            }
            // Another job that begins with it keeps the bottlenecks as weights like others.
            assert_eq!(again, report.evaluation);
            let from = file.display().to_string();
            let start = |stages: &str, modifiers: &str| {
                text_job_on("minilm", data.path(), ", head = { keep = true }", stages, modifiers)
                    .replace(&folder("minilm", data.path(), CONFIG), &from)
            };
            let dir = tempfile::tempdir().unwrap();
            let next = start(&stage("s", HEAD, 1, 1e-7), "");
            let next = train(&next, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
            assert_eq!((next.stages[0].trained, next.stages[0].first_unit.as_str()), (2 * 16 + 2, "classifier"));
            assert!((next.evaluation.loss - loss).abs() < 1e-3);
            let kept = Model::open(&dir.path().join("work/model")).unwrap();
            assert_eq!(kept.evaluate(&Asked::of("text", &place, Default::default(), 0)).unwrap(), next.evaluation);
            let error = refused(&start(&stage("s", HEAD, 1, 0.1), "[modifiers.lora]\n"));
            assert!(error.contains("bottleneck adapters of another kind"), "{error}");
            // A file that says it has them must have them all, whoever asks.
            let whole = std::fs::read(file.join("model.safetensors")).unwrap();
            let said = crate::weights::metadata(&file.join("model.safetensors")).unwrap().into_iter().collect();
            let read = safetensors::SafeTensors::deserialize(&whole).unwrap();
            let gone = "encoder.layer.1.output_adapter.up.bias";
            let kept: Vec<_> = read.tensors().into_iter().filter(|(name, _)| name != gone).collect();
            assert!(kept.len() + 1 == read.len());
            std::fs::write(file.join("model.safetensors"), safetensors::serialize(kept, Some(said)).unwrap()).unwrap();
            for modifiers in ["", &modifiers] {
                let error = refused(&start(&stage("s", HEAD, 1, 0.1), modifiers));
                assert!(error.contains(&format!("no {gone}")), "{error}");
            }
        }
    }
}

#[test]
fn convolutions_learn_changes_too_and_one_step_is_enough_to_be_judged() {
    let head = JOB.split("[[stage]]").next().unwrap();
    let lora = "[modifiers.lora]\nrank = 2\ntargets = [\"conv\"]\n[modifiers.mixup]\n";
    let stage = "[[stage]]\nname = \"s\"\nepochs = 2\ntrain = [\"head\", \"norms\"]\nlr = 0.01\nbn = \"train\"\n";
    let job = format!("{head}{lora}{stage}");
    let mut wanted = None;
    for world in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        assert_eq!(wanted.get_or_insert_with(|| left(dir.path())), &left(dir.path()), "{world} ranks");
        assert_eq!(report.stages[0].first_unit, "block0");
        let saved = tensors(&dir.path().join("work/model").join(FILES[1]));
        for name in
            ["block1.norm.running_mean", "block3.conv.lora_B.weight", "own_head.fc.bias", "own_head.head.0.norm.weight"]
        {
            assert!(saved.contains_key(&format!("base_model.model.{name}")), "{name}");
        }
    }
    // A's gradient is zero in the first step, and there is no other.
    let short = job.replace("batch = 23", "batch = 64").replace("epochs = 2", "epochs = 1");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(train(&short, 1, false, dir.path(), &[], &Recorder::default()).unwrap().steps, 1);
}

#[test]
fn ranks_and_runs_that_go_on_have_the_same_adapter() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let job = |from: &str, lora: &str| {
        text_job(data.path(), from, &stage("s", HEAD, 2, 0.02), &format!("[modifiers.lora]\n{lora}"))
    };
    let left = |dir: &tempfile::TempDir| format!(", adapter = \"{}\"", dir.path().join("work/model").display());
    train(&job("", ""), 1, false, dirs[0].path(), &[], &Recorder::default()).unwrap();
    let first = job(&left(&dirs[0]), "");
    train(&first, 1, false, dirs[1].path(), &[], &Recorder::default()).unwrap();
    let second = job(&left(&dirs[1]), "");
    let said = |result: Result<Report>| match result {
        Err(Error::User { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    let apart = train_each(&[first.as_str(), &second], false, dirs[2].path(), &[], &Recorder::default());
    assert!(said(apart).contains("rank 1 has another adapter than rank 0"));
    let dropped = job(&left(&dirs[0]), "dropout = 0.5");
    let apart = train_each(&[first.as_str(), &dropped], false, dirs[2].path(), &[], &Recorder::default());
    assert!(said(apart).contains("rank 1 has another adapter than rank 0"));

    let link = Recorder { stop_after: Some(1), ..Recorder::default() };
    train(&first, 2, false, dirs[2].path(), &[], &link).unwrap_err();
    let resume = link.checkpoints.lock().unwrap().clone();
    assert!(!resume.is_empty());
    for other in [&second, &dropped, &job("", "rank = 4")] {
        let on = train(other, 2, false, dirs[2].path(), &resume, &Recorder::default());
        assert!(said(on).contains("the checkpoint is of a run with another adapter"), "{other}");
    }
    train(&first, 1, false, dirs[2].path(), &resume, &Recorder::default()).unwrap();
}

#[test]
fn ranks_and_runs_that_go_on_have_a_teacher_with_the_same_adapter() {
    let data = tempfile::tempdir().unwrap();
    sentences(data.path());
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let lora = text_job(data.path(), "", &stage("s", HEAD, 1, 0.02), "[modifiers.lora]\n");
    for (dir, lora) in dirs.iter().zip([lora.clone(), lora.replace("seed = 7", "seed = 8")]) {
        train(&lora, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    }
    let base = folder("bert", data.path(), CONFIG);
    let with = |more: &str| {
        let teacher = format!("[nets.teacher]\nbackbone = \"bert\"\nweights = \"{base}\"\ninput = 16\n{more}");
        let job = text_job(data.path(), "", &stage("s", HEAD, 2, 0.02), &teacher);
        job.replace("\"finetune\"", "\"distill\"")
    };
    let adapter = |dir: &tempfile::TempDir| format!("adapter = \"{}\"\n", dir.path().join("work/model").display());
    let [first, second] = [0, 1].map(|i| with(&adapter(&dirs[i])));
    let said = |result: Result<Report>| match result {
        Err(Error::User { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    let apart = train_each(&[first.as_str(), &second], false, dirs[2].path(), &[], &Recorder::default());
    assert!(said(apart).contains("rank 1 has another adapter than rank 0"));

    let link = Recorder { stop_after: Some(1), ..Recorder::default() };
    train(&first, 1, false, dirs[2].path(), &[], &link).unwrap_err();
    let resume = link.checkpoints.lock().unwrap().clone();
    assert!(!resume.is_empty());
    for other in [&second, &with("")] {
        let on = train(other, 1, false, dirs[2].path(), &resume, &Recorder::default());
        assert!(said(on).contains("the checkpoint is of a run with another adapter"), "{other}");
    }
    train(&first, 1, false, dirs[2].path(), &resume, &Recorder::default()).unwrap();
}

#[test]
fn a_look_reads_the_adapter_even_where_the_weights_are_not_here_yet() {
    let dir = tempfile::tempdir().unwrap();
    let lora = "[modifiers.lora]\nrank = 2\ntargets = [\"conv\"]\n";
    let head = JOB.split("[[stage]]").next().unwrap();
    let stage = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"head\"]\nlr = 0.01\n";
    let trained = train(&format!("{head}{lora}{stage}"), 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let look = |adapter: &str, modifiers: &str| {
        let more = format!("small_cnn\", weights = \"hf://a/b\", adapter = \"{adapter}\"");
        let mut config =
            config(&format!("{}{modifiers}{stage}", head.replace("small_cnn\"", &more)), dir.path(), "c", Vec::new());
        config.absent = [("hf://a/b".to_owned(), 1)].into();
        probe::probe(&config)
    };
    let place = dir.path().join("work/model").display().to_string();
    let on = look(&place, "[modifiers.lora]\n").unwrap();
    assert_eq!(on.stages[0].trained, trained.stages[0].trained);
    assert!(look(&place, "").unwrap().stages[0].trained < on.stages[0].trained);
    let error = look("/nowhere", "").unwrap_err().to_string();
    assert!(error.contains("the adapter `/nowhere` cannot be used"), "{error}");
}
