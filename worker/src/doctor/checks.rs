//! What `doctor` tries.

use std::{fmt::Display, time::Duration};

use tl_proto::hardware::Hardware;

use super::{Check, Trial};
use crate::rank::{check, gpu};

/// How long each of the CPU's checks measures.
const TIME: Duration = Duration::from_millis(400);
/// GPUs that are tried; more would not fit the time.
const GPUS: usize = 4;

/// All that this machine can be tried with, in order.
pub(super) fn all(hardware: &Hardware) -> Vec<Trial> {
    let mut all = vec![
        one("copy memory", "GB/s", || Ok(check::copy(TIME) / 1e9)),
        one("multiply matrices", "GFLOP/s", || check::multiply(TIME).map(|rate| rate / 1e9).map_err(said)),
        one("train a small network", "ms a step", step),
        one("all-reduce of 1 rank", "GB/s", || reduce(1)),
        one("all-reduce of 2 ranks over TCP", "GB/s", || reduce(2)),
    ];
    let gpus: Vec<u32> = hardware.gpus.iter().take(GPUS).map(|gpu| gpu.index).collect();
    let (first, others) = gpus.split_at(gpus.len().min(2));
    all.extend(first.iter().map(|gpu| on_gpu(*gpu)));
    all.extend(between(first));
    all.extend(others.iter().map(|gpu| on_gpu(*gpu)));
    all
}

fn said(e: impl Display) -> String {
    e.to_string()
}

/// Something that gives one figure.
fn one(name: &'static str, unit: &'static str, work: fn() -> Result<f64, String>) -> Trial {
    (name.to_owned(), Box::new(move || vec![figure(name.to_owned(), work(), unit)]))
}

fn figure(name: String, value: Result<f64, String>, unit: &'static str) -> Check {
    let (value, problem) = match value {
        Ok(value) => (Some(value), String::new()),
        Err(problem) => (None, problem),
    };
    Check { name, ok: value.is_some(), value, unit, problem }
}

fn step() -> Result<f64, String> {
    let folder = std::env::temp_dir().join(format!("tl-doctor-{}", ulid::Ulid::new()));
    let seconds = check::step(&folder).map_err(said);
    // It is a folder of the system's for such things, which clears up after those who could not.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(seconds? * 1e3)
}

fn reduce(ranks: usize) -> Result<f64, String> {
    check::all_reduce(ranks, TIME).map(|rate| rate / 1e9).map_err(said)
}

/// A GPU gives four figures, or one reason.
fn on_gpu(index: u32) -> Trial {
    let name = move |what: &str| format!("GPU {index}: {what}");
    let work = move || match gpu::check(index) {
        Err(e) => vec![figure(name("copy memory"), Err(said(e)), "")],
        Ok(done) => vec![
            figure(name("copy memory"), Ok(done.copy / 1e9), "GB/s"),
            figure(name("multiply matrices"), done.multiply.map(|rate| rate / 1e9), "GFLOP/s"),
            figure(name("train a small network against the CPU"), done.train.map(|seconds| seconds * 1e3), "ms a step"),
            figure(name("all-reduce of 1 rank through NCCL"), done.all_reduce.map(|seconds| seconds * 1e3), "ms"),
        ],
    };
    (name("copy, multiply, train, all-reduce"), Box::new(work))
}

/// A sum of two ranks on two GPUs; of one GPU, that there is none.
fn between(gpus: &[u32]) -> Option<Trial> {
    let what = "all-reduce of 2 ranks through NCCL";
    let trial: Trial = match *gpus {
        [] => return None,
        [a, b, ..] => {
            let name = format!("GPU {a} and {b}: {what}");
            let work = {
                let name = name.clone();
                move || vec![figure(name, gpu::between([a, b]).map(|seconds| seconds * 1e3), "ms")]
            };
            (name, Box::new(work))
        }
        [_] => {
            let problem = "left out: it wants a GPU for each rank, and there is one".to_owned();
            let check = Check { name: what.into(), ok: true, value: None, unit: "", problem };
            (what.into(), Box::new(move || vec![check]))
        }
    };
    Some(trial)
}
