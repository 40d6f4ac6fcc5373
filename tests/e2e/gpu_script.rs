//! `tests/gpu/run.sh`, with programs that stand for those of a machine with a GPU: what it writes, whatever they do.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use serde_json::Value;

const DOCTOR: &str =
    r#"echo '{"trains_on_gpus":false,"hardware":{"gpus":[{"index":0,"name":"Some GPU"}],"driver":"580.1"}}'"#;

/// What it says of each part, its whole file, and whether it is content. Programs are a name and a line of shell each.
fn run(programs: &[(&str, &str)]) -> (BTreeMap<String, [String; 3]>, Value, bool) {
    let dir = tempfile::tempdir().unwrap();
    for (name, line) in programs {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = dir.path().join("gpu.json");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/run.sh"));
    command.arg(&file).env("TL_GPU_PROGRAMS", dir.path()).env("TL_GPU_SECONDS", "2");
    let done = command.output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr);
    let written = fs::read_to_string(&file).unwrap();
    let all: Value = serde_json::from_str(&written).unwrap_or_else(|e| panic!("{e}: {written} {words}"));
    let text = |part: &Value, key: &str| part[key].as_str().unwrap().to_owned();
    let parts = all["parts"].as_array().unwrap();
    let parts = parts.iter().map(|p| (text(p, "name"), ["status", "note", "output"].map(|key| text(p, key)))).collect();
    (parts, all, done.status.success())
}

#[test]
fn what_fails_on_a_gpu_is_told_from_what_is_not_there_and_any_output_is_kept() {
    let odd = r#"printf 'a "quoted" back\\slash\ttab \033[31mred & \r\ntest result: ok. 9 passed'"#;
    let nccl = r#"case "$4" in one*) exit 7;; *hosts*) echo "a ... skipped: no NCCL";; *) echo "0 passed";; esac"#;
    let programs = [("tl-worker", DOCTOR), ("operations-tests", odd), ("nccl-tests", nccl), ("tlctl", "exec sleep 60")];
    let (parts, all, fine) = run(&programs);
    assert!(!fine);
    assert_eq!((&all["chip"], &all["driver"]), (&"Some GPU".into(), &"580.1".into()));
    assert!(all["date"].as_str().unwrap().ends_with('Z') && all["parts"][0]["seconds"].is_f64(), "{all}");
    let told = |name: &str| [parts[name][0].as_str(), parts[name][1].as_str()];
    assert_eq!(told("doctor"), ["ok", ""]);
    assert_eq!(told("operations"), ["ok", ""]);
    assert_eq!(parts["operations"][2], "a \"quoted\" back\\slash\ttab [31mred & \ntest result: ok. 9 passed");
    assert_eq!(told("nccl_one"), ["failed", "ended with 7"]);
    assert_eq!(told("nccl_hosts"), ["not there", "skipped: no NCCL"]);
    assert_eq!(told("nccl_shared"), ["failed", "no test has run"]);
    assert_eq!(told("job"), ["failed", "not done within 2 s"]);
}

#[test]
fn without_a_gpu_only_what_needs_none_is_tried_and_that_is_no_failure() {
    let doctor = r#"echo '{"trains_on_gpus":false,"hardware":{"gpus":[],"driver":""}}'"#;
    // The tests would pass, on fakes.
    let tests = "echo 'test result: ok. 9 passed'";
    let (parts, all, fine) = run(&[("tl-worker", doctor), ("operations-tests", tests), ("tlctl", r#"echo "$@""#)]);
    assert!(fine, "{all}");
    assert_eq!(all["chip"], "");
    for (name, note) in [("operations", "there is no GPU"), ("nccl_one", "there is no program nccl-tests")] {
        assert_eq!((parts[name][0].as_str(), parts[name][1].as_str()), ("not there", note));
    }
    assert_eq!(parts["job"][0], "ok");
    assert!(parts["job"][1].starts_with("on CPU slots") && parts["job"][2].starts_with("local run /"), "{all}");
}

#[test]
fn a_build_that_trains_on_gpus_trains_on_the_one_that_is_there() {
    let doctor = DOCTOR.replace(r#""trains_on_gpus":false"#, r#""trains_on_gpus":true"#);
    let (parts, ..) = run(&[("tl-worker", doctor.as_str()), ("tlctl", r#"echo "$@""#)]);
    assert!(parts["job"][1].starts_with("on a GPU slot") && parts["job"][2].contains(" --ranks 1 "), "{parts:?}");
}
