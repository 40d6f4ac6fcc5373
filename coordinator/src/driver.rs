//! The one writer of the state: decides commands, makes their events durable, applies them, carries out the plan.
//!
//! A thread of its own, because the disk blocks. Everybody else reads the state through [`Driver::read`] and hears of
//! changes through [`Driver::changes`].

mod pulse;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use tl_proto::{
    deadlines::Deadlines,
    ids::{JobId, NodeId},
};
use tokio::sync::{oneshot, watch};

use self::pulse::Pulse;
use crate::{
    clock::Clock,
    core::{
        Command, Context, Event, JobStatus, Millis, NodeStatus, Refusal, State, apply, blobs_at_stake, decide,
        invariants, plan,
    },
    store::{self, Blobs, Lifecycle},
};

/// How often the plan is looked at when nothing happens: deadlines pass on their own.
const TICK: Duration = Duration::from_millis(100);
/// How often blobs that nothing refers to are looked for, and how old they must be: a blob is uploaded before it is
/// referred to.
const SWEEP: Duration = Duration::from_secs(3_600);
/// How long after the start it is done first: agents announce then what they have uploaded while nobody was there.
const FIRST_SWEEP: Duration = Duration::from_secs(600);
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
    Store(store::Error),
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
    pulse: Pulse,
}

/// A handle on the state. Cheap to clone.
#[derive(Clone)]
pub struct Driver {
    shared: Arc<Shared>,
    inbox: SyncSender<Message>,
    clock: Clock,
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
        let mut writer = Writer::open(dir, deadlines, blobs)?;
        writer.forget_plans();
        let (shared, clock) = (writer.shared.clone(), writer.clock);
        let (inbox, messages) = sync_channel(INBOX);
        let thread = std::thread::Builder::new().name("driver".into()).spawn(move || writer.run(&messages))?;
        Ok((Self { shared, inbox, clock }, thread))
    }

    /// The time by which everything is decided, in milliseconds since the epoch.
    pub fn now_ms(&self) -> Millis {
        self.clock.now()
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

    /// Why no job can begin, end or be cancelled, if that is so: the disk has refused the newest events.
    pub fn trouble(&self) -> Option<String> {
        self.shared.pulse.trouble(Instant::now())
    }

    /// Lets the thread end after the commands before this one.
    pub fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
    }
}

struct Writer {
    shared: Arc<Shared>,
    log: Lifecycle,
    deadlines: Deadlines,
    blobs: Blobs,
    clock: Clock,
    /// When it was planned last.
    planned_ms: Millis,
    /// When blobs are to be swept next.
    sweep_ms: Millis,
}

impl Writer {
    fn open(dir: &Path, deadlines: Deadlines, blobs: Blobs) -> Result<Self, store::Error> {
        let (log, state) = Lifecycle::open(dir)?;
        let clock = Clock::start(state.newest_ms());
        let now = clock.now();
        let shared =
            Arc::new(Shared { state: RwLock::new(state), version: watch::Sender::new(0), pulse: Pulse::default() });
        let sweep_ms = now + millis(FIRST_SWEEP);
        let mut writer = Self { shared, log, deadlines, blobs, clock, planned_ms: now, sweep_ms };
        // Who was connected before the restart gets a full lease to come back before anything of theirs is replaced.
        writer.change(|state| {
            for node in state.nodes.values_mut().filter(|n| n.status != NodeStatus::Lost) {
                node.status = NodeStatus::Unknown;
                node.seen_ms = now;
            }
        });
        Ok(writer)
    }

    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            if self.clock.now() >= self.sweep_ms {
                self.sweep();
            }
            match messages.recv_timeout(TICK) {
                Ok(Message::Decide(command, reply)) => {
                    let result = self.decide(*command);
                    self.settle();
                    // Nobody may be waiting for the answer any more.
                    let _ = reply.send(result);
                }
                Ok(Message::Seen(node)) => {
                    self.seen(&node);
                    // Where many nodes give signs of life it is never quiet.
                    if self.clock.now() - self.planned_ms >= millis(TICK) {
                        self.settle();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn decide(&mut self, command: Command) -> Result<(), Rejection> {
        let now = self.clock.now();
        let joined = if let Command::Join { node, .. } = &command { Some(node.clone()) } else { None };
        let events = self.look(|state| decide(state, command, now))?;
        self.commit(&events)?;
        // Its lease begins with its hello.
        joined.iter().for_each(|node| self.seen(node));
        Ok(())
    }

    fn seen(&mut self, node: &NodeId) {
        let now = self.clock.now();
        self.change(|state| {
            if let Some(node) = state.nodes.get_mut(node) {
                node.seen_ms = now;
            }
        });
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what is not in the log.
    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// After a stall (of the machine, of this process, of the disk) signs of life may lie unread: like after a restart,
    /// every node gets a full lease.
    fn wake(&mut self) {
        let now = self.clock.now();
        let stalled = now - self.planned_ms > self.deadlines.lease_ms / 2;
        self.planned_ms = now;
        if stalled {
            tracing::warn!("nothing was decided for a while; all nodes get a new lease");
            self.change(|state| {
                state.nodes.values_mut().filter(|n| n.status != NodeStatus::Lost).for_each(|n| n.seen_ms = now);
            });
        }
    }

    /// Removes the hidden jobs of plans: nobody who had asked for one is there after a restart.
    fn forget_plans(&mut self) {
        let plans: Vec<(JobId, JobStatus)> = self.look(|state| {
            let plans = state.jobs.iter().filter(|(_, j)| j.plan_only);
            plans.map(|(id, job)| (id.clone(), job.status)).collect()
        });
        for (job, status) in plans {
            let cancel = (status == JobStatus::Active).then(|| Command::Cancel { job: job.clone() });
            for command in cancel.into_iter().chain([Command::Remove { job }]) {
                if let Err(e) = self.decide(command) {
                    tracing::warn!("a plan of the time before the restart stays: {e}");
                }
            }
        }
    }

    /// Throws blobs away that nothing refers to.
    fn sweep(&mut self) {
        self.sweep_ms = self.clock.now() + millis(SWEEP);
        let needed: BTreeSet<String> = self.look(|state| state.blobs().into_iter().map(str::to_owned).collect());
        let blobs = self.blobs.clone();
        // Listing may take long. What is announced meanwhile was asked for, and counts as new.
        std::thread::spawn(move || {
            if let Err(e) = blobs.sweep(|digest| needed.contains(digest), SWEEP) {
                tracing::warn!("blobs cannot be swept: {e}");
            }
        });
    }

    /// Carries the plan out until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            self.wake();
            let entropy = ulid::Ulid::new().random();
            let context = Context { now: self.planned_ms, deadlines: &self.deadlines, entropy };
            let events = self.look(|state| plan(state, &context));
            if events.is_empty() {
                return;
            }
            // A disk that refuses is tried again with the next plan.
            if self.commit(&events).is_err() {
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
        if let Err(e) = self.log.append(events) {
            let e = Rejection::Store(e);
            if self.shared.pulse.refused(&e.to_string(), started) {
                tracing::error!("{e}; no job can begin, end or be cancelled before it can");
            }
            return Err(e);
        }
        self.shared.pulse.taken();
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

fn millis(time: Duration) -> Millis {
    time.as_millis() as Millis
}

#[cfg(test)]
mod tests;
