//! `tl-worker doctor`, the real program.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{path::Path, process::Command};

use serde_json::Value;

/// Runs it with one data root; where it looks for NVIDIA's libraries first, and what else it finds in its environment.
fn doctor(root: &Path, libraries: &Path, environment: &[(&str, &str)], text: bool) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-worker"));
    command.args(["doctor", "--output", if text { "text" } else { "json" }]).arg("--data-root").arg(root);
    command.env("NVLIB_PATH", libraries).envs(environment.iter().copied());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The checks by name, those of the CPU.
const OF_THE_CPU: [&str; 5] = [
    "copy memory",
    "multiply matrices",
    "train a small network",
    "all-reduce of 1 rank",
    "all-reduce of 2 ranks over TCP",
];

fn checks(report: &Value) -> Vec<&str> {
    report["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn it_says_what_the_machine_is_and_tries_what_a_rank_does() {
    let dir = tempfile::tempdir().unwrap();
    let (fine, text) = doctor(dir.path(), Path::new("/nowhere"), &[], false);
    let report = json(&text);
    assert!(fine && report["ok"] == true, "{text}");
    assert_eq!(checks(&report)[..5], OF_THE_CPU);
    assert!(report["checks"].as_array().unwrap().iter().all(|c| c["value"].as_f64().unwrap() > 0.0), "{text}");
    assert!(report["hardware"]["cores"].as_u64().unwrap() > 0, "{text}");
    assert_eq!(report["data_roots"][0]["path"], dir.path().display().to_string());
    let cuda = Value::from(cfg!(feature = "cuda"));
    assert_eq!((&report["cuda_build"], &report["trains_on_gpus"]), (&cuda, &cuda));
}

#[test]
fn a_root_that_is_not_there_fails_it_by_name_in_words_too() {
    let (fine, text) = doctor(Path::new("/no/such/folder"), Path::new("/nowhere"), &[], true);
    assert!(!fine && text.contains("FAILED: data root `/no/such/folder`"), "{text}");
    assert!(OF_THE_CPU.iter().all(|check| text.contains(check)), "{text}");
    assert!(text.ends_with("something is wrong, see above\n"), "{text}");
}

/// With a driver and an NCCL that need no GPU: the way to them, not what a GPU would do.
#[cfg(feature = "cuda")]
mod gpus {
    use super::*;

    /// Whether the machine has a driver of its own, which would come in the way.
    fn has_driver() -> bool {
        let there = nvlib::Library::Driver.open().is_ok();
        if there {
            eprintln!("skipped: this machine has a driver of its own");
        }
        there
    }

    #[test]
    fn without_a_driver_it_names_what_is_missing_and_where_it_was_looked_for() {
        if has_driver() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (fine, text) = doctor(dir.path(), Path::new("/nowhere"), &[], true);
        assert!(fine, "{text}");
        assert!(
            text.contains("GPUs      not used: the NVIDIA driver (libcuda.so.1) was not found in /nowhere, "),
            "{text}"
        );
        assert!(text.contains("missing   NCCL (libnccl.so.2) was not found in /nowhere, "), "{text}");
    }

    #[test]
    fn a_gpu_is_reported_and_tried() {
        if has_driver() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        nvlib::fake::build(dir.path()).unwrap();
        let (_, text) = doctor(dir.path(), dir.path(), &[("FAKE_GPUS", "2"), ("FAKE_NCCL_VERSION", "22804")], false);
        let report = json(&text);
        let hardware = &report["hardware"];
        assert_eq!(hardware["gpus"].as_array().unwrap().len(), 2, "{text}");
        assert_eq!(
            (&hardware["gpus"][1]["name"], &hardware["gpus"][1]["compute"]),
            (&"Fake GPU".into(), &"9.0".into())
        );
        assert_eq!((&hardware["cuda"], &hardware["nccl"]), (&"13.0".into(), &"2.28.4".into()));
        assert_eq!((&hardware["note"], &hardware["gpus"][1]["problem"]), (&"".into(), &"".into()));
        let library = |name: &str| report["libraries"].as_array().unwrap().iter().find(|l| l["name"] == name).unwrap();
        assert!(library("NCCL")["problem"].as_str().unwrap().contains("reported to crash"), "{text}");
        assert!(library("cuBLAS")["problem"].as_str().unwrap().contains("libcublas.so.13 or"), "{text}");
        let check = |name: &str| report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
        assert_eq!(check("GPU 1: copy memory")["ok"], true, "{text}");
        assert_eq!(check("GPU 1: all-reduce of 1 rank through NCCL")["ok"], true, "{text}");
        let both = check("GPU 0 and 1: all-reduce of 2 ranks through NCCL");
        assert!(both["ok"] == true && both["value"].as_f64().unwrap() > 0.0, "{text}");
        assert_eq!(check("GPU 1: multiply matrices")["ok"], false, "{text}");
        // One part that fails takes no other with it.
        let train = check("GPU 1: train a small network against the CPU");
        assert_eq!((&train["ok"], &train["value"]), (&false.into(), &Value::Null), "{text}");
        assert!(train["problem"].as_str().unwrap().starts_with("cuBLAS (libcublas.so.13 or"), "{text}");
        // As an agent starts ranks, whatever it finds itself.
        let (_, text) = doctor(dir.path(), dir.path(), &[("NCCL_COMM_BLOCKING", "1")], false);
        let report = json(&text);
        let mut checks = report["checks"].as_array().unwrap().iter();
        let sum = checks.find(|c| c["name"] == "GPU 0: all-reduce of 1 rank through NCCL").unwrap();
        assert_eq!(sum["ok"], true, "{text}");
    }

    #[test]
    fn an_nccl_or_a_driver_that_is_too_old_is_named_with_its_version() {
        if has_driver() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        nvlib::fake::build(dir.path()).unwrap();
        let (_, text) = doctor(dir.path(), dir.path(), &[("FAKE_NCCL_VERSION", "21304")], true);
        let train = text.lines().find(|line| line.contains("GPU 0: train a small network against the CPU")).unwrap();
        assert!(train.contains("FAILED: cuBLAS ("), "{text}");
        assert!(text.contains("is too old: 2.14.0 or newer is needed") && text.contains("NCCL 2.13.4"), "{text}");
        let two = text.lines().find(|line| line.contains("all-reduce of 2 ranks through NCCL")).unwrap();
        assert!(two.ends_with("  left out: it wants a GPU for each rank, and there is one"), "{text}");
        let old = [("FAKE_GPUS", "2"), ("FAKE_NCCL_VERSION", "21304")];
        let (_, text) = doctor(dir.path(), dir.path(), &old, true);
        let two = text.lines().find(|line| line.contains("all-reduce of 2 ranks through NCCL")).unwrap();
        assert!(two.contains("FAILED: NCCL 2.13.4"), "{text}");
        let (fine, text) = doctor(dir.path(), dir.path(), &[("FAKE_CUDA_VERSION", "11080")], true);
        assert!(fine && text.contains("knows CUDA 11.8 at most, and 12.0 is needed"), "{text}");
        let (fine, text) = doctor(dir.path(), dir.path(), &[("FAKE_GPUS", "0")], true);
        assert!(fine && text.contains("the NVIDIA driver is there and sees no GPU"), "{text}");
    }
}
