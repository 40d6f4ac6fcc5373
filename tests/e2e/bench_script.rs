//! `tests/bench/run` on a GPU, with programs that stand for both sides: which rows it makes of what they say.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use serde_json::Value;

/// A side that takes so long for a step, and so many bytes.
fn side(seconds: &str, bytes: u64) -> String {
    format!(
        r#"echo '{{"ready": true, "torch": "2.9"}}'
while read -r word count; do
  case $word in go) echo '{{"seconds": {seconds}}}';; *) echo '{{"peak": {bytes}}}';; esac
done"#
    )
}

/// The rows by name, and whether it is content; nothing without a python3.
fn run(ours: &str, theirs: &str, only: &str) -> Option<(BTreeMap<String, Value>, bool)> {
    run_in(tempfile::tempdir().unwrap().path(), ours, theirs, &["--only", only])
}

/// The same in a folder, where the rows may be already, with these arguments.
fn run_in(dir: &Path, ours: &str, theirs: &str, arguments: &[&str]) -> Option<(BTreeMap<String, Value>, bool)> {
    if !Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no python3");
        return None;
    }
    for (name, line) in [("ours", ours), ("theirs", theirs)] {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let rows = dir.join("rows.json");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/run"));
    command.args(["--device", "cuda:0", "--rounds", "1"]).args(arguments).arg("--json").arg(&rows);
    command.arg("--ours").arg(dir.join("ours")).env("TL_BENCH_PYTHON", dir.join("theirs"));
    let done = command.output().unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&rows).unwrap()).unwrap();
    let rows = rows.into_iter().map(|row| (row["name"].as_str().unwrap().to_owned(), row));
    Some((rows.collect(), done.status.success()))
}

#[test]
fn a_step_on_a_gpu_has_a_row_beside_pytorchs_of_the_same_precision_and_one_for_memory() {
    let ours = side("0.5", 3 << 20);
    // With TF32 it is faster.
    let theirs = format!("case $* in *tf32*) {};; esac\n{}", side("0.25", 9 << 20), side("1.0", 2 << 20));
    let Some((rows, fine)) = run(&ours, &theirs, "resnet50_f32,resnet50_tf32,bert_base_bf16") else { return };
    assert!(fine, "{rows:?}");
    let ratio = |name: &str| rows[name]["ratio"].as_f64();
    // Halves of 128.
    assert_eq!((rows["resnet50_f32"]["ours"].as_f64(), ratio("resnet50_f32")), (Some(128.0), Some(2.0)));
    assert_eq!((ratio("resnet50_tf32"), rows["resnet50_tf32"]["verdict"].as_str()), (Some(0.5), Some("missed")));
    assert_eq!((ratio("resnet50_f32_memory"), ratio("bert_base_bf16")), (Some(1.5), Some(2.0)));
    assert_eq!(ratio("resnet50_tf32_memory"), Some(3.0 / 9.0));
    assert_eq!(rows["bert_base_bf16"]["unit"], "texts/s");
    assert_eq!(rows["resnet50_f32"]["note"], "PyTorch 2.9: f32, channels_last");
    assert_eq!(rows["resnet50_tf32"]["note"], "PyTorch 2.9: tf32, channels_last");
    assert_eq!(rows.len(), 6, "{rows:?}");
}

#[test]
fn without_pytorch_the_projects_figures_stand_alone_and_without_a_gpu_there_are_none() {
    let missing = r#"echo '{"missing": "no PyTorch"}'"#;
    let Some((rows, fine)) = run(&side("0.5", 0), missing, "resnet50_bf16") else { return };
    assert!(fine, "{rows:?}");
    let row = &rows["resnet50_bf16"];
    assert_eq!((row["ours"].as_f64(), &row["ratio"]), (Some(256.0), &Value::Null));
    assert_eq!(row["note"], "left out: PyTorch (no PyTorch)");
    assert_eq!(rows.len(), 1, "memory that nobody has counted is no row: {rows:?}");
    let Some((rows, fine)) = run(missing, &side("0.5", 0), "resnet50_bf16") else { return };
    assert!(fine && rows["resnet50_bf16"]["ours"].is_null(), "{rows:?}");
}

#[test]
fn a_second_run_measures_what_the_first_has_not_and_leaves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let only = ["--resume", "--only", "resnet50_bf16,bert_base_bf16,resnet50_f32"];
    let no_text = format!("case $* in *text-step*) echo '{{\"missing\": \"x\"}}'; exit;; esac\n{}", side("1.0", 0));
    let first = ["--resume", "--only", "resnet50_bf16,bert_base_bf16"];
    let Some((rows, _)) = run_in(dir.path(), &side("0.5", 0), &no_text, &first) else { return };
    assert_eq!((rows["resnet50_bf16"]["ratio"].as_f64(), &rows["bert_base_bf16"]["ratio"]), (Some(2.0), &Value::Null));
    // There is no time, and a figure is worth more than that note.
    let late = [&only[..], &["--seconds", "1e-9"]].concat();
    let (rows, _) = run_in(dir.path(), &side("0.5", 0), &side("1.0", 0), &late).unwrap();
    assert_eq!((rows["bert_base_bf16"]["ours"].as_f64(), &rows["resnet50_f32"]["ours"]), (Some(128.0), &Value::Null));
    assert_eq!(rows["resnet50_f32"]["note"], "left out: no time");
    // Nor is one worth less than why there is none this time.
    for dies in [r#"echo '{"missing": "no library"}'"#, "exit 1"] {
        let (rows, fine) = run_in(dir.path(), dies, &side("1.0", 0), &only).unwrap();
        assert_eq!((rows["bert_base_bf16"]["ours"].as_f64(), fine), (Some(128.0), dies != "exit 1"));
        assert!(rows["resnet50_f32"]["ours"].is_null(), "{rows:?}");
    }
    let (rows, fine) = run_in(dir.path(), &side("0.5", 0), &side("2.0", 0), &only).unwrap();
    let ratios = ["resnet50_bf16", "bert_base_bf16", "resnet50_f32"].map(|name| rows[name]["ratio"].as_f64());
    assert_eq!((ratios, fine, rows.len()), ([Some(2.0), Some(4.0), Some(4.0)], true, 3));
}
