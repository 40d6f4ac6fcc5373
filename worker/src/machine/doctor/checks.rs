//! What `doctor` tries.

use std::{
    fmt::Display,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tl_proto::hardware::Hardware;

use super::{
    Check, Trial,
    ready::{First, Ready},
};
use crate::rank::{check, gpu};

/// How long each of the CPU's checks measures.
const TIME: Duration = Duration::from_millis(400);
/// How long NCCL may take for each step of a sum, as it has done one before: what is wrong is said while there is time for that.
const PATIENCE: Duration = Duration::from_secs(4);
/// GPUs that are tried; more would not fit the time.
pub(super) const GPUS: usize = 4;

/// All that this machine can be tried with, in order.
pub(super) fn all(hardware: &Hardware, ready: &Ready) -> Vec<Trial> {
    let mut all = vec![
        one("copy memory", "GB/s", || Ok(check::copy(TIME) / 1e9)),
        one("multiply matrices", "GFLOP/s", || check::multiply(TIME).map(|rate| rate / 1e9).map_err(said)),
        one("train a small network", "ms a step", step),
        one("all-reduce of 1 rank", "GB/s", || reduce(1)),
        one("all-reduce of 2 ranks over TCP", "GB/s", || reduce(2)),
    ];
    let gpus: Vec<u32> = hardware.gpus.iter().take(GPUS).map(|gpu| gpu.index).collect();
    all.extend(gpus.iter().flat_map(|gpu| on_gpu(*gpu, ready)));
    // Last: two that do not find each other wait for long, and leave no time for others.
    all.extend(between(&gpus, ready));
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

/// A GPU gives four figures, each as soon as it is there, or one reason. What has not ended before is not waited for again.
fn on_gpu(index: u32, ready: &Ready) -> Vec<Trial> {
    let opened: Arc<OnceLock<Result<gpu::Check, String>>> = Arc::default();
    if let Some(late) = ready.late(First::Step(index)) {
        let _ = opened.set(Err(late));
    }
    let trial = |what: &str, part: gpu::Part, scale: f64, unit: &'static str| -> Trial {
        let (name, opened) = (format!("GPU {index}: {what}"), opened.clone());
        let figured = name.clone();
        let known = if part == gpu::Part::AllReduce { ready.problem(First::Sum(index)) } else { None };
        let work = move || match opened.get_or_init(|| gpu::Check::open(index).map_err(said)) {
            Ok(gpu) => {
                let value = known.map_or_else(|| gpu.run(part, PATIENCE), Err);
                vec![figure(figured, value.map(|value| value * scale), unit)]
            }
            Err(why) if part == gpu::Part::Copy => vec![figure(figured, Err(why.clone()), "")],
            // That has been told.
            Err(_) => Vec::new(),
        };
        (name, Box::new(work))
    };
    vec![
        trial("copy memory", gpu::Part::Copy, 1e-9, "GB/s"),
        trial("multiply matrices", gpu::Part::Multiply, 1e-9, "GFLOP/s"),
        trial("train a small network against the CPU", gpu::Part::Train, 1e3, "ms a step"),
        trial("all-reduce of 1 rank through NCCL", gpu::Part::AllReduce, 1e3, "ms"),
    ]
}

/// A sum of two ranks on two GPUs; of one GPU, that there is none.
fn between(gpus: &[u32], ready: &Ready) -> Option<Trial> {
    let what = "all-reduce of 2 ranks through NCCL";
    let trial: Trial = match *gpus {
        [] => return None,
        [a, b, ..] => {
            let name = format!("GPU {a} and {b}: {what}");
            let known = ready.problem(First::Between([a, b]));
            let work = {
                let name = name.clone();
                move || {
                    let seconds = known.map_or_else(|| gpu::between([a, b], PATIENCE), Err);
                    vec![figure(name, seconds.map(|seconds| seconds * 1e3), "ms")]
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of these has come to.
    fn came_to(all: Vec<First>, outcome: Result<(), String>) -> Ready {
        Ready::wait(all, move |_| outcome.clone(), Duration::from_secs(60))
    }

    fn told(trials: impl IntoIterator<Item = Trial>) -> Vec<Check> {
        trials.into_iter().flat_map(|(_, work)| work()).collect()
    }

    #[test]
    fn a_gpu_that_is_not_there_or_not_ready_is_told_once() {
        let there = came_to(vec![First::Step(4096)], Ok(()));
        let late = came_to(Vec::new(), Ok(()));
        for (ready, is_late) in [(there, false), (late, true)] {
            // More than any machine has.
            let told = told(on_gpu(4096, &ready));
            let [Check { name, ok: false, value: None, problem, .. }] = &told[..] else { panic!("{told:?}") };
            assert!(name == "GPU 4096: copy memory" && !problem.is_empty(), "{told:?}");
            assert_eq!(problem == "it was not ready within the 60 s for all GPUs", is_late, "{told:?}");
        }
    }

    #[test]
    fn what_two_gpus_have_failed_with_before_the_clock_ran_is_the_reason() {
        let pair = vec![First::Between([4096, 4097])];
        let told = told(between(&[4096, 4097], &came_to(pair, Err("NCCL's words".into()))));
        assert_eq!(told.iter().map(|c| (c.ok, c.problem.as_str())).collect::<Vec<_>>(), [(false, "NCCL's words")]);
    }
}
