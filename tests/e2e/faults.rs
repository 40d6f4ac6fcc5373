//! What breaks, and what must happen: the model and the series of an undisturbed run, bit for bit.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tl_proto::{failure::FailureClass, v1};
use tl_tests::{
    Sandbox, Series, alone, eventually,
    jobs::{self, STEPS},
    processes,
};
use tokio::sync::OnceCell;

use crate::PROGRAM;

/// What an undisturbed run of one rank comes to.
pub async fn undisturbed() -> &'static (Series, String) {
    static FOUND: OnceCell<(Series, String)> = OnceCell::const_new();
    FOUND
        .get_or_init(async || {
            let sandbox = Sandbox::start(PROGRAM, 1).await;
            let job = sandbox.submit(&jobs::thorny("1")).await;
            let (ended, series, model) = sandbox.ends(&job).await;
            assert_eq!(ended.status, "succeeded", "{ended:#?}");
            assert_eq!(series.keys().map(|(step, _)| *step).max(), Some(STEPS));
            (series, model.expect("a model"))
        })
        .await
}

/// The job has ended as if nothing had happened.
pub async fn same(sandbox: &Sandbox, job: &tl_client::Job) -> v1::Job {
    let (ended, series, model) = sandbox.ends(job).await;
    assert_eq!(ended.status, "succeeded", "{ended:#?}");
    let (want, digest) = undisturbed().await;
    let odd = want.iter().find(|(k, v)| series.get(*k) != Some(v));
    assert_eq!(odd, None, "the series differs; got {:?}", odd.map(|(k, _)| series.get(k)));
    assert_eq!(series.len(), want.len());
    assert_eq!(model.as_ref(), Some(digest), "the model differs");
    ended
}

pub fn history(job: &v1::Job) -> String {
    job.phases.iter().flat_map(|p| &p.history).map(|h| format!("{h}\n")).collect()
}

fn kill_9(process: i32) {
    // It may have ended by itself in this moment.
    let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
}

/// A draw from 0 to `below`, different for every `n`, the same in every run.
fn draw(n: u64, below: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 29)) % below
}

#[tokio::test(flavor = "current_thread")]
async fn more_threads_and_unequal_ranks_give_the_same_file() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 1).await;
    let mut spec = jobs::thorny("1");
    spec.cluster.threads = 2;
    let job = sandbox.submit(&spec).await;
    same(&sandbox, &job).await;
    // A node that says it can do three times as much gets more grains, and nothing else changes.
    sandbox.add_worker(&["--threads", "3"]);
    sandbox.ready(2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    same(&sandbox, &job).await;
}

#[tokio::test(flavor = "current_thread")]
async fn ranks_are_killed_at_any_point_and_the_model_is_the_same() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    for n in 0..4 {
        sandbox.passes(&job, STEPS / 5 * (n + 1) - draw(n, 12)).await;
        let victim = draw(n + 100, 2) as usize;
        let ranks = eventually("a rank to kill", async || Some(sandbox.ranks(victim)).filter(|r| !r.is_empty())).await;
        kill_9(ranks[0]);
    }
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("was killed"), "{}", history(&ended));
    assert!(ended.phases[1].generation >= 3, "{ended:#?}");
    sandbox.workers.clear();
}

#[tokio::test(flavor = "current_thread")]
async fn a_worker_dies_with_its_folder_and_another_takes_over() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 3).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&job, 40).await;
    let busy = (0..3).find(|n| !sandbox.ranks(*n).is_empty()).expect("a busy worker");
    sandbox.kill_worker(busy);
    std::fs::remove_dir_all(&sandbox.workers[busy].data).expect("its folder goes");
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("was lost"), "{}", history(&ended));
}

#[tokio::test(flavor = "current_thread")]
async fn the_ranks_of_a_killed_agent_die_with_it() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&job, 30).await;
    let ranks = sandbox.ranks(0);
    assert_eq!(ranks.len(), 1);
    // Also one that is stopped and could not notice by itself.
    kill(Pid::from_raw(ranks[0]), Signal::SIGSTOP).expect("a signal");
    sandbox.kill_worker(0);
    eventually("the end of its rank", async || (!processes().iter().any(|(id, _, _)| *id == ranks[0])).then_some(()))
        .await;
    sandbox.restart_worker(0);
    same(&sandbox, &job).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_gang_shrinks_to_what_is_left_and_grows_again() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("\"1..2\"")).await;
    sandbox.passes(&job, 25).await;
    let ranks = async |job: &tl_client::Job| job.get().await.map(|j| j.phases[1].ranks.len()).unwrap_or_default();
    assert_eq!(ranks(&job).await, 2);
    let before = sandbox.ranks(0)[0];
    sandbox.kill_worker(1);
    // What is left is held still until it has been told to make room: however fast it is, it is not done before.
    let left = eventually("one rank", async || sandbox.ranks(0).first().copied().filter(|left| *left != before)).await;
    kill(Pid::from_raw(left), Signal::SIGSTOP).expect("a signal");
    sandbox.restart_worker(1);
    eventually("the order to stop", async || sandbox.logs().contains(r#""event":"attempt_stopping""#).then_some(()))
        .await;
    kill(Pid::from_raw(left), Signal::SIGCONT).expect("a signal");
    eventually("two ranks again", async || (ranks(&job).await == 2).then_some(())).await;
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("placed anew: 1 more slot is free"), "{}", history(&ended));
}

#[tokio::test(flavor = "current_thread")]
async fn training_goes_on_while_the_coordinator_is_killed_and_restarted_twice() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&job, 20).await;
    let before: Vec<Vec<i32>> = (0..2).map(|n| sandbox.ranks(n)).collect();
    sandbox.kill_coordinator();
    let alive = |sandbox: &Sandbox| (0..2).map(|n| sandbox.ranks(n)).collect::<Vec<_>>();
    assert_eq!(alive(&sandbox), before);
    sandbox.start_coordinator();
    sandbox.passes(&job, 70).await;
    assert_eq!(alive(&sandbox), before, "the same processes train");
    sandbox.kill_coordinator();
    // Training ends while nobody is there: the change of phase is told when somebody is.
    eventually("the end of the ranks", async || alive(&sandbox).iter().all(Vec::is_empty).then_some(())).await;
    sandbox.start_coordinator();
    let ended = same(&sandbox, &job).await;
    assert_eq!(ended.phases[1].generation, 1, "{ended:#?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_silent_rank_is_given_up_within_the_deadline() {
    let _alone = alone().await;
    undisturbed().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let job = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&job, 30).await;
    let ranks = sandbox.ranks(1);
    kill(Pid::from_raw(ranks[0]), Signal::SIGSTOP).expect("a signal");
    let stopped = std::time::Instant::now();
    eventually("a new attempt", async || job.get().await.ok().filter(|j| j.phases[1].generation == 2)).await;
    let took = stopped.elapsed();
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains(&format!("({})", FailureClass::LostPeer)), "{}", history(&ended));
}

#[tokio::test(flavor = "current_thread")]
async fn a_truncated_checkpoint_is_passed_over_and_named() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 1).await;
    let mut spec = jobs::thorny("1");
    spec.checkpoint.keep = 4;
    let job = sandbox.submit(&spec).await;
    sandbox.passes(&job, 50).await;
    sandbox.kill_worker(0);
    std::fs::remove_dir_all(&sandbox.workers[0].data).expect("its folder goes");
    // The newest two of the blobs, which are checkpoints, for nothing else is there yet: the very newest may have arrived
    // without the worker having lived to say so.
    let files = std::fs::read_dir(sandbox.blobs()).expect("blobs").flatten().filter(|e| e.path().is_file());
    let mut files: Vec<_> = files.map(|e| (e.metadata().and_then(|m| m.modified()).ok(), e.path())).collect();
    files.sort();
    for (_, newest) in files.iter().rev().take(2) {
        let half = std::fs::metadata(newest).expect("a file").len() / 2;
        std::fs::OpenOptions::new().write(true).open(newest).and_then(|f| f.set_len(half)).expect("a cut");
    }
    sandbox.restart_worker(0);
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("is not whole; the one before it is used"), "{}", history(&ended));
    assert!(history(&ended).contains("training goes on from step"), "{}", history(&ended));
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_disk_is_told_and_training_goes_on_until_too_many_checkpoints_failed() {
    let _alone = alone().await;
    undisturbed().await;
    // No file larger than 640 KiB (in units of 512 bytes): the model fits, a checkpoint with its moments does not.
    let full = "trap '' XFSZ; ulimit -f 1280";
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    sandbox.add_limited_worker(full);
    sandbox.ready(1).await;
    let mut spec = jobs::thorny("1");
    spec.checkpoint.tolerate = 1_000;
    let job = sandbox.submit(&spec).await;
    let (ended, series, model) = sandbox.ends(&job).await;
    assert_eq!(ended.status, "succeeded", "{ended:#?}");
    assert_eq!((series, model), (undisturbed().await.0.clone(), Some(undisturbed().await.1.clone())));
    assert!(history(&ended).contains("training goes on (1 in a row)"), "{}", history(&ended));
    spec.checkpoint.tolerate = 2;
    let job = sandbox.submit(&spec).await;
    let (ended, _, _) = sandbox.ends(&job).await;
    let failure = ended.failure.expect("a failure");
    assert_eq!((ended.status.as_str(), failure.class.as_str()), ("failed", "disk"));
    assert!(failure.message.contains("File too large"), "{failure:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_cancelled_job_leaves_no_rank_and_a_drained_node_hands_its_ranks_over() {
    let _alone = alone().await;
    undisturbed().await;
    let mut sandbox = Sandbox::start(PROGRAM, 2).await;
    let cancelled = sandbox.submit(&jobs::thorny("2")).await;
    sandbox.passes(&cancelled, 10).await;
    cancelled.cancel().await.expect("it is cancelled");
    eventually("no rank", async || (0..2).all(|n| sandbox.ranks(n).is_empty()).then_some(())).await;
    assert_eq!(cancelled.get().await.expect("a job").status, "cancelled");

    let job = sandbox.submit(&jobs::thorny("1")).await;
    sandbox.passes(&job, 30).await;
    let busy = (0..2).find(|n| !sandbox.ranks(*n).is_empty()).expect("a busy worker");
    sandbox.signal_worker(busy, Signal::SIGTERM);
    assert!(sandbox.worker_ends(busy).await.success(), "{}", sandbox.logs());
    let ended = same(&sandbox, &job).await;
    assert!(history(&ended).contains("is being drained"), "{}", history(&ended));
    assert!(ended.phases[1].generation == 2, "{ended:#?}");
}
