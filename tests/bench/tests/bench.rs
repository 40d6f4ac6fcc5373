//! Steps on a GPU, as `tests/bench/run` has them taken: on one that libraries in C stand for.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nvlib::Library;
use serde_json::Value;

/// A folder with such libraries; nothing where the machine has a driver of its own, which would come in the way, or no compiler
/// of kernels.
fn libraries() -> Option<PathBuf> {
    if Library::Driver.open().is_ok() {
        eprintln!("skipped: this machine has a driver of its own");
        return None;
    }
    let cxx = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if !Command::new(cxx).arg("--version").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no C++ compiler to run kernels with");
        return None;
    }
    // That of the engine's tests: what is compiled of kernels stays there.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
    std::fs::create_dir_all(&dir).unwrap();
    nvlib::fake::build_computing(&dir).unwrap();
    Some(dir)
}

fn steps(libraries: &Path, arguments: &[&str], orders: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-bench"));
    command.args(["step", "--backbone", "small_cnn"]).args(arguments).env("NVLIB_PATH", libraries);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // Who has nothing to do has gone by then.
    let _ = child.stdin.take().unwrap().write_all(orders.as_bytes());
    child.wait_with_output().unwrap()
}

/// What it says, line by line.
fn told(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn steps_on_a_gpu_are_counted_after_those_that_warm_it_up() {
    let Some(libraries) = libraries() else { return };
    // Two steps an epoch: the second one that counts is the first of another.
    let small = ["--input", "8", "--batch", "4", "--samples", "1", "--warm", "1"];
    for precision in ["tf32", "bf16"] {
        let arguments = [&small[..], &["--device", "cuda:0", "--precision", precision]].concat();
        let told = told(&steps(&libraries, &arguments, "go 2\ngo 1\nmemory\n"));
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0]["ready"], true);
        assert!(told[1..3].iter().all(|t| t["seconds"].as_f64().unwrap() > 0.0), "{told:?}");
        // At least what cuBLAS is given to work in.
        assert!(told[3]["peak"].as_u64().unwrap() > 32 << 20, "{told:?}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_no_failure_and_one_that_cannot_be_is() {
    let Some(libraries) = libraries() else { return };
    let missing = told(&steps(&libraries, &["--device", "cuda:7"], "go 1\n"));
    assert_eq!(missing.len(), 1);
    assert!(missing[0]["missing"].as_str().unwrap().starts_with("GPU 7 cannot be used: "), "{missing:?}");
    let two = told(&steps(&libraries, &["--device", "cuda:0", "--world", "2"], "go 1\n"));
    assert_eq!(two[0]["missing"], "ranks of the benchmark share a CPU");
    let odd = steps(&libraries, &["--device", "rocm:0"], "");
    assert!(!odd.status.success() && String::from_utf8_lossy(&odd.stderr).contains("`rocm:0` is neither"), "{odd:?}");
}
