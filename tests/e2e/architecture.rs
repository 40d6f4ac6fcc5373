//! The arrows between the crates, the top level, and the size of files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

/// What a crate lists under `[dependencies]`.
fn dependencies(crate_dir: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(crate_dir).join("Cargo.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table["dependencies"].as_table().unwrap().keys().cloned().collect()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&entry, out);
        } else if name.ends_with(".rs") {
            out.push(entry);
        }
    }
}

#[test]
fn no_crate_points_where_it_must_not() {
    const OURS: &[&str] = &["tl-proto", "tl-coordinator", "tl-engine", "tl-worker", "tl-client", "candle-core"];
    let forbidden: [(&str, &[&str]); 7] = [
        ("proto", &["tl-coordinator", "tl-engine", "tl-worker", "tl-client", "candle-core", "tokio"]),
        ("coordinator", &["tl-engine", "tl-worker", "tl-client", "candle-core", "candle-nn"]),
        ("worker/engine", &["tl-coordinator", "tl-worker", "tl-client", "tokio", "tonic"]),
        ("worker", &["tl-coordinator", "tl-client", "candle-core", "candle-nn"]),
        ("worker/nccl", OURS),
        ("worker/nvlib", OURS),
        ("client", &["tl-engine", "candle-core", "candle-nn"]),
    ];
    for (dir, never) in forbidden {
        let has = dependencies(dir);
        for name in never {
            assert!(!has.contains(*name), "{dir} depends on {name}");
        }
    }
}

#[test]
fn the_coordinators_core_is_pure() {
    let mut files = Vec::new();
    sources(&root().join("coordinator/src/core"), &mut files);
    assert!(files.len() > 5, "the core has moved");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in ["tokio", "rusqlite", "std::fs", "SystemTime", "Instant", "std::net", "async "] {
            assert!(!text.contains(word), "{} speaks of `{word}`", file.display());
        }
    }
}

#[test]
fn only_the_rank_knows_the_engine() {
    let mut files = Vec::new();
    sources(&root().join("worker/src"), &mut files);
    assert!(files.len() > 10, "{files:?}");
    let rank = root().join("worker/src/rank");
    for file in files.iter().filter(|f| !f.starts_with(&rank)) {
        let names = fs::read_to_string(file).unwrap().contains("tl_engine");
        assert!(!names, "{} names the engine", file.display());
    }
}

#[test]
fn the_top_level_is_what_it_should_be_and_no_file_is_too_long() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "proto",
        "coordinator",
        "worker",
        "client",
        "deploy",
        "tests",
        "target",
        // What the README's commands leave behind; git ignores it.
        "tl-out",
        "tl-data",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(name.starts_with('.') || known.contains(&name.as_str()), "`{name}` has no place at the top level");
    }
    let mut files = Vec::new();
    sources(&root(), &mut files);
    for file in files {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", file.display());
    }
}
