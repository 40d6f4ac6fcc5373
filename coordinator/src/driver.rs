//! The one writer of the state: decides commands, makes their events durable, applies them, carries out the plan.
//!
//! A thread of its own, because the disk blocks. Everybody else reads the state through [`Driver::read`] and hears of
//! changes through [`Driver::changes`].

use std::{
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tl_proto::{deadlines::Deadlines, ids::NodeId};
use tokio::sync::{oneshot, watch};

use crate::{
    core::{Command, Context, Event, NodeStatus, Refusal, State, apply, decide, invariants, plan},
    store::{self, Blobs, Lifecycle},
};

/// How often the plan is looked at when nothing happens: deadlines pass on their own.
const TICK: Duration = Duration::from_millis(100);
/// Commands that may wait to be decided.
const INBOX: usize = 4_096;
/// Rounds of planning after one command. Planning comes to rest in a few; more is a bug, and must not hang.
const ROUNDS: usize = 64;

/// Why a command had no effect.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The core says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its events could not be made durable; ask again.
    #[error("the state cannot be written: {0}")]
    Store(String),
    /// Too many commands wait, or the coordinator stops.
    #[error("the coordinator is busy or stopping")]
    Unavailable,
}

enum Message {
    Decide(Box<Command>, oneshot::Sender<Result<(), Rejection>>),
    Seen(NodeId),
    Stop,
}

struct Shared {
    state: RwLock<State>,
    version: watch::Sender<u64>,
}

/// A handle on the state. Cheap to clone.
#[derive(Clone)]
pub struct Driver {
    shared: Arc<Shared>,
    inbox: SyncSender<Message>,
}

impl Driver {
    /// Replays the log in `dir` and starts the thread.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn start(
        dir: &Path,
        deadlines: Deadlines,
        blobs: Blobs,
    ) -> Result<(Self, std::thread::JoinHandle<()>), store::Error> {
        let (log, mut state) = Lifecycle::open(dir)?;
        let mut clock = Clock(0);
        // Who was connected before the restart gets a full lease to come back before anything of theirs is replaced.
        for node in state.nodes.values_mut().filter(|n| n.status != NodeStatus::Lost) {
            node.status = NodeStatus::Unknown;
            node.seen_ms = clock.now();
        }
        let shared = Arc::new(Shared { state: RwLock::new(state), version: watch::Sender::new(0) });
        let (inbox, messages) = sync_channel(INBOX);
        let writer = Writer { shared: shared.clone(), log, deadlines, blobs, clock };
        let thread = std::thread::Builder::new().name("driver".into()).spawn(move || writer.run(&messages))?;
        Ok((Self { shared, inbox }, thread))
    }

    /// Decides a command; when it returns `Ok`, its events are on disk and applied.
    ///
    /// # Errors
    /// A refusal, or a disk that does not take the events.
    pub async fn decide(&self, command: Command) -> Result<(), Rejection> {
        let (reply, answer) = oneshot::channel();
        self.inbox.try_send(Message::Decide(Box::new(command), reply)).map_err(|_| Rejection::Unavailable)?;
        answer.await.unwrap_or(Err(Rejection::Unavailable))
    }

    /// A node gave a sign of life.
    pub fn seen(&self, node: &NodeId) {
        // A full inbox means that the node will be heard of at its next heartbeat.
        let _ = self.inbox.try_send(Message::Seen(node.clone()));
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts changes of the state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Lets the thread end after the commands before this one.
    pub fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
    }
}

/// The wall clock, which here never goes back.
struct Clock(u64);

impl Clock {
    fn now(&mut self) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        self.0 = self.0.max(wall);
        self.0
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    Clock(0).now()
}

struct Writer {
    shared: Arc<Shared>,
    log: Lifecycle,
    deadlines: Deadlines,
    blobs: Blobs,
    clock: Clock,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(TICK) {
                Ok(Message::Decide(command, reply)) => {
                    let result = self.decide(*command);
                    self.settle();
                    // Nobody may be waiting for the answer any more.
                    let _ = reply.send(result);
                }
                Ok(Message::Seen(node)) => self.seen(&node),
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn decide(&mut self, command: Command) -> Result<(), Rejection> {
        let now = self.clock.now();
        let joined = if let Command::Join { node, .. } = &command { Some(node.clone()) } else { None };
        let events = decide(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner), command, now)?;
        self.commit(&events)?;
        // Its lease begins with its hello.
        joined.iter().for_each(|node| self.seen(node));
        Ok(())
    }

    fn seen(&mut self, node: &NodeId) {
        let now = self.clock.now();
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = state.nodes.get_mut(node) {
            node.seen_ms = now;
        }
    }

    /// Carries the plan out until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let entropy = ulid::Ulid::new().random();
            let context = Context { now: self.clock.now(), deadlines: &self.deadlines, entropy };
            let events = plan(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner), &context);
            if events.is_empty() {
                return;
            }
            if let Err(e) = self.commit(&events) {
                tracing::error!("{e}; trying again");
                return;
            }
        }
        tracing::error!("planning does not come to rest");
    }

    /// Durable first, then visible.
    fn commit(&mut self, events: &[Event]) -> Result<(), Rejection> {
        if events.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.log.append(events).map_err(|e| Rejection::Store(e.to_string()))?;
        metrics::histogram!("tl_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::counter!("tl_events_total").increment(events.len() as u64);
        {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                tracing::debug!(event = %serde_json::to_string(event).unwrap_or_default());
                let before = blobs_at_stake(&state, event);
                apply(&mut state, event);
                let gone = before.into_iter().filter(|digest| !state.needs_blob(digest));
                gone.for_each(|digest| self.blobs.remove(&digest));
            }
            debug_assert_eq!(invariants::check(&state), Ok(()));
            if let Err(e) = self.log.compact(&state) {
                tracing::warn!("the log could not be compacted: {e}");
            }
        }
        self.shared.version.send_modify(|v| *v += 1);
        Ok(())
    }
}

/// Blobs that nobody may need once `event` is applied.
fn blobs_at_stake(state: &State, event: &Event) -> Vec<String> {
    match event {
        Event::CheckpointReady { job, phase, .. } => {
            let phase = state.jobs.get(job).and_then(|j| j.phase(phase));
            phase.map(|p| p.checkpoints.iter().map(|(_, b)| b.digest.clone()).collect()).unwrap_or_default()
        }
        Event::JobRemoved { job } => {
            state.jobs.get(job).map(|j| j.blobs().map(|b| b.digest.clone()).collect()).unwrap_or_default()
        }
        Event::DataRemoved { digest } => vec![digest.clone()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use tl_proto::{ids::JobId, spec::parse};

    use super::*;

    const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune" }
data = { format = "generated", train = "shapes", val = "shapes", batch = 8 }
model = { backbone = "small_cnn" }
stage = [{ name = "all", epochs = 1, train = ["*"], lr = 0.1 }]
"#;

    fn open(dir: &Path) -> (Driver, std::thread::JoinHandle<()>) {
        Driver::start(dir, Deadlines::default(), Blobs::open(dir).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_accepted_job_is_there_after_a_restart_and_a_repeated_submit_adds_none() {
        let dir = tempfile::tempdir().unwrap();
        let (driver, thread) = open(dir.path());
        let submit = |bits| Command::Submit {
            job: JobId::from_bits(bits),
            key: "k".into(),
            owner: "o".into(),
            spec: Box::new(parse(JOB).unwrap()),
            plan_only: false,
        };
        driver.decide(submit(1)).await.unwrap();
        driver.decide(submit(2)).await.unwrap();
        let gone = driver.decide(Command::Cancel { job: JobId::from_bits(9) }).await;
        assert!(matches!(gone, Err(Rejection::Refused(Refusal::NotFound(_)))));
        let before = driver.read(State::clone);
        driver.stop();
        thread.join().unwrap();
        let (driver, thread) = open(dir.path());
        assert_eq!(driver.read(State::clone), before);
        assert_eq!(driver.read(|s| s.jobs.len()), 1);
        driver.stop();
        thread.join().unwrap();
    }
}
