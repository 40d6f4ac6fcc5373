//! One rank: a process of its own that runs the engine. This folder is the only place that knows the engine.
//!
//! Standard input is the socket on which it listens for its peers, standard output the socket to its agent, standard
//! error its log. It dies with its agent: by signal where the system offers that, else when the socket ends. `gang.rs` brings
//! it together with the other ranks.

/// What a rank is started with.
pub(crate) use tl_engine::environment::{never_blocks, tune};

mod gang;

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::{fd::AsFd, unix::net::UnixStream},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tl_engine::{
    Error,
    collective::{
        Collective, MeshConfig, Solo,
        choice::{Way, choose, reduction},
        meet,
    },
    link::{Deaf, Link, Notice, Row},
    num::pool,
    train::{self, export::Report},
};
use tl_proto::{
    failure::{Failure, FailureClass},
    hardware::Device,
    spec,
};

use crate::supervise::ipc::{FromRank, MAX_LINE, Order, ROWS, ToRank};

/// Exit code of a rank whose agent is gone.
const ORPHANED: i32 = 3;

/// What the engine offers.
pub fn catalog() -> tl_proto::catalog::Catalog {
    tl_engine::catalog()
}

/// Which numbers this machine computes, in a word: a gang is of one kind.
pub(crate) fn numbers() -> String {
    tl_engine::num::fingerprint::fingerprint().iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// A finished model at work, for `tlctl predict` and `tlctl evaluate`.
pub use tl_engine::{
    eval::Evaluation,
    predict::{Asked, Found, Model, Said, Towers},
};

/// Whether the cache has what a teacher has said on another node.
pub(crate) use tl_engine::cache::has as has_features;

/// GPUs of this machine.
pub use tl_engine::gpu;

/// Quick looks at what this machine computes, for the inventory and `tl-worker doctor`.
pub(crate) use tl_engine::{check, num::simd};

/// How a comparison of ranks came out, for `tlctl verify`.
pub use tl_engine::train::verify::{Apart, Compared, Difference, Judged, Verified};

/// Compares the first steps of a job's stages on one, two and three ranks inside this process, which share a device, or, where
/// it trains nothing, what it says; `folder` is for what is written on the way.
///
/// # Errors
/// Whatever would stop the job.
pub fn verify(spec: &spec::JobSpec, place: &gpu::Place, folder: &Path, steps: u64) -> Result<Verified, Failure> {
    train::verify::verified(&alone(spec, place, folder), steps).map_err(|e| e.to_failure())
}

/// Runs a job on one rank inside this process, and says in which folder its model lies; `folder` is for all that is written.
///
/// # Errors
/// Whatever stops the job.
pub fn train_alone(spec: &spec::JobSpec, place: &gpu::Place, folder: &Path) -> Result<PathBuf, Failure> {
    let config = alone(spec, place, folder);
    train::run(&config, &mut Solo, &mut Deaf).map_err(|e| e.to_failure())?;
    Ok(folder.join("model"))
}

/// What is given to ranks that no agent has started.
fn alone(spec: &spec::JobSpec, place: &gpu::Place, folder: &Path) -> train::Config {
    train::Config {
        spec: spec.clone(),
        inputs: Default::default(),
        pushed: Default::default(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        work: folder.to_owned(),
        cache: folder.join("cache"),
        cache_bytes: u64::MAX,
        features: Vec::new(),
        resume: Vec::new(),
        place: place.clone(),
    }
}

/// Runs the rank that an agent has started this process for.
pub fn main() -> ExitCode {
    crate::supervise::orphans::die_with_parent();
    let sockets = || -> std::io::Result<(TcpListener, UnixStream)> {
        let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok((listener, UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?)))
    };
    let serve = || -> std::io::Result<()> {
        let (listener, socket) = sockets()?;
        let mut lines = BufReader::new(socket.try_clone()?);
        let Some(ToRank::Start(order)) = next(&mut lines) else {
            return Err(std::io::Error::other("ranks are started by an agent, not by hand"));
        };
        let stop = Arc::new(AtomicBool::new(false));
        std::thread::spawn({
            let stop = stop.clone();
            move || {
                while let Some(ToRank::Stop) = next(&mut lines) {
                    stop.store(true, Ordering::Relaxed);
                }
                std::process::exit(ORPHANED);
            }
        });
        let link = Arc::new(Mutex::new(socket));
        // Who is stopped, or waits for a disk that does not answer, is silent; who computes is not.
        let (beating, beat) = (link.clone(), Duration::from_millis(order.beat_ms.max(10)));
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(beat);
                say(&beating, &FromRank::Beat);
            }
        });
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(&order, &listener, &link, &stop)));
        let last = match outcome {
            Ok(Ok(result)) => FromRank::Done { result },
            Ok(Err(failure)) => FromRank::Failed(failure),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
                let hint = "this is a bug; `tlctl logs` has the place";
                FromRank::Failed(Failure::new(FailureClass::Crash, format!("the rank panicked: {text}"), hint))
            }
        };
        say(&link, &last);
        Ok(())
    };
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn next(lines: &mut impl BufRead) -> Option<ToRank> {
    let mut line = String::new();
    lines.take(MAX_LINE as u64).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

fn say(link: &Mutex<UnixStream>, message: &FromRank) {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    let sent = link.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
    if sent.is_err() {
        // There is nobody to work for.
        std::process::exit(ORPHANED);
    }
}

/// The rank's way out, over the socket and into its folder.
struct ToAgent {
    socket: Arc<Mutex<UnixStream>>,
    rows: Option<File>,
    stop: Arc<AtomicBool>,
}

impl Link for ToAgent {
    fn row(&mut self, row: &Row) {
        // The agent reads the file: what is in it survives both of us.
        if let (Some(file), Ok(mut line)) = (&mut self.rows, serde_json::to_vec(row)) {
            line.push(b'\n');
            if let Err(e) = file.write_all(&line) {
                tracing::warn!("a row of the series is lost: {e}");
            }
        }
    }

    fn activity(&mut self, name: &str, done: u64, total: u64) {
        say(&self.socket, &FromRank::Activity { name: name.into(), done, total });
    }

    fn checkpoint(&mut self, step: u64, path: &Path) {
        say(&self.socket, &FromRank::Checkpoint { step, path: path.into() });
    }

    fn artifact(&mut self, name: &str, path: &Path) {
        say(&self.socket, &FromRank::Artifact { name: name.into(), path: path.into() });
    }

    fn notice(&mut self, notice: Notice, text: &str) {
        tracing::info!("{text}");
        let code = serde_json::to_value(notice).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        say(&self.socket, &FromRank::Notice { code, text: text.into() });
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn work(
    order: &Order,
    listener: &TcpListener,
    socket: &Arc<Mutex<UnixStream>>,
    stop: &Arc<AtomicBool>,
) -> Result<Option<serde_json::Value>, Failure> {
    admit(order)?;
    pool::init(order.threads);
    let failed = |e: Error| e.to_failure();
    let (device, way) = way(&order.devices, order.rank)?;
    gpu::keep_kernels(&order.cache);
    let config = train::Config {
        spec: gang::settled(order),
        inputs: order.inputs.clone(),
        pushed: order.pushed.clone(),
        hub: order.hub.clone(),
        absent: order.absent.clone(),
        look: order.look,
        work: order.work.clone(),
        cache: order.cache.clone(),
        cache_bytes: order.cache_bytes,
        features: order.features.clone(),
        resume: order.resume.clone(),
        place: gpu::Place::open(device).map_err(|e| unopened(&e))?,
    };
    if order.probe {
        let plan = pool::run(|| train::probe::probe(&config)).map_err(failed)?;
        return Ok(serde_json::to_value(plan).ok());
    }
    let rows = OpenOptions::new().create(true).append(true).open(order.work.join(ROWS));
    let rows = rows.map_err(Error::disk("open the series")).map_err(failed)?;
    let mut link = ToAgent { socket: socket.clone(), rows: Some(rows), stop: stop.clone() };
    if let Some(unit) = order.unit {
        let threads = order.threads;
        tracing::info!("unit {} of {} of what teachers say, on {device} with {threads} threads", unit.0 + 1, unit.1);
        let left = pool::run(|| train::teach::unit(&config, unit, &mut link)).map_err(failed)?;
        return Ok(Some(json!({ "left": left })));
    }
    tracing::info!("rank {} of {} on {device} with {} threads", order.rank, order.addresses.len(), order.threads);
    let mut group = gang::join(order, way, listener).map_err(failed)?;
    let report = pool::run(|| train::run(&config, &mut *group, &mut link));
    if let Err(e) = &report {
        // The others hear why before the connection ends, so that nobody blames this rank for another's failure.
        group.abort(&e.to_string());
    }
    let report = report.map_err(|e| {
        tracing::error!("{e}");
        e.to_failure()
    })?;
    Ok((order.rank == 0).then(|| summary(&report)))
}

/// Whether a rank may begin. A probe goes by every rule; what comes after one was accepted, perhaps by an older release, and may
/// have checkpoints: it goes on if this release has what the job names.
fn admit(order: &Order) -> Result<(), Failure> {
    let check = if order.probe { spec::check } else { spec::check_known };
    check(&order.spec, &catalog()).map_err(|e| Failure::user(e.to_string(), e.hint))
}

/// Why a rank has no place to compute. That a GPU cannot be used any more says nothing of others.
fn unopened(e: &Error) -> Failure {
    let failure = e.to_failure();
    let class = if matches!(e, Error::Gpu { .. }) { FailureClass::LostDevice } else { failure.class };
    Failure { class, ..failure }
}

/// What a rank of an attempt runs on, and how all of them talk to each other.
fn way(devices: &[String], rank: usize) -> Result<(Device, Way), Failure> {
    let known = |name: &String| {
        let hint = "use the same release everywhere";
        Device::parse(name).ok_or_else(|| Failure::user(format!("this worker knows no device `{name}`"), hint))
    };
    let devices = devices.iter().map(known).collect::<Result<Vec<_>, _>>()?;
    let way = choose(&devices).map_err(|e| Failure::user(e.to_string(), "set `cluster.device` to `cpu` or `cuda`"))?;
    let missing = || Failure::new(FailureClass::Crash, format!("there is no device for rank {rank}"), "");
    Ok((devices.get(rank).copied().ok_or_else(missing)?, way))
}

/// What the coordinator keeps of a report; the whole of it is an artifact.
fn summary(report: &Report) -> serde_json::Value {
    let e = &report.evaluation;
    // Of several tasks, the mean.
    let all: Vec<&Evaluation> = match report.tasks.is_empty() {
        true => vec![e],
        false => report.tasks.values().map(|task| &task.evaluation).collect(),
    };
    let mean = |f: fn(&Evaluation) -> f64| all.iter().map(|e| f(e)).sum::<f64>() / all.len() as f64;
    let mut metrics = json!({ "val.accuracy": mean(|e| e.accuracy), "val.loss": mean(|e| e.loss) });
    for (name, task) in &report.tasks {
        metrics[format!("tasks.{name}.accuracy")] = task.evaluation.accuracy.into();
        metrics[format!("tasks.{name}.loss")] = task.evaluation.loss.into();
    }
    if let Some(episodes) = &e.episodes {
        metrics["val.interval"] = episodes.interval.into();
        metrics["val.episodes"] = episodes.count.into();
    } else if !e.classes.is_empty() {
        metrics["val.macro_f1"] = mean(|e| e.mean_of_classes(|c| c.f1)).into();
    }
    if let Some(found) = &report.retrieval {
        let names = ["val.recall_1", "val.recall_5", "val.recall_10"];
        names.into_iter().zip(found.mean()).for_each(|(name, value)| metrics[name] = value.into());
    }
    if let Some(target) = &report.target {
        (metrics["target.accuracy"], metrics["target.loss"]) = (target.accuracy.into(), target.loss.into());
    }
    if let Some(shift) = &report.shift {
        metrics["shift.a_distance"] = shift.after.a_distance.into();
        if let Some(before) = &shift.before {
            metrics["shift.a_distance_before"] = before.a_distance.into();
            metrics["val.accuracy_before"] = before.source_accuracy.into();
            if let Some(accuracy) = before.target_accuracy {
                metrics["target.accuracy_before"] = accuracy.into();
            }
        }
    }
    let mut stages = report.stages.clone();
    stages.iter_mut().for_each(|s| s.units.clear());
    if let Some(source) = &report.source {
        (metrics["source.before"], metrics["source.after"]) = (source.before.into(), source.after.accuracy.into());
        metrics["source.forgotten"] = source.forgotten().into();
    }
    json!({
        "metrics": metrics,
        "steps": report.steps,
        "samples": report.samples,
        "prefix": report.prefix,
        "stages": stages,
        "baselines": report.baselines,
        "selection": report.selection,
    })
}

#[cfg(test)]
mod tests {
    use tl_engine::{eval::selection, link::Notice};

    use super::*;
    use crate::supervise::ipc::UNSAVED;

    #[test]
    fn a_checkpoint_that_could_not_be_written_is_known_by_its_code() {
        assert_eq!(serde_json::to_value(Notice::CheckpointFailed).unwrap(), UNSAVED);
    }

    #[test]
    fn what_criteria_pick_is_kept_of_a_report_and_read_again() {
        let picked = |criterion: &str, value: Option<f64>, accuracy: Option<f64>| selection::Picked {
            criterion: criterion.into(),
            epoch: 3,
            value,
            accuracy,
            used: value.is_some(),
        };
        let all = vec![picked(selection::MODEL, None, Some(0.5)), picked("target.snd", Some(1.5), None)];
        let told = summary(&Report { selection: all.clone(), ..Report::default() });
        let back: Vec<selection::Picked> = serde_json::from_value(told["selection"].clone()).unwrap();
        assert_eq!(back, all);
        assert!(told["selection"][0].get("value").is_none(), "the model saw nothing");
    }

    #[test]
    fn a_job_that_was_accepted_starts_where_a_new_one_like_it_would_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut order = Order {
            rank: 0,
            addresses: vec!["a:1".into()],
            weights: vec![1],
            devices: vec!["cpu".into()],
            work: dir.path().into(),
            cache: dir.path().join("cache"),
            ..gang::tests::order("cpu", "")
        };
        order.spec.job.name = "a\tb".into();
        // It goes as far as to its samples, which are not there.
        let gone = dir.path().join("gone").display().to_string();
        let data = order.spec.data.as_mut().unwrap();
        (data.format, data.train, data.val) = ("image_folder".into(), gone.clone(), gone.clone());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_agent, socket) = UnixStream::pair().unwrap();
        let (socket, stop) = (Arc::new(Mutex::new(socket)), Arc::new(AtomicBool::new(false)));
        let end = |order: &Order| work(order, &listener, &socket, &stop).unwrap_err().message;
        let started = end(&order);
        assert!(started.contains(&gone), "{started}");
        order.probe = true;
        let refused = end(&order);
        assert!(refused.contains("`job.name` has a line break or another control character"), "{refused}");
        (order.probe, order.spec.optimizer.name) = (false, "lion".into());
        let unknown = end(&order);
        assert!(unknown.contains("there is no optimizer `lion`"), "{unknown}");
    }

    #[test]
    fn a_gpu_that_cannot_be_opened_is_lost_and_a_job_that_is_wrong_is_not_tried_elsewhere() {
        let gone = unopened(&Error::Gpu { number: 2, cause: "the driver answers CUDA_ERROR_NO_DEVICE".into() });
        assert_eq!(gone.class, FailureClass::LostDevice);
        assert_eq!(gone.message, "GPU 2 cannot be used: the driver answers CUDA_ERROR_NO_DEVICE");
        assert!(gone.hint.contains("tl-worker doctor"), "{}", gone.hint);
        assert_eq!(unopened(&Error::user("this build has no CUDA", "")).class, FailureClass::User);
    }

    #[test]
    fn a_rank_runs_on_its_own_device_and_kinds_that_do_not_mix_or_are_unknown_are_refused() {
        let way = |devices: &[&str], rank| way(&devices.iter().map(ToString::to_string).collect::<Vec<_>>(), rank);
        assert_eq!(way(&["cpu"], 0), Ok((Device::Cpu, Way::Solo)));
        assert_eq!(way(&["cpu", "cpu"], 1), Ok((Device::Cpu, Way::Tcp)));
        assert_eq!(way(&["cuda:3"], 0), Ok((Device::Cuda(3), Way::Solo)));
        assert_eq!(way(&["cuda:0", "cuda:1"], 1), Ok((Device::Cuda(1), Way::Nccl)));
        for devices in [&["cpu", "cuda:0"][..], &["rocm:0"], &[]] {
            assert_eq!(way(devices, 0).unwrap_err().class, FailureClass::User, "{devices:?}");
        }
        assert!(way(&["cpu"], 1).is_err());
    }
}
