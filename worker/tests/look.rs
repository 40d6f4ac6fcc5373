//! `tl-worker look`, the real program: what an agent has a process of its own find out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn look(libraries: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-worker"));
    command.arg("look").args(arguments).env("NVLIB_PATH", libraries).env("FAKE_GPUS", "2");
    command.output().unwrap()
}

fn said(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim_end()).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn it_says_what_the_machine_is_in_one_line() {
    let machine = said(&look(Path::new("/nowhere"), &[]));
    assert!(machine["cores"].as_u64().unwrap() > 0, "{machine}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_has_no_gpu_to_try() {
    let tried = said(&look(Path::new("/nowhere"), &["--try=0"]));
    assert_eq!(tried, serde_json::json!({ "problem": "this build has no CUDA", "numbers": "" }));
}

/// With a driver and an NCCL that need no GPU, and compute nothing.
#[cfg(feature = "cuda")]
#[test]
fn gpus_are_found_and_one_that_cannot_train_says_why() {
    if nvlib::Library::Driver.open().is_ok() {
        eprintln!("skipped: this machine has a driver of its own");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    nvlib::fake::build(dir.path()).unwrap();
    let machine = said(&look(dir.path(), &[]));
    assert_eq!(machine["gpus"].as_array().unwrap().len(), 2, "{machine}");
    assert_eq!((&machine["gpus"][1]["problem"], &machine["gpus"][1]["numbers"]), (&"".into(), &"".into()));
    let libraries = said(&look(dir.path(), &["--libraries"]));
    let nccl = libraries.as_array().unwrap().iter().find(|library| library["name"] == "NCCL").unwrap();
    assert_eq!(nccl["path"].as_str().map(Path::new), Some(dir.path().join("libnccl.so.2").as_path()), "{libraries}");
    let tried = said(&look(dir.path(), &["--try=1"]));
    let problem = tried["problem"].as_str().unwrap();
    assert!(problem.starts_with("GPU 1 cannot be used: ") && problem.contains(" was not found in "), "{tried}");
    assert_eq!(tried["numbers"], "");
}
