//! Whole runs on drawings.

use super::*;
use crate::predict::{Asked, Model};

/// One line to the right or down, with a stroke across it, of so many points and of any size; its number is its name.
fn line(i: usize) -> String {
    let (word, down) = if i.is_multiple_of(2) { ("flat", 0.0) } else { ("tall", 1.0) };
    let shake = |k: usize| ((k * 7_919 + i * 31) % 101) as f64 / 101.0 - 0.5;
    let (size, n) = (1.0 + (i % 4) as f64, 4 + i % 7);
    let along = |k: usize| 10.0 * size * k as f64 + size * shake(k);
    let axis = |part: f64| (0..n).map(|k| part * along(k) + 2.0 * size * shake(k + 50)).collect::<Vec<f64>>();
    let (x, y) = (axis(1.0 - down), axis(down));
    format!("{{\"word\":\"{word}\",\"key_id\":\"{i}\",\"drawing\":[[{x:?},{y:?}],[[0,{size}],[{size},0]]]}}\n")
}

/// A file of them, and its place.
fn drawings(dir: &Path, name: &str, numbers: std::ops::Range<usize>) -> String {
    let path = dir.join(name);
    std::fs::write(&path, numbers.map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn job(place: &str, data: &str, model: &str) -> String {
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 7 }}\nmodel = {{ backbone = \"stroke_lstm\"{model} }}\n\
         data = {{ format = \"strokes\", train = {place:?}, val = {place:?}, batch = 7, grains = 3, {data}\
         params = {{ held_out = \"[05]$\", points = 8 }} }}\n\
         [[stage]]\nname = \"all\"\nepochs = 12\ntrain = [\"*\"]\nlr = 0.005\n\
         [[stage]]\nname = \"head\"\nepochs = 1\ntrain = [\"head\"]\nlr = 0.001\n"
    )
}

#[test]
fn a_network_learns_to_read_drawings_and_the_model_reads_as_it_was_trained() {
    let data = tempfile::tempdir().unwrap();
    let place = drawings(data.path(), "all.ndjson", 0..40);
    let mut wanted = None;
    for (world, apart) in [(1, false), (3, true)] {
        let dir = tempfile::tempdir().unwrap();
        for warm in [false, true] {
            let job = job(&place, "", ", head = { hidden = [16], dropout = 0.1 }");
            let report = train(&job, world, apart, dir.path(), &[], &Recorder::default()).unwrap();
            assert_eq!((report.samples, report.stages[1].first_unit.as_str()), ([32, 8], "head.0"));
            assert!(report.evaluation.accuracy > 0.8, "{}", report.evaluation.accuracy);
            // In the second stage nothing but the head learns: what is below ran once.
            assert_eq!(report.prefix.computed, if warm { 0 } else { 40 });
            let got = (model_of(dir.path()), report.evaluation);
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks, warm: {warm}");
        }
        // Nothing is said any more of how drawings are read: it is in the file.
        let model = Model::open(&dir.path().join("work/model")).unwrap();
        assert_eq!(model.classes(), ["flat", "tall"]);
        let held_out: tl_proto::spec::Params = [("held_out".to_owned(), "[05]$".into())].into();
        let again = model.evaluate(&Asked::of("strokes", &place, held_out, 0)).unwrap();
        assert_eq!(again, wanted.as_ref().unwrap().1);
        let right = |i: usize| {
            let path = drawings(data.path(), "one.ndjson", i..i + 1);
            model.predict(Path::new(&path)).unwrap()[i % 2] > 0.5
        };
        assert!((40..60).filter(|i| right(*i)).count() > 15);
        let other = [("points".to_owned(), 9.into())].into();
        let error = model.evaluate(&Asked::of("strokes", &place, other, 0)).unwrap_err().to_string();
        assert!(error.contains("trained on drawings of at most 8 points"), "{error}");
        let error = model.predict(Path::new(&place)).unwrap_err().to_string();
        assert!(error.contains("several drawings"), "{error}");
        // Classes from a few drawings of each.
        let learned = model.learn(Path::new(&place)).unwrap();
        assert_eq!(learned.classes(), ["flat", "tall"]);
        let one = drawings(data.path(), "one.ndjson", 40..41);
        assert!(learned.predict(Path::new(&one)).unwrap()[0] > 0.5);
    }
}

/// Texts that go with drawings by name, in a file.
fn texts(dir: &Path) -> String {
    let path = dir.join("texts.tsv");
    let line = |i: usize| format!("{i}\ta {} line\n", if i.is_multiple_of(2) { "flat" } else { "tall" });
    std::fs::write(&path, (0..24).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

#[test]
fn drawings_are_either_half_of_a_pair_and_any_number_of_ranks_gives_the_same_file() {
    let data = tempfile::tempdir().unwrap();
    let (place, texts) = (drawings(data.path(), "all.ndjson", 0..30), texts(data.path()));
    let drawn = format!("format = \"strokes\", train = {place:?}, val = {place:?}");
    let written = format!("format = \"text\", train = {texts:?}, val = {texts:?}");
    let lstm = "backbone = \"stroke_lstm\"";
    let reader = "backbone = \"transformer_small\", input = 8";
    for (ours, theirs, model, tower) in [(&drawn, &written, lstm, reader), (&written, &drawn, reader, lstm)] {
        let job = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"contrastive\", seed = 3 }}\n\
             data = {{ {ours}, batch = 9, grains = 3, pairs = {{ {theirs} }} }}\nmodel = {{ {model} }}\n\
             objective = {{ dimensions = 8 }}\nnets = {{ tower = {{ {tower} }} }}\n\
             [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\n\
             [[stage]]\nname = \"heads\"\nepochs = 1\ntrain = [\"head\", \"tower.head\"]\nlr = 0.001\n"
        );
        let mut wanted = None;
        for world in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
            assert_eq!(report.samples, [24, 24]);
            let got = (model_of(dir.path()), report.retrieval.unwrap());
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{world} ranks");
        }
    }
}

#[test]
fn a_teacher_of_drawings_teaches_a_network_of_texts() {
    let data = tempfile::tempdir().unwrap();
    let place = drawings(data.path(), "all.ndjson", 0..30);
    let taught = tempfile::tempdir().unwrap();
    train(&job(&place, "", ""), 1, false, taught.path(), &[], &Recorder::default()).unwrap();
    let weights = taught.path().join("work/model").display().to_string();
    let path = data.path().join("words.tsv");
    let line = |i: usize| [format!("flat\ta low line{i}\n"), format!("tall\ta high line{i}\n")].concat();
    std::fs::write(&path, (0..10).map(line).collect::<String>()).unwrap();
    let texts = path.display().to_string();
    let job = format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"cross_distill\", seed = 3 }}\n\
         data = {{ format = \"text\", train = {texts:?}, val = {texts:?}, batch = 7, grains = 3, pairs = {{ \
         format = \"strokes\", train = {place:?}, by = \"label\" }} }}\n\
         model = {{ backbone = \"embedding_lstm\", input = 8 }}\n\
         nets = {{ teacher = {{ backbone = \"stroke_lstm\", weights = {weights:?} }} }}\n\
         [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.001\n"
    );
    let mut wanted = None;
    for world in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        let got = model_of(dir.path());
        assert_eq!(*wanted.get_or_insert(got), got, "{world} ranks");
    }
}

#[test]
fn episodes_are_drawn_from_drawings() {
    let data = tempfile::tempdir().unwrap();
    let place = drawings(data.path(), "all.ndjson", 0..40);
    let episodes = "episodes = { way = 2, shot = 2, query = 2, per_epoch = 4, val = 4, test = 10 }, ";
    let job = job(&place, episodes, "").replace("finetune", "fewshot").replace("7, grains = 3", "2, grains = 2");
    // The nearest prototype has no head.
    let job = job.replace("epochs = 12", "epochs = 1").split("[[stage]]\nname = \"head\"").next().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
    assert_eq!(report.evaluation.episodes.unwrap().count, 10);
    // There are no pixels to be compared.
    let names: Vec<&str> = report.baselines.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["nearest prototype on the untrained network"]);
}

#[test]
fn drawings_are_not_mixed_up_with_anything_else() {
    let data = tempfile::tempdir().unwrap();
    let place = drawings(data.path(), "all.ndjson", 0..20);
    let refused = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string()
    };
    let good = job(&place, "", "");
    let images = JOB.replace("backbone = \"small_cnn\"", "backbone = \"stroke_lstm\"");
    assert_eq!(refused(&images), "stroke_lstm wants drawings, and `data.train` has images");
    let cnn = good.replace("stroke_lstm", "small_cnn");
    assert_eq!(refused(&cnn), "small_cnn wants images, and `data.train` has drawings");
    let turned = job(&place, "augment = { flip = true, views = 2 }, ", "");
    assert!(refused(&turned).contains("say nothing of drawings"));
    let sized = job(&place, "", ", input = 64");
    assert!(refused(&sized).contains("stroke_lstm reads drawings, which have neither"));
    std::fs::write(data.path().join("all.ndjson"), line(0) + "[]\n").unwrap();
    let error = refused(&good);
    assert!(error.starts_with("line 2 of `") && error.contains("all.ndjson"), "{error}");
}

#[test]
fn so_many_lines_that_cannot_be_drawn_are_left_out() {
    let data = tempfile::tempdir().unwrap();
    let odd = "{\"word\":\"flat\",\"key_id\":\"21\",\"drawing\":[[[1,2],[2]]]}\n";
    let text = (0..20).map(line).collect::<String>() + odd;
    let path = data.path().join("all.ndjson");
    std::fs::write(&path, text).unwrap();
    let run = |more: &str| {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let job = job(&path.display().to_string(), more, "").replace("epochs = 12", "epochs = 1");
        let samples = train(&job, 2, false, dir.path(), &[], &link).map(|report| report.samples);
        (samples, link.notices.lock().unwrap().contains(&Notice::SamplesSkipped))
    };
    let error = run("").0.unwrap_err().to_string();
    assert!(error.contains("`all.ndjson:21` cannot be decoded (has a stroke, number 1, of 2 x and 1 y)"), "{error}");
    let (samples, told) = run("skip_bad = 1, ");
    assert_eq!((samples.unwrap(), told), ([16, 4], true));
}
