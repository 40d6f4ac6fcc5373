//! The life of one rank's process, from its files to its last words.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tl_proto::{
    deadlines::Deadlines,
    failure::{Failure, FailureClass},
    hardware::Device,
    spec::JobSpec,
    v1::{self, agent_message::Body},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::Child,
    sync::{mpsc, watch},
};

use super::{
    command::RankCommand,
    courier::{self, Parcel},
    features,
    ipc::{FromRank, MAX_LINE, Order, ToRank, UNSAVED},
    spawner::Spawner,
    weights,
};
use crate::{
    machine::{quarantine::Ward, threads::Threads},
    session::{
        outbox::Outbox,
        report::{Key, LOG, Reporter},
    },
    store::{
        blobs::{self, Blobs},
        datasets::{DataSets, Lease},
        folder::{self, Home},
        hub::Models,
        roots::Roots,
    },
};

/// What the processes of an agent share.
pub struct Context {
    /// The agent's folder.
    pub home: Home,
    /// Features of frozen networks.
    pub cache: PathBuf,
    /// Bytes that they may take.
    pub cache_bytes: u64,
    /// Where jobs may read.
    pub roots: Roots,
    /// Files of the cluster.
    pub blobs: Blobs,
    /// Pushed data sets.
    pub data: DataSets,
    /// Weights of the hub.
    pub models: Models,
    /// Messages for the coordinator.
    pub outbox: Outbox,
    /// Rows and lines for the coordinator.
    pub reporter: Reporter,
    /// Starts processes.
    pub spawner: Spawner,
    /// The command line of a rank.
    pub command: RankCommand,
    /// Threads of a rank, unless its job says otherwise.
    pub threads: Threads,
    /// GPUs that have failed ranks.
    pub ward: Ward,
}

/// What is to become of a process; only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// It goes on.
    Run,
    /// It saves its state at the next step and ends.
    Stop,
    /// It ends now.
    Kill,
}

/// How long a failure waits for a checkpoint that is on its way.
const FAILURE_WAITS: Duration = Duration::from_secs(2);
/// How long the end of a rank waits for its last lines to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a success waits for the last rows to arrive.
const SUCCESS_WAITS: Duration = Duration::from_secs(30);

/// Runs a rank until nothing is left to say about it. `freed` is called once, when its slot is free.
pub async fn run(
    context: &Arc<Context>,
    key: &Key,
    launch: v1::Launch,
    listener: Option<io::Result<OwnedFd>>,
    mut wish: watch::Receiver<Wish>,
    freed: impl FnOnce(),
) {
    let folder = context.home.rank(&key.job, &key.phase, key.generation, key.rank);
    let grace = Duration::from_millis(launch.stop_grace_ms);
    // Its peers notice first and say more; this is for a rank that is alone, or only looks at a job.
    let silence = 2 * Duration::from_millis(launch.silence_ms.max(1_000));
    let started = tokio::select! {
        started = start(context, key, &launch, &folder, listener) => started,
        _ = wish.wait_for(|w| *w > Wish::Run) => Err(Failure::new(FailureClass::Stopped, "stopped before its start", "")),
    };
    let (parcels, queue) = mpsc::unbounded_channel();
    let mut courier = tokio::spawn(courier::run(context.clone(), key.clone(), queue));
    let ended = match started {
        Ok((child, socket, _data)) => {
            live(context, key, child, socket, &parcels, &mut wish, (grace, silence, &folder)).await
        }
        Err(failure) => Err(failure),
    };
    freed();
    // The courier ends after what is queued.
    drop(parcels);
    let patience = match &ended {
        Err(f) if f.class != FailureClass::Stopped => FAILURE_WAITS,
        _ => Duration::MAX,
    };
    let arrived = tokio::time::timeout(patience, &mut courier).await;
    let all_arrived = matches!(arrived, Ok(Ok(true)));
    let drained;
    match ended {
        Ok(Some(result)) if all_arrived => {
            // The series is whole before the phase is said to be.
            drained = context.reporter.drain(key, SUCCESS_WAITS).await;
            let (job_id, phase) = (key.job.to_string(), key.phase.to_string());
            let result_json = serde_json::to_vec(&result).unwrap_or_default();
            context.outbox.push(Body::Result(v1::PhaseResult {
                job_id,
                phase,
                generation: key.generation,
                result_json,
            }));
            exited(context, key, None);
        }
        ended => {
            let lost = || {
                let hint = "the history of the phase says why; is the blob store full?";
                Failure::new(FailureClass::Disk, "files of the finished phase did not reach the blob store", hint)
            };
            let failure = match ended {
                Ok(Some(_)) => Some(lost()),
                Ok(None) => None,
                Err(failure) => Some(failure),
            };
            if let Some(lost) = failure.as_ref().filter(|f| f.class == FailureClass::LostDevice) {
                // Before the coordinator hears of the end, for it looks for another slot then.
                context.ward.admit(launch.slot, &lost.message);
            }
            if failure.as_ref().is_some_and(|f| f.class == FailureClass::Disk) {
                // Before the coordinator hears of the end, for the next attempt may be here.
                context.blobs.make_room(None);
                // The newest is likely its own.
                context.data.give_up(1).await;
            }
            // Last words first: who follows the log stops when the job does.
            let soon = context.reporter.drain(key, LAST_WORDS).await;
            exited(context, key, failure);
            drained = soon || context.reporter.drain(key, SUCCESS_WAITS).await;
        }
    }
    if arrived.is_err() {
        let _ = courier.await;
    }
    // Blobs that are worth keeping have links elsewhere. What has not arrived is cleared away by the next agent.
    if drained {
        let _ = fs::remove_dir_all(&folder);
        // The folders of generation, phase and job go with the last rank in them.
        folder::remove_empty(&folder);
    }
}

fn exited(context: &Context, key: &Key, failure: Option<Failure>) {
    context.outbox.push(Body::Exited(v1::RankExited {
        job_id: key.job.to_string(),
        phase: key.phase.to_string(),
        generation: key.generation,
        rank: key.rank,
        success: failure.is_none(),
        failure: failure.map(Into::into),
    }));
}

fn disk(what: &str) -> impl FnOnce(io::Error) -> Failure {
    let what = what.to_owned();
    move |e| Failure::new(FailureClass::Disk, format!("failed to {what}: {e}"), "free some space on the node")
}

/// Brings the files that a rank needs, and starts its process.
async fn start(
    context: &Context,
    key: &Key,
    launch: &v1::Launch,
    folder: &Path,
    listener: Option<io::Result<OwnedFd>>,
) -> Result<(Child, UnixStream, Vec<Lease>), Failure> {
    let spec: JobSpec = serde_json::from_slice(&launch.spec_json)
        .map_err(|e| Failure::user(format!("the job cannot be read here: {e}"), "use the same release everywhere"))?;
    context.roots.check(&spec)?;
    let listener = listener
        .ok_or_else(|| Failure::new(FailureClass::Crash, format!("there is no slot {}", launch.slot), ""))?
        .map_err(disk("share the slot's socket"))?;
    folder::make(folder).map_err(disk("make the rank's folder"))?;
    context.reporter.follow(key, folder);
    let slow = |why: &str| {
        let (job_id, phase, generation) = (key.job.to_string(), key.phase.to_string(), key.generation);
        let (code, text) = ("download_slow".into(), format!("a file waits for the blob store: {why}"));
        context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
    };
    let mut inputs = BTreeMap::new();
    for (name, blob) in &launch.inputs {
        // The name is that of a step, or says a job and its step.
        let plain = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let path = folder.join(format!("input-{}-{plain}.safetensors", inputs.len()));
        context.blobs.place(blob, &path, &slow).await.map_err(lost(&format!("the model `{name}`")))?;
        inputs.insert(name.clone(), path);
    }
    let (mut pushed, mut leases) = (BTreeMap::new(), Vec::new());
    for blob in &launch.data {
        let lease = context.data.take(blob, &context.blobs, &slow).await.map_err(lost("a pushed data set"))?;
        pushed.insert(blob.digest.clone(), lease.folder().to_owned());
        leases.push(lease);
    }
    let (hub, absent) = weights::bring(context, key, &spec, launch.plan).await?;
    let features = features::bring(context, key, launch, folder, &slow).await;
    let mut resume = Vec::new();
    if key.rank == 0 {
        for checkpoint in &launch.checkpoints {
            let Some(blob) = &checkpoint.blob else { continue };
            let (path, whole) = self::checkpoint(context, folder, (checkpoint.step, blob), &slow).await?;
            resume.push(path);
            // Older ones are for when this one is not whole; they may be large.
            if whole {
                break;
            }
        }
    }
    let device = launch.devices.get(launch.rank as usize).and_then(|name| Device::parse(name)).unwrap_or(Device::Cpu);
    let order = Order {
        probe: launch.kind == "probe",
        look: launch.plan,
        unit: (launch.kind == "teach").then_some((launch.unit as usize, launch.units as usize)),
        rank: launch.rank as usize,
        addresses: launch.addresses.clone(),
        // A coordinator that speaks of no weights means equal ones.
        weights: (0..launch.addresses.len()).map(|r| launch.weights.get(r).copied().unwrap_or(1).max(1)).collect(),
        devices: (0..launch.addresses.len())
            .map(|r| launch.devices.get(r).cloned().unwrap_or_else(|| "cpu".into()))
            .collect(),
        attempt: format!("{}/{}/{}", key.job, key.phase, key.generation),
        secret: launch.secret.clone(),
        rendezvous_ms: launch.rendezvous_ms,
        nccl_ready_ms: match launch.nccl_ready_ms {
            // Of a coordinator that does not speak of it.
            0 => Deadlines::default().nccl_ready_ms.max(launch.rendezvous_ms),
            told => told,
        },
        beat_ms: launch.beat_ms,
        silence_ms: launch.silence_ms,
        threads: if spec.cluster.threads > 0 { spec.cluster.threads as usize } else { context.threads.of(device) },
        spec,
        work: folder.into(),
        cache: context.cache.clone(),
        cache_bytes: context.cache_bytes,
        inputs,
        pushed,
        hub,
        absent,
        features,
        resume,
    };
    let log = File::create(folder.join(LOG)).map_err(disk("open the rank's log"))?;
    let (mut ours, theirs) = UnixStream::pair().map_err(disk("make a socket pair"))?;
    let theirs =
        theirs.into_std().and_then(|s| s.set_nonblocking(false).map(|()| s)).map_err(disk("share a socket"))?;
    let mut command = context.command.to_command();
    command.stdin(Stdio::from(listener)).stdout(Stdio::from(OwnedFd::from(theirs))).stderr(log);
    command.kill_on_drop(true);
    let child = context.spawner.spawn(command).await;
    let child = child.map_err(|e| Failure::new(FailureClass::Crash, format!("a rank cannot be started: {e}"), ""))?;
    tell(&mut ours, &ToRank::Start(Box::new(order))).await.map_err(disk("talk to the rank"))?;
    Ok((child, ours, leases))
}

/// A checkpoint under a name that says what it is. One that is damaged is handed over all the same: the rank passes it
/// over and says so.
async fn checkpoint(
    context: &Context,
    folder: &Path,
    (step, blob): (u64, &v1::BlobRef),
    slow: impl Fn(&str),
) -> Result<(PathBuf, bool), Failure> {
    let path = folder.join(format!("resume-step-{step}"));
    match context.blobs.place(blob, &path, slow).await {
        Ok(()) => return Ok((path, true)),
        Err(blobs::Error::Damaged(digest)) => {
            blobs::link(&context.blobs.path(&digest), &path).map_err(disk("place a checkpoint"))?;
        }
        Err(blobs::Error::Refused(_)) => drop(File::create(&path).map_err(disk("write a checkpoint"))?),
        Err(e @ blobs::Error::Disk(_)) => return Err(lost("a checkpoint")(e)),
    }
    Ok((path, false))
}

fn lost(what: &str) -> impl FnOnce(blobs::Error) -> Failure {
    let what = what.to_owned();
    move |e| {
        let hint = if matches!(e, blobs::Error::Disk(_)) { "free some space on the node" } else { "" };
        Failure::new(FailureClass::Disk, format!("{what} cannot be fetched: {e}"), hint)
    }
}

async fn tell(socket: &mut UnixStream, message: &ToRank) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line).await
}

/// Watches a process until it has ended, and passes on what it says.
async fn live(
    context: &Context,
    key: &Key,
    mut child: Child,
    socket: UnixStream,
    parcels: &mpsc::UnboundedSender<Parcel>,
    wish: &mut watch::Receiver<Wish>,
    (grace, silence, folder): (Duration, Duration, &Path),
) -> Result<Option<serde_json::Value>, Failure> {
    let kills = oom_kills();
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read);
    let mut last = None;
    let mut kill_at: Option<tokio::time::Instant> = None;
    let mut line = Vec::new();
    let (mut open, mut heard) = (true, true);
    let mut last_heard = tokio::time::Instant::now();
    let mut silent = false;
    let status = loop {
        tokio::select! {
            // First what it said, then that it ended.
            biased;
            read = lines.read_until(b'\n', &mut line), if open => {
                if !matches!(read, Ok(n) if n > 0) || line.len() > MAX_LINE {
                    open = false;
                    if line.len() > MAX_LINE {
                        let _ = child.start_kill();
                    }
                    continue;
                }
                last_heard = tokio::time::Instant::now();
                match serde_json::from_slice(&line) {
                    Ok(FromRank::Beat) => {}
                    Ok(FromRank::Activity { name, done, total }) => {
                        let (phase, generation) = (key.phase.to_string(), key.generation);
                        context.reporter.activity(&key.job, v1::Activity { phase, generation, name, done, total });
                    }
                    Ok(FromRank::Checkpoint { step, path }) => { let _ = parcels.send(Parcel::Checkpoint(step, path)); }
                    Ok(FromRank::Artifact { name, path }) => { let _ = parcels.send(Parcel::Artifact(name, path)); }
                    Ok(FromRank::Notice { code, text }) => {
                        if code == UNSAVED {
                            // The next one may find room.
                            context.blobs.make_room(None);
                        }
                        let (job_id, phase, generation) = (key.job.to_string(), key.phase.to_string(), key.generation);
                        context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
                    }
                    Ok(end) => last = Some(end),
                    Err(e) => tracing::warn!("a rank said something odd: {e}"),
                }
                line.clear();
            }
            status = child.wait(), if !open => break status,
            wanted = wish.changed(), if heard => {
                heard = wanted.is_ok();
                let now = *wish.borrow();
                match now {
                    Wish::Stop if heard => {
                        let _ = write.write_all(b"\"stop\"\n").await;
                        kill_at = Some(tokio::time::Instant::now() + grace);
                    }
                    // A supervisor that is gone wants nothing to go on.
                    Wish::Run if heard => {}
                    _ => kill_at = Some(tokio::time::Instant::now()),
                }
            }
            () = tokio::time::sleep_until(last_heard + silence), if open && !silent => {
                silent = true;
                let _ = child.start_kill();
            }
            () = tokio::time::sleep_until(kill_at.unwrap_or_else(tokio::time::Instant::now)), if kill_at.is_some() => {
                let _ = child.start_kill();
                kill_at = Some(tokio::time::Instant::now() + Duration::from_secs(1));
            }
        }
    };
    let asked = *wish.borrow() > Wish::Run;
    match (status, last) {
        (Ok(status), Some(FromRank::Done { result })) if status.success() => Ok(result),
        (_, Some(FromRank::Failed(failure))) => Err(failure),
        (Ok(_), _) if silent => {
            let text = format!("the rank was silent for {} ms and was killed", silence.as_millis());
            Err(Failure::new(FailureClass::LostNode, text, ""))
        }
        (Ok(_), _) if asked => Err(Failure::new(FailureClass::Stopped, "the rank was stopped", "")),
        (Ok(status), _) => Err(unexplained(status, kills, folder)),
        (Err(e), _) => Err(Failure::new(FailureClass::Crash, format!("the rank cannot be waited for: {e}"), "")),
    }
}

/// What a process that said nothing has died of.
fn unexplained(status: ExitStatus, kills_before: Option<u64>, folder: &Path) -> Failure {
    let log = fs::read(folder.join(LOG)).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
    let memory = "lower `data.batch` or `model.input`, raise `data.grains`, or use nodes with more memory";
    match status.signal() {
        Some(9) if kills_before.is_some() && oom_kills() > kills_before => {
            Failure::new(FailureClass::OutOfMemory, "the system killed the rank because memory ran out", memory)
        }
        // Somebody, or something outside, took the rank away: the same attempt may succeed elsewhere.
        Some(9 | 15) => Failure::new(FailureClass::LostNode, "the rank was killed", ""),
        Some(6) if tail.contains("memory allocation of") => {
            Failure::new(FailureClass::OutOfMemory, "the rank ran out of memory", memory)
        }
        Some(signal) => Failure::new(
            FailureClass::Crash,
            format!("the rank died of signal {signal}"),
            "`tlctl logs` has its last words",
        ),
        None => {
            let said = tail.lines().last().unwrap_or_default().to_owned();
            let code = status.code().unwrap_or(-1);
            Failure::new(
                FailureClass::Crash,
                format!("the rank ended with code {code}: {said}"),
                "`tlctl logs` has more",
            )
        }
    }
}

/// How often the system has killed for memory, where it says so.
fn oom_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok()
}
