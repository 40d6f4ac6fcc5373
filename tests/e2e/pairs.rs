//! Two networks that learn from pairs in one step of a pipeline, and judge by sentences in the next, with real processes.

use std::{path::Path, process::Command};

use serde_json::Value;
use tl_tests::alone_blocking;

use crate::PROGRAM;

const PIPELINE: &str = r#"
schema = 1
job = { name = "see-and-read", kind = "pipeline", seed = 1 }
[[step]]
id = "learn"
job = "learn.toml"
[[step]]
id = "judge"
job = "judge.toml"
needs = ["learn"]
"#;

const LEARN: &str = r#"
schema = 1
job = { name = "learn", kind = "contrastive" }
cluster = { ranks = "1..2" }
data = { format = "image_folder", train = "photos", val = "photos", batch = 12, pairs = { format = "text", train = "said.tsv", val = "said.tsv" } }
model = { backbone = "small_cnn" }
objective = { dimensions = 16 }
nets = { tower = { backbone = "embedding_lstm", input = 12 } }
[[stage]]
name = "all"
epochs = 40
train = ["*"]
lr = 0.005
bn = "train"
"#;

const JUDGE: &str = r#"
schema = 1
job = { name = "judge", kind = "zero_shot" }
cluster = { ranks = "1..2" }
data = { format = "image_folder", val = "photos", batch = 12 }
model = { backbone = "small_cnn", weights = "step:learn" }
objective = { templates = ["a {} one", "it is {}"] }
nets = { tower = { backbone = "embedding_lstm", weights = "step:learn" } }
"#;

/// Squares of three colours in a folder for each, and a line of text for each of them.
fn photos(dir: &Path) {
    let mut lines = String::new();
    for (class, color) in [("blue", [20, 30, 220]), ("green", [20, 200, 40]), ("red", [220, 30, 30])] {
        let folder = dir.join("photos").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..12u8 {
            let pixel = |x: u32, y: u32| image::Rgb(color.map(|c: u8| c.saturating_add((x * 3 + y) as u8 / 4 + i)));
            image::RgbImage::from_fn(32, 32, pixel).save(folder.join(format!("{i}.png"))).unwrap();
            let said = if i % 2 == 0 { format!("a {class} one") } else { format!("it is {class}") };
            lines += &format!("{class}/{i}.png\t{said}\n");
        }
    }
    std::fs::write(dir.join("said.tsv"), lines).unwrap();
}

#[test]
fn two_networks_learn_from_pairs_and_judge_by_sentences_in_a_pipeline() {
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    photos(dir.path());
    for (name, text) in [("job.toml", PIPELINE), ("learn.toml", LEARN), ("judge.toml", JUDGE)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut command = Command::new(PROGRAM);
    command.args(["local", "run"]).arg(dir.path().join("job.toml")).args(["--output", "json", "--ranks", "2"]);
    command.arg("--cache").arg(dir.path().join("cache")).arg("--out").arg(dir.path().join("out"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // What trains is compared on more ranks, and what waits for its model is no reason to fail.
    let mut command = Command::new(PROGRAM);
    command.arg("verify").arg(dir.path().join("job.toml"));
    let output = command.args(["--steps", "2", "--output", "json", "--device", "cpu"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = events.iter().map(|event| (event["event"].as_str().unwrap(), &event["step"])).collect();
    let learn = ("verified", &Value::from("learn"));
    assert_eq!(told, [learn, learn, ("passed_over", &"judge".into())], "{said}");
    let report = |step: &str| -> Value {
        let path = dir.path().join("out").join(step).join("report.json");
        serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
    };
    let learned = report("learn");
    assert_eq!(learned["samples"], serde_json::json!([36, 36]));
    // Texts of a class are alike, so that one finds its photo among the twelve of its class at best.
    assert!(learned["retrieval"]["from_pairs"][2].as_f64().unwrap() > 0.7, "{}", learned["retrieval"]);
    // The same pairs again, by the finished model.
    let mut command = Command::new(PROGRAM);
    command.arg("evaluate").arg(dir.path().join("out/learn")).arg(dir.path().join("photos")).arg("--pairs");
    let scored =
        command.arg(dir.path().join("said.tsv")).args(["--output", "json", "--device", "cpu"]).output().unwrap();
    let event: Value = serde_json::from_slice(&scored.stdout).unwrap();
    assert_eq!((&event["retrieval"], &event["halves"]), (&learned["retrieval"], &serde_json::json!(36)), "{event}");
    // Chance is a third.
    let judged = report("judge");
    assert_eq!(judged["evaluation"]["samples"], 36);
    assert!(judged["evaluation"]["accuracy"].as_f64().unwrap() > 0.8, "{}", judged["evaluation"]);
    assert!(!dir.path().join("out/judge/model.safetensors").exists(), "nothing was trained");
}
