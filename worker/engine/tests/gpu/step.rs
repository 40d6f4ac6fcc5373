//! The step of training that `tl-worker doctor` tries.

use std::{path::Path, process::Command};

use nvlib::Library;
use tempfile::TempDir;
use tl_engine::gpu;

use crate::{is_fake, shared};

#[test]
fn a_small_step_of_training_gives_what_the_host_gives() {
    let Some(device) = shared() else { return };
    let seconds = gpu::step(device).unwrap();
    assert!(seconds.is_finite() && seconds > 0.0, "{seconds}");
}

/// The libraries of a fake GPU but some, from where this process has them, with the kernels that are compiled.
pub(crate) fn copied(without: &[&str]) -> TempDir {
    let (from, to) = (Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu"), tempfile::tempdir().unwrap());
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = file.file_name().to_string_lossy().into_owned();
        // What somebody is compiling now has a longer name.
        let compiled = name.strip_suffix(".so").is_some_and(|hash| !hash.contains('.'));
        let library = name.starts_with("lib") && !without.iter().any(|part| name.contains(part));
        if name == "kernel.h" || compiled || library {
            std::fs::copy(file.path(), to.path().join(&name)).unwrap();
        }
    }
    to
}

/// Says to a process of these tests that it finds all libraries but cuDNN.
const WITHOUT: &str = "TL_TEST_WITHOUT_CUDNN";

#[test]
fn a_gpu_without_cudnn_does_not_work_and_the_library_is_named() {
    if std::env::var_os(WITHOUT).is_some() {
        if Library::Cudnn.open().is_ok() {
            eprintln!("left out: this machine has a cuDNN of its own");
            return;
        }
        let error = gpu::works(0).unwrap_err().to_string();
        assert!(error.starts_with("GPU 0 cannot be used: cuDNN (libcudnn.so.9) was not found in "), "{error}");
        return;
    }
    let Some(device) = shared() else { return };
    if !is_fake(device) {
        eprintln!("left out: a real GPU keeps its libraries");
        return;
    }
    let to = copied(&["cudnn"]);
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "step::a_gpu_without_cudnn_does_not_work_and_the_library_is_named"]);
    let ended = again.env("NVLIB_PATH", to.path()).env(WITHOUT, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
}
