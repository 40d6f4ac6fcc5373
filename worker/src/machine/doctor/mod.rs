//! `tl-worker doctor`: what this machine has, whether it can be used, and how fast it is, in ten seconds at most, for which the
//! clock starts when GPUs are ready, or a minute is over. What is not by then is told, and not tried.

mod checks;
mod ready;
mod text;

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tl_proto::hardware::Hardware;

use self::ready::Ready;
use super::{inventory, look};
use crate::{
    rank::{
        self,
        gpu::{self, Found},
    },
    store::roots::Roots,
    supervise::command::RankCommand,
};

/// All checks together.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks at this machine and tries what a rank does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that jobs may read; may be given more than once
    #[arg(long = "data-root")]
    roots: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Version of this program.
    version: &'static str,
    /// Whether it was built to use GPUs.
    cuda_build: bool,
    /// Whether it trains on GPUs that it finds.
    trains_on_gpus: bool,
    hardware: Hardware,
    libraries: Vec<Found>,
    data_roots: Vec<Root>,
    checks: Vec<Check>,
    /// Whether every check was passed and every folder can be used.
    ok: bool,
}

/// A folder that jobs may read.
#[derive(Debug, Serialize)]
struct Root {
    path: PathBuf,
    /// Why it cannot be used; empty if it can.
    problem: String,
}

/// What was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// How fast, or how long.
    value: Option<f64>,
    /// Of the value.
    unit: &'static str,
    /// Why it failed, or was left out; empty if all is well.
    problem: String,
}

/// Looks, tries and prints; whether all is well.
pub fn main(args: &Args) -> bool {
    as_a_rank();
    let found = gpu::look();
    let libraries = found.libraries.clone();
    let hardware = inventory::with(found);
    let data_roots: Vec<Root> = args.roots.iter().map(root).collect();
    let gpus: Vec<u32> = hardware.gpus.iter().take(checks::GPUS).map(|gpu| gpu.index).collect();
    let patience = ready::patience(gpus.len(), look::LIMIT);
    let ready = Ready::wait(ready::all(&gpus), move |first| ready::work(first, patience), look::LIMIT);
    let checks = in_time(checks::all(&hardware, &ready), LIMIT);
    let ok = checks.iter().all(|c| c.ok) && data_roots.iter().all(|r| r.problem.is_empty());
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cuda_build: cfg!(feature = "cuda"),
        trains_on_gpus: gpu::TRAINS,
        hardware,
        libraries,
        data_roots,
        checks,
        ok,
    };
    match args.output {
        Format::Text => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
    }
    ok
}

fn root(path: &PathBuf) -> Root {
    let opened = Roots::open(std::slice::from_ref(path));
    let listed = opened.and_then(|_| {
        std::fs::read_dir(path).map(|_| ()).map_err(|e| format!("`{}` cannot be listed: {e}", path.display()))
    });
    Root { path: path.clone(), problem: listed.err().unwrap_or_default() }
}

/// Has this process begin anew with the environment that an agent gives ranks, unless it has that: where NCCL is told to block, by
/// a variable or in its own files, jobs run all the same. Where the system refuses, it goes on as it is.
fn as_a_rank() {
    if rank::never_blocks() {
        return;
    }
    let refused = match RankCommand::ourselves(std::env::args_os().skip(1).collect()) {
        Ok(command) => command.to_command().as_std_mut().exec(),
        Err(e) => e,
    };
    tracing::warn!("NCCL is tried with what it is told here, and not as ranks have it: {refused}");
}

/// Something to try: what it is called, and what does it.
type Trial = (String, Box<dyn FnOnce() -> Vec<Check> + Send>);

/// Tries one after the other. What has not ended when the time is over has failed, and what comes after it is left out.
fn in_time(trials: Vec<Trial>, limit: Duration) -> Vec<Check> {
    let until = Instant::now() + limit;
    let names: Vec<String> = trials.iter().map(|(name, _)| name.clone()).collect();
    let (done, results) = mpsc::channel();
    // Not waited for: a driver that hangs must not hang us.
    std::thread::spawn(move || {
        for (_, work) in trials {
            if done.send(work()).is_err() {
                return;
            }
        }
    });
    let (mut checks, mut ended) = (Vec::new(), 0);
    while ended < names.len() {
        let Ok(more) = results.recv_timeout(until.saturating_duration_since(Instant::now())) else { break };
        checks.extend(more);
        ended += 1;
    }
    let mut why = format!("it did not end within the {} s for all checks", limit.as_secs());
    for name in &names[ended..] {
        let problem = std::mem::replace(&mut why, "left out: there was no time".into());
        checks.push(Check { name: name.clone(), ok: false, value: None, unit: "", problem });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_hangs_fails_with_its_name_and_the_rest_is_left_out() {
        let (hold, held) = mpsc::channel::<()>();
        let passed = |name: &str| {
            vec![Check { name: name.into(), ok: true, value: Some(1.0), unit: "x", problem: String::new() }]
        };
        let trials: Vec<Trial> = vec![
            ("first".into(), Box::new(move || passed("first"))),
            (
                "hangs".into(),
                Box::new(move || {
                    let _ = held.recv();
                    passed("hangs")
                }),
            ),
            ("last".into(), Box::new(move || passed("last"))),
        ];
        let checks = in_time(trials, Duration::from_millis(200));
        drop(hold);
        let seen: Vec<_> = checks.iter().map(|c| (c.name.as_str(), c.ok)).collect();
        assert_eq!(seen, [("first", true), ("hangs", false), ("last", false)]);
        assert!(checks[1].problem.contains("did not end") && checks[2].problem.contains("left out"), "{checks:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(root(&dir.path().to_owned()).problem, "");
        let none = dir.path().join("none");
        assert!(root(&none).problem.contains(&none.display().to_string()));
    }
}
