//! The one writer of the state: decides commands, makes their events durable, applies them, carries out the plan.
//!
//! A thread of its own, because the disk blocks. Everybody else reads the state through [`Driver::read`] and hears of
//! changes through [`Driver::changes`].

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
        let shared = Arc::new(Shared { state: RwLock::new(state), version: watch::Sender::new(0) });
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

fn millis(time: Duration) -> Millis {
    time.as_millis() as Millis
}

#[cfg(test)]
mod tests {
    use tl_proto::{ids::PhaseId, spec::parse};

    use super::*;
    use crate::core::{Artifact, Blob, Slot};

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

    fn submit(bits: u128, key: &str, plan_only: bool) -> Command {
        let (job, spec) = (JobId::from_bits(bits), Box::new(parse(JOB).unwrap()));
        Command::Submit { job, key: key.into(), owner: "o".into(), spec, plan_only }
    }

    fn join(node: &NodeId) -> Command {
        let slots = vec![Slot { index: 0, device: "cpu".into(), address: "n:1".into(), weight: 1 }];
        let (name, incarnation, build) = ("n".into(), "a".into(), "b".into());
        Command::Join {
            node: node.clone(),
            name,
            incarnation,
            build,
            slots,
            catalog: Box::default(),
            hardware: Box::default(),
        }
    }

    #[tokio::test]
    async fn an_accepted_job_is_there_after_a_restart_and_a_repeated_submit_adds_none() {
        let dir = tempfile::tempdir().unwrap();
        let (driver, thread) = open(dir.path());
        driver.decide(submit(1, "k", false)).await.unwrap();
        driver.decide(submit(2, "k", false)).await.unwrap();
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

    #[tokio::test]
    async fn a_plan_does_not_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (driver, thread) = open(dir.path());
        driver.decide(submit(1, "plan", true)).await.unwrap();
        driver.decide(submit(2, "job", false)).await.unwrap();
        driver.stop();
        thread.join().unwrap();
        let (driver, thread) = open(dir.path());
        assert_eq!(driver.read(|s| s.jobs.keys().cloned().collect::<Vec<_>>()), [JobId::from_bits(2)]);
        driver.stop();
        thread.join().unwrap();
    }

    #[test]
    fn a_stall_of_the_coordinator_costs_no_node_its_lease_and_silence_does() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut writer = Writer::open(dir.path(), Deadlines::default(), blobs).unwrap();
        let node = NodeId::from_bits(1);
        writer.decide(join(&node)).unwrap();
        let status = |writer: &Writer| writer.look(|s| s.nodes[&node].status);
        let lease = writer.deadlines.lease_ms;
        writer.clock = writer.clock.later(2 * lease);
        writer.settle();
        assert_eq!(status(&writer), NodeStatus::Ready);
        for _ in 0..5 {
            writer.clock = writer.clock.later(lease / 4);
            writer.settle();
        }
        assert_eq!(status(&writer), NodeStatus::Lost);
    }

    /// A writer beside blobs, and what a node says to it of its one job.
    struct Desk {
        dir: tempfile::TempDir,
        blobs: Blobs,
        job: JobId,
        node: NodeId,
    }

    impl Desk {
        fn open() -> (Self, Writer) {
            let dir = tempfile::tempdir().unwrap();
            let blobs = Blobs::open(dir.path()).unwrap();
            let writer = Writer::open(dir.path(), Deadlines::default(), blobs.clone()).unwrap();
            (Self { dir, blobs, job: JobId::from_bits(1), node: NodeId::from_bits(1) }, writer)
        }

        /// Puts a blob there, whose name is one letter.
        fn blob(&self, c: char) -> Blob {
            let digest = c.to_string().repeat(64);
            std::fs::write(self.dir.path().join("blobs").join(&digest), "x").unwrap();
            Blob { digest, size: 1 }
        }

        fn there(&self, c: char) -> bool {
            self.blobs.stat(&c.to_string().repeat(64)).unwrap().0
        }

        fn result(&self, kind: &str) -> Command {
            Command::Result {
                job: self.job.clone(),
                phase: PhaseId::new("main", kind),
                generation: 1,
                result: serde_json::json!({}),
                node: self.node.clone(),
                incarnation: "a".into(),
            }
        }

        fn artifact(&self, kind: &str, name: &str, blob: Blob) -> Command {
            Command::Artifact {
                job: self.job.clone(),
                phase: PhaseId::new("main", kind),
                generation: 1,
                name: name.into(),
                blob,
                node: self.node.clone(),
            }
        }
    }

    #[test]
    fn blobs_go_with_the_end_of_their_phase_and_when_a_newer_file_takes_their_place() {
        let (desk, mut writer) = Desk::open();
        let (job, node) = (&desk.job, &desk.node);
        let model = |c: char| desk.artifact("train", Artifact::MODEL, desk.blob(c));
        let (phase, saved) = (PhaseId::new("main", "train"), desk.blob('a'));
        let checkpoint =
            Command::Checkpoint { job: job.clone(), phase, generation: 1, step: 5, blob: saved, node: node.clone() };
        for command in [submit(1, "k", false), join(node), desk.result("probe"), checkpoint, model('b')] {
            writer.decide(command).unwrap();
            writer.settle();
        }
        assert!(desk.there('a') && desk.there('b'));
        writer.decide(model('c')).unwrap();
        assert!(desk.there('c') && !desk.there('b'));
        writer.decide(desk.result("train")).unwrap();
        assert!(desk.there('c') && !desk.there('a'));
        desk.blob('d');
        writer.sweep();
        assert!(desk.there('c') && desk.there('d'), "what has just arrived is referred to later");
    }

    #[test]
    fn what_a_unit_has_left_goes_when_it_is_done_anew_and_when_its_training_is_done() {
        let (desk, mut writer) = Desk::open();
        let (job, node) = (&desk.job, &desk.node);
        for command in [submit(1, "k", false), join(node)] {
            writer.decide(command).unwrap();
            writer.settle();
        }
        writer.decide(desk.result("probe")).unwrap();
        let (phase, build, device) = (PhaseId::new("main", "train"), "b".to_owned(), "cpu".to_owned());
        let (job_id, numbers) = (job.clone(), String::new());
        writer.commit(&[Event::TeachingSplit { job: job_id, phase, units: 2, build, device, numbers, at: 1 }]).unwrap();
        writer.settle();
        for (unit, c) in [("teach-1", 'a'), ("teach-1", 'b'), ("teach-2", 'c')] {
            writer.decide(desk.artifact(unit, "features", desk.blob(c))).unwrap();
            if c != 'a' {
                writer.decide(desk.result(unit)).unwrap();
                writer.settle();
            }
        }
        assert_eq!(['a', 'b', 'c'].map(|c| desk.there(c)), [false, true, true], "the newest of each");
        writer.decide(desk.artifact("train", Artifact::MODEL, desk.blob('d'))).unwrap();
        writer.decide(desk.result("train")).unwrap();
        assert_eq!(['b', 'c', 'd'].map(|c| desk.there(c)), [false, false, true]);
        let history = writer.look(|s| s.jobs[job].phases[1].history.clone());
        assert!(history.iter().any(|(_, line)| line == "2 units of what teachers say: 2 done on `n`"), "{history:?}");
    }
}
