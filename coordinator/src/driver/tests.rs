//! The writer, its log and the blobs beside it.

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

#[test]
fn a_log_that_refuses_is_a_trouble_and_nothing_is_lost_when_it_takes_events_again() {
    let (desk, mut writer) = Desk::open();
    writer.decide(submit(1, "k", false)).unwrap();
    let trouble = |writer: &Writer| writer.shared.pulse.trouble(Instant::now());
    assert_eq!(trouble(&writer), None);
    let log = rusqlite::Connection::open(desk.dir.path().join("lifecycle.db")).unwrap();
    log.execute_batch("ALTER TABLE event RENAME TO away").unwrap();
    assert!(matches!(writer.decide(submit(2, "l", false)), Err(Rejection::Store(_))));
    writer.settle();
    assert!(trouble(&writer).is_some_and(|why| why.starts_with("the state cannot be written: ")));
    assert_eq!(writer.look(|s| s.jobs.len()), 1, "what is not on the disk does not count");
    log.execute_batch("ALTER TABLE away RENAME TO event").unwrap();
    writer.decide(submit(2, "l", false)).unwrap();
    assert_eq!((trouble(&writer), writer.look(|s| s.jobs.len())), (None, 2));
}
