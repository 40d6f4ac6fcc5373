//! Kills aimed at the moments that matter: inside an all-reduce, while a checkpoint is written, during an evaluation, at
//! the boundary of two stages. And a peer whose packets vanish.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tl_proto::failure::FailureClass;
use tl_tests::{Sandbox, alone, eventually, jobs};

use crate::{
    PROGRAM,
    faults::{history, same, undisturbed},
};

/// Steps of an epoch of the job, and of its first stage.
const EPOCH: u64 = 8;
const FIRST_STAGE: u64 = 16 * EPOCH;

fn signal(process: i32, signal: Signal) {
    // It may have ended by itself in this moment.
    let _ = kill(Pid::from_raw(process), signal);
}

/// Folders of the training ranks that a worker has at this moment.
fn folders(data: &Path) -> Vec<PathBuf> {
    let below = |p: PathBuf| std::fs::read_dir(p).into_iter().flatten().flatten().map(|e| e.path());
    let phases = below(data.join("work")).flat_map(below).filter(|p| p.ends_with("main.train"));
    phases.flat_map(below).flat_map(below).collect()
}

/// The last step that the first rank has written down, on whichever worker it is, and that worker.
fn written(sandbox: &Sandbox) -> Option<(u64, usize)> {
    let last = |folder: &PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(folder.join("rows.jsonl")).ok()?;
        let line = text.lines().rfind(|l| l.contains("train.loss"))?;
        serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64()
    };
    let each = sandbox.workers.iter().enumerate();
    each.filter_map(|(n, w)| Some((folders(&w.data).iter().filter_map(last).max()?, n))).max()
}

/// Looks as often as it can until `seen`; these moments last for milliseconds.
fn spin<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = seen() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// The one rank of a worker.
async fn rank(sandbox: &Sandbox, worker: usize) -> i32 {
    eventually("a rank", async || sandbox.ranks(worker).first().copied()).await
}

#[tokio::test(flavor = "current_thread")]
async fn a_rank_that_dies_inside_an_all_reduce_costs_nothing() {
    let _alone = alone().await;
    undisturbed().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&job, 20).await;
    let (stopped, waiting) = (rank(&sandbox, 0).await, rank(&sandbox, 1).await);
    signal(stopped, Signal::SIGSTOP);
    // With its peer stopped the other one comes to the reduction and stays in it: it uses no time any more.
    let used = || -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{waiting}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
    };
    let mut before = (Instant::now(), used());
    spin("a rank that waits", || {
        if used() != before.1 {
            before = (Instant::now(), used());
        }
        (before.0.elapsed() > Duration::from_millis(150)).then_some(())
    });
    signal(waiting, Signal::SIGKILL);
    signal(stopped, Signal::SIGCONT);
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("was killed"), "{}", history(&ended));
}

/// Files of a rank that are being written.
fn asides(folder: &PathBuf) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().contains(".aside-")).count()
}

#[tokio::test(flavor = "current_thread")]
async fn a_rank_that_dies_while_it_writes_a_checkpoint_leaves_the_one_before() {
    let _alone = alone().await;
    undisturbed().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    let mut inside = 0;
    for passed in [15, 35, 55, 75, 95] {
        sandbox.passes(&job, passed).await;
        let ranks = [rank(&sandbox, 0).await, rank(&sandbox, 1).await];
        // A checkpoint is written aside before it gets its name.
        let (victim, folder) = spin("a checkpoint being written", || {
            let found = |(n, w): (usize, &tl_tests::Worker)| {
                Some((n, folders(&w.data).into_iter().find(|folder| asides(folder) > 0)?))
            };
            sandbox.workers.iter().enumerate().find_map(found)
        });
        signal(ranks[victim], Signal::SIGKILL);
        inside += usize::from(asides(&folder) > 0);
        if inside >= 2 {
            break;
        }
    }
    assert!(inside > 0, "no kill came in time");
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("training goes on from step"), "{}", history(&ended));
}

#[tokio::test(flavor = "current_thread")]
async fn ranks_that_die_in_an_evaluation_or_between_two_stages_cost_nothing() {
    let _alone = alone().await;
    undisturbed().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    // After the last step of an epoch comes its evaluation; after the first stage a checkpoint, and the next one.
    let mut inside = 0;
    for moment in [2 * EPOCH, 4 * EPOCH, FIRST_STAGE, FIRST_STAGE + 2 * EPOCH] {
        // Looked up where it is written: over the coordinator the news would come some steps late.
        spin("an epoch before", || written(&sandbox).filter(|(step, _)| *step + EPOCH >= moment));
        let ranks = [rank(&sandbox, 0).await, rank(&sandbox, 1).await];
        let writer = spin("the step", || written(&sandbox).filter(|(step, _)| *step >= moment).map(|(_, n)| n));
        let victim = if moment == FIRST_STAGE { writer } else { 1 - writer };
        signal(ranks[victim], Signal::SIGKILL);
        // The one that writes has not heard what the other one has found.
        let evaluated = format!("\"step\":{moment},");
        let rows =
            folders(&sandbox.workers[writer].data).into_iter().map(|f| std::fs::read_to_string(f.join("rows.jsonl")));
        let told = rows.flatten().any(|t| t.lines().any(|l| l.contains(&evaluated) && l.contains("val.loss")));
        inside += usize::from(!told);
    }
    assert!(inside > 0, "no kill came in time");
    let ended = same(&sandbox, &job).await;
    assert!(ended.phases[1].generation >= 3, "{ended:#?}");
}

/// A network of its own for a worker, joined to this machine's by a wire; gone when this is dropped.
struct Wire {
    name: String,
}

impl Wire {
    /// `None`, said aloud, where the system does not allow it.
    fn lay() -> Option<Self> {
        let name = format!("tl{}", std::process::id() % 100_000);
        let wire = Self { name };
        let (n, ours, theirs) = (&wire.name, format!("{}h", wire.name), format!("{}w", wire.name));
        let commands = [
            format!("netns add {n}"),
            format!("link add {ours} type veth peer name {theirs}"),
            format!("link set {theirs} netns {n}"),
            format!("addr add 10.213.7.1/24 dev {ours}"),
            format!("link set {ours} up"),
            format!("-n {n} addr add 10.213.7.2/24 dev {theirs}"),
            format!("-n {n} link set {theirs} up"),
            format!("-n {n} link set lo up"),
        ];
        if commands.iter().all(|c| ip(c)) {
            return Some(wire);
        }
        eprintln!("skipped: this system lets nobody make a network namespace; run as root, with iproute2");
        None
    }

    /// From now on every packet is lost, without a word to either side.
    fn cut(&self) {
        assert!(ip(&format!("link set {}h down", self.name)), "the wire is cut");
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The other end goes with it.
        ip(&format!("link del {}h", self.name));
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    output.is_ok_and(|o| o.status.success())
}

#[tokio::test(flavor = "current_thread")]
async fn a_peer_whose_packets_are_dropped_is_given_up_within_the_deadline() {
    let _alone = alone().await;
    let Some(wire) = Wire::lay() else { return };
    undisturbed().await;
    let tokens = ("a-user-token-for-a-test", "a-node-token-for-a-test");
    let mut sandbox = Sandbox::bare_on(PROGRAM, Some(tokens), "10.213.7.1:0").await;
    sandbox.add_worker(&[]);
    let far = sandbox.add_worker_in(&wire.name);
    sandbox.ready(2).await;
    let job = sandbox.submit(&jobs::thorny("\"1..2\"")).await;
    sandbox.passes(&job, 30).await;
    assert_eq!(sandbox.ranks(far).len(), 1, "both train");
    let (cut, generation) = (Instant::now(), job.get().await.unwrap().phases[1].generation);
    wire.cut();
    eventually("a new attempt", async || job.get().await.ok().filter(|j| j.phases[1].generation > generation)).await;
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
    let ended = same(&sandbox, &job).await;
    let told = [FailureClass::LostPeer, FailureClass::LostNode].map(|c| format!("({c})"));
    assert!(told.iter().any(|class| history(&ended).contains(class)), "{}", history(&ended));
}
