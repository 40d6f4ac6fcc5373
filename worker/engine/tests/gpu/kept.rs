//! Kernels that one process has compiled, and others load.

use std::{path::PathBuf, process::Command};

use tl_engine::{files::seal, gpu};

use crate::{is_fake, shared, step::copied};

/// Says to a process of these tests that it is to try the GPU and nothing else.
const TRIES: &str = "TL_TEST_TRIES_A_GPU";

#[test]
fn what_one_process_has_compiled_others_load_and_what_cannot_be_loaded_is_compiled_again() {
    if std::env::var_os(TRIES).is_some() {
        gpu::works(0).unwrap();
        return;
    }
    let Some(device) = shared() else { return };
    if !is_fake(device) {
        eprintln!("left out: the compiler of a real GPU refuses nothing");
        return;
    }
    let (libraries, caches) = (copied(&[]), tempfile::tempdir().unwrap());
    // Whether another process finds that the GPU works; where the compiler refuses, only with what is kept.
    let works = |refuses: bool| {
        let mut other = Command::new(std::env::current_exe().unwrap());
        let test = "kept::what_one_process_has_compiled_others_load_and_what_cannot_be_loaded_is_compiled_again";
        other.args(["--exact", test]).env(TRIES, "1").env("NVLIB_PATH", libraries.path());
        other.env("TL_CACHE", caches.path()).envs(refuses.then_some(("FAKE_NVRTC_CLOSED", "1")));
        let ended = other.output().unwrap();
        assert!(String::from_utf8_lossy(&ended.stdout).contains("running 1 test"), "{ended:?}");
        ended.status.success()
    };
    assert!(!works(true), "nothing is kept yet");
    assert!(works(false) && works(true));
    let files = || -> Vec<PathBuf> {
        let all = std::fs::read_dir(caches.path().join("kernels")).unwrap();
        all.map(|entry| entry.unwrap().path()).collect()
    };
    assert!(!files().is_empty());
    // Half of what was there; then something whole, which the driver takes for no kernels.
    let damages: [fn(Vec<u8>) -> Vec<u8>; 2] =
        [|bytes| bytes[..bytes.len() / 2].to_vec(), |_| seal(b"no kernels\0".to_vec())];
    for damage in damages {
        for file in files() {
            std::fs::write(&file, damage(std::fs::read(&file).unwrap())).unwrap();
        }
        assert!(!works(true) && works(false) && works(true));
    }
}
