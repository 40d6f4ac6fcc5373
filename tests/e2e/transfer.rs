//! What the whole thing is for: real photos with real weights, and transfer that pays.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;
use tl_tests::{alone_blocking, data};

use crate::PROGRAM;

/// `tlctl local run` with two ranks; the last event, or what was said instead.
fn local_run(file: &Path, dir: &Path, out: &str, more: &[&str]) -> Value {
    let mut command = Command::new(PROGRAM);
    command.args(["local", "run"]).arg(file).args(["--output", "json"]).args(more);
    command.arg("--cache").arg(dir.join("cache")).arg("--out").arg(dir.join(out));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().and_then(|l| serde_json::from_str(l).ok());
    last.unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn report(dir: &Path, out: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(out).join("report.json")).unwrap()).unwrap()
}

/// The values of a model's tensors.
fn tensors(dir: &Path, out: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(dir.join(out).join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    all.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

fn job(data: &Path, weights: &str) -> String {
    format!(
        r#"
schema = 1
job = {{ name = "ants-bees", kind = "finetune", seed = 42 }}
cluster = {{ ranks = "1..4" }}
stop = {{ monitor = "val.accuracy", restore_best = true }}
[data]
format = "image_folder"
train = "{0}/hymenoptera/train"
val = "{0}/hymenoptera/val"
batch = 32
augment = {{ flip = true, views = 2 }}
[model]
backbone = "mobilenet_v2"
{weights}
[[stage]]
name = "head"
epochs = 8
train = ["head"]
lr = 1e-3
[[stage]]
name = "top"
epochs = 4
train = ["head", "top:20"]
lr = 1e-4
"#,
        data.display()
    )
}

#[test]
fn photos_with_real_weights_reach_95_percent_and_the_frozen_part_runs_once() {
    let Some(data) = data::folder() else { return };
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.toml");
    let pretrained = format!("weights = \"{}/mobilenetv2/model.safetensors\"", data.display());
    std::fs::write(&file, job(&data, &pretrained)).unwrap();
    let first = local_run(&file, dir.path(), "first", &["--ranks", "2"]);
    let accuracy = first["metrics"]["val.accuracy"].as_f64().unwrap_or_else(|| panic!("{first}"));
    assert!(accuracy >= 0.95, "{accuracy}");
    let samples = report(dir.path(), "first")["samples"].clone();
    let (train, val) = (samples[0].as_u64().unwrap(), samples[1].as_u64().unwrap());
    assert_eq!(report(dir.path(), "first")["prefix"]["computed"], 2 * train + val, "each sample and view once");

    // The exported model scores the same in another process.
    let place = format!("{}/hymenoptera/val", data.display());
    let scored = Command::new(PROGRAM)
        .arg("evaluate")
        .arg(dir.path().join("first"))
        .args([&place, "--output", "json"])
        .output()
        .unwrap();
    let scored: Value = serde_json::from_slice(&scored.stdout).unwrap();
    assert_eq!(scored["metrics"]["val.accuracy"].as_f64(), Some(accuracy));
    let bee = std::fs::read_dir(format!("{place}/bees")).unwrap().flatten().map(|e| e.path());
    let bees: Vec<_> = bee.take(20).collect();
    let mut command = Command::new(PROGRAM);
    let said = command.arg("predict").arg(dir.path().join("first")).args(&bees).args(["--output", "json"]).output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    let right = said.lines().filter(|l| serde_json::from_str::<Value>(l).unwrap()["classes"][0]["class"] == "bees");
    assert!(right.count() >= 17, "{said}");

    // The same job again computes nothing that is frozen, and comes to the same file on one rank.
    let again = local_run(&file, dir.path(), "again", &["--ranks", "1"]);
    assert_eq!(report(dir.path(), "again")["prefix"]["computed"], 0);
    assert_eq!(again["artifacts"][0]["sha256"], first["artifacts"][0]["sha256"]);

    // Its second stage really changes the top of the backbone, and only that.
    let only_head = job(&data, &pretrained);
    let only_head = &only_head[..only_head.rfind("[[stage]]").unwrap()];
    std::fs::write(&file, only_head).unwrap();
    local_run(&file, dir.path(), "head", &["--ranks", "2"]);
    let (both, head) = (tensors(dir.path(), "first"), tensors(dir.path(), "head"));
    let changed: Vec<&String> = both.iter().filter(|(k, v)| head[*k] != **v).map(|(k, _)| k).collect();
    assert!(changed.iter().any(|k| k.contains("features.17")), "{changed:?}");
    assert!(!changed.iter().any(|k| k.starts_with("features.0.") || k.starts_with("features.5.")), "{changed:?}");
}

#[test]
fn five_photos_of_each_class_are_enough_for_real_weights() {
    let Some(data) = data::folder() else { return };
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("real/ants-bees-prototype.toml");
    let set = [
        format!("data.train={}/hymenoptera/train", data.display()),
        format!("data.val={}/hymenoptera/val", data.display()),
        format!("model.weights={}/mobilenetv2/model.safetensors", data.display()),
    ];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    let last = local_run(&file, dir.path(), "out", &[&["--ranks", "2"], &set[..]].concat());
    let metric = |name: &str| last["metrics"][name].as_f64().unwrap_or_else(|| panic!("{last}"));
    assert!(metric("val.accuracy") >= 0.86 && metric("val.interval") < 0.02, "{last}");
    let report = report(dir.path(), "out");
    assert_eq!((report["evaluation"]["episodes"]["count"].as_u64(), report["steps"].as_u64()), (Some(600), Some(0)));
    let pixels = &report["baselines"][0];
    let worse = pixels["evaluation"]["accuracy"].as_f64().unwrap() < 0.7;
    assert!(pixels["name"] == "pixel nearest neighbour" && worse, "{pixels}");

    // What the model makes of a folder with five photos of each, for photos that it has not seen.
    let photos = |part: &str, class: &str| {
        let all = std::fs::read_dir(data.join("hymenoptera").join(part).join(class)).unwrap();
        let mut all: Vec<_> = all.flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    for class in ["ants", "bees"] {
        let folder = dir.path().join("support").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for photo in &photos("train", class)[..5] {
            std::fs::copy(photo, folder.join(photo.file_name().unwrap())).unwrap();
        }
    }
    let mut command = Command::new(PROGRAM);
    command.arg("predict").arg(dir.path().join("out")).args(&photos("val", "bees")[..20]);
    let alone = command.output().unwrap();
    assert!(String::from_utf8_lossy(&alone.stderr).contains("--support"), "{alone:?}");
    let said = command.arg("--support").arg(dir.path().join("support")).args(["--output", "json"]).output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    let right = said.lines().filter(|l| serde_json::from_str::<Value>(l).unwrap()["classes"][0]["class"] == "bees");
    assert!(right.count() >= 14, "{said}");
}

#[test]
fn photos_with_random_weights_stay_below_75_percent() {
    let Some(data) = data::folder() else { return };
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.toml");
    std::fs::write(&file, job(&data, "")).unwrap();
    let last = local_run(&file, dir.path(), "out", &["--ranks", "2"]);
    let accuracy = last["metrics"]["val.accuracy"].as_f64().unwrap_or_else(|| panic!("{last}"));
    assert!(accuracy < 0.75, "{accuracy}");
}

#[test]
fn transfer_pays_in_the_quickstart_over_five_seeds() {
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/recipes/quickstart.toml");
    let mut wins = Vec::new();
    for seed in 1..=5 {
        let set = format!("job.seed={seed}");
        let last = local_run(&file, dir.path(), &format!("seed-{seed}"), &["--set", &set]);
        let value =
            |step: &str| last["steps"][step]["val.accuracy"].as_f64().unwrap_or_else(|| panic!("{step}: {last}"));
        wins.push(100.0 * (value("transfer") - value("scratch").max(value("scratch-fast"))));
    }
    let n = wins.len() as f64;
    let mean = wins.iter().sum::<f64>() / n;
    let deviation = (wins.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    // Student's t for 95 % and four degrees of freedom.
    let half = 2.776 * deviation / n.sqrt();
    println!("transfer wins {mean:.1} ± {half:.1} points: {wins:.1?}");
    assert!(mean - half >= 5.0, "{mean:.1} ± {half:.1} points: {wins:?}");
}
