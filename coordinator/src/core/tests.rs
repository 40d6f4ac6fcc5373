//! Scenarios, and properties of random histories.

mod devices;
mod keeping;
mod kinds;
mod models;
mod pipelines;
mod placing;
mod reporting;
mod teaching;
mod waiting;

use proptest::prelude::*;
use tl_proto::{
    catalog::Catalog,
    deadlines::Deadlines,
    failure::{Failure, FailureClass},
    ids::{JobId, NodeId, PhaseId},
    spec::JobSpec,
};

use super::*;

const DEADLINES: fn() -> Deadlines = Deadlines::default;

struct World {
    state: State,
    now: u64,
    log: Vec<Event>,
}

fn spec(ranks: &str, priority: i32) -> JobSpec {
    let text = format!(
        r#"
schema = 1
job = {{ name = "t", kind = "finetune", priority = {priority} }}
cluster = {{ ranks = {ranks} }}
data = {{ format = "generated", train = "source", val = "source", batch = 32 }}
model = {{ backbone = "small_cnn" }}
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.1
"#
    );
    JobSpec::from_toml(&text, &[]).unwrap()
}

fn job(n: u128) -> JobId {
    JobId::from_bits(n)
}

fn node(n: u128) -> NodeId {
    NodeId::from_bits(n)
}

fn blob() -> Blob {
    Blob { digest: "d".into(), size: 1 }
}

impl World {
    fn new() -> Self {
        Self { state: State::default(), now: 1_000, log: Vec::new() }
    }

    fn apply(&mut self, events: Vec<Event>) {
        for event in events {
            apply(&mut self.state, &event);
            invariants::check(&self.state).unwrap_or_else(|e| panic!("{e} after {event:?}"));
            self.log.push(event);
        }
    }

    fn command(&mut self, command: Command) -> Result<(), Refusal> {
        let events = decide(&self.state, command, self.now)?;
        self.apply(events);
        Ok(())
    }

    fn plan(&mut self) {
        for _ in 0..20 {
            let deadlines = DEADLINES();
            let events = plan(&self.state, &Context { now: self.now, deadlines: &deadlines, entropy: 1 });
            if events.is_empty() {
                return;
            }
            self.apply(events);
        }
        panic!("planning does not come to rest");
    }

    fn after(&mut self, ms: u64) {
        self.now += ms;
        self.state.nodes.values_mut().filter(|n| n.status == NodeStatus::Ready).for_each(|n| n.seen_ms = self.now);
        self.plan();
    }

    fn join(&mut self, n: u128, incarnation: &str, slots: u32) -> Result<(), Refusal> {
        self.join_build(n, incarnation, slots, "b")
    }

    fn join_build(&mut self, n: u128, incarnation: &str, slots: u32, build: &str) -> Result<(), Refusal> {
        self.join_at(n, incarnation, slots, build, &format!("n{n}"))
    }

    fn join_at(&mut self, n: u128, incarnation: &str, slots: u32, build: &str, host: &str) -> Result<(), Refusal> {
        let slot = |index| Slot { index, device: "cpu".into(), address: format!("{host}:{index}"), weight: 1 };
        let slots = (0..slots).map(slot).collect();
        let (name, incarnation) = (format!("n{n}"), incarnation.to_owned());
        let (catalog, hardware, build) = (Box::default(), Box::default(), build.to_owned());
        self.command(Command::Join { node: node(n), name, incarnation, build, slots, catalog, hardware })?;
        self.state.catalog = None;
        let now = self.now;
        self.state.nodes.get_mut(&node(n)).unwrap().seen_ms = now;
        self.plan();
        Ok(())
    }

    fn submit(&mut self, n: u128, ranks: &str, priority: i32) {
        self.submit_spec(n, spec(ranks, priority));
    }

    fn submit_spec(&mut self, n: u128, spec: JobSpec) {
        let spec = Box::new(spec);
        self.command(Command::Submit { job: job(n), key: n.to_string(), owner: "o".into(), spec, plan_only: false })
            .unwrap();
        self.plan();
    }

    fn phase(&self, n: u128, kind: &str) -> &Phase {
        self.state.jobs[&job(n)].phase(&PhaseId::new("main", kind)).unwrap()
    }

    /// The agent that has a rank; one that nobody knows if the phase does not run.
    fn agent(&self, n: u128, kind: &str, rank: u32) -> (NodeId, String) {
        let placements = self.phase(n, kind).attempt.iter().flat_map(|a| &a.placements);
        let placed = placements.map(|p| (p.node.clone(), p.incarnation.clone())).nth(rank as usize);
        placed.unwrap_or_else(|| (node(99), "a".into()))
    }

    fn result(&self, n: u128, kind: &str) -> Command {
        let (node, incarnation) = self.agent(n, kind, 0);
        let (phase, generation) = (PhaseId::new("main", kind), self.phase(n, kind).generation);
        Command::Result { job: job(n), phase, generation, result: serde_json::Value::Null, node, incarnation }
    }

    fn artifact(&self, n: u128, name: &str) -> Command {
        let (node, _) = self.agent(n, "train", 0);
        let (phase, generation) = (PhaseId::new("main", "train"), self.phase(n, "train").generation);
        Command::Artifact { job: job(n), phase, generation, name: name.into(), blob: blob(), node }
    }

    fn checkpoint(&self, n: u128, step: u64) -> Command {
        let (node, _) = self.agent(n, "train", 0);
        let (phase, generation) = (PhaseId::new("main", "train"), self.phase(n, "train").generation);
        Command::Checkpoint { job: job(n), phase, generation, step, blob: blob(), node }
    }

    fn succeed(&mut self, n: u128, kind: &str) {
        if kind == "train" {
            self.command(self.artifact(n, Artifact::MODEL)).unwrap();
        }
        self.command(self.result(n, kind)).unwrap();
        self.plan();
    }

    fn exited(&self, n: u128, rank: u32, class: FailureClass) -> Command {
        let (node, incarnation) = self.agent(n, "train", rank);
        let (phase, generation) = (PhaseId::new("main", "train"), self.phase(n, "train").generation);
        let failure = Some(Failure::new(class, "x", ""));
        Command::Exited { job: job(n), phase, generation, rank, failure, node, incarnation }
    }

    fn exit(&mut self, n: u128, rank: u32, class: FailureClass) -> Result<(), Refusal> {
        self.command(self.exited(n, rank, class))
    }

    fn why(&self, n: u128) -> &'static str {
        why(&self.state, &job(n), self.now).unwrap().code()
    }

    fn ranks(&self, n: u128) -> usize {
        self.phase(n, "train").attempt.as_ref().map_or(0, |a| a.placements.len())
    }
}

#[test]
fn a_job_is_probed_trained_and_done() {
    let mut w = World::new();
    w.submit(1, "2", 0);
    assert_eq!(w.why(1), "no_nodes");
    w.join(1, "a", 2).unwrap();
    assert_eq!((w.why(1), w.ranks(1)), ("running", 0));
    w.succeed(1, "probe");
    assert_eq!(w.ranks(1), 2);
    w.succeed(1, "train");
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded);
}

#[test]
fn a_gang_waits_when_one_slot_is_missing_and_says_so() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "2", 0);
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("too_few_slots", 0));
    w.join(2, "a", 1).unwrap();
    assert_eq!(w.ranks(1), 2);
}

#[test]
fn a_gang_is_one_build_of_the_worker() {
    let mut w = World::new();
    w.join_build(1, "a", 1, "old").unwrap();
    w.join_build(2, "a", 1, "new").unwrap();
    w.submit(1, "2", 0);
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("mixed_builds", 0));
    w.join_build(3, "a", 1, "new").unwrap();
    assert_eq!(w.ranks(1), 2);
    let phases = &w.state.jobs[&job(1)].phases;
    let placed: Vec<_> = phases[1].attempt.as_ref().unwrap().placements.iter().map(|p| p.node.clone()).collect();
    assert_eq!(placed, [node(2), node(3)]);
}

#[test]
fn the_name_of_a_step_is_checked_before_any_node_is_known() {
    let mut w = World::new();
    let inner = spec("1", 0);
    let mut outer = inner.clone();
    outer.job.kind = "pipeline".into();
    let text = r#"{"id": "../../up", "spec": null}"#;
    outer.step = vec![serde_json::from_str(text).unwrap()];
    let spec = Box::new(outer);
    let submit = Command::Submit { job: job(1), key: "k".into(), owner: "o".into(), spec, plan_only: false };
    assert!(matches!(w.command(submit), Err(Refusal::Invalid { message, .. }) if message.contains("../../up")));
}

#[test]
fn a_pipeline_that_could_never_end_is_refused_before_any_node_is_known() {
    let step = |id: &str, needs: &[&str]| {
        let step = serde_json::json!({ "id": id, "needs": needs, "spec": spec("1", 0) });
        serde_json::from_value(step).unwrap()
    };
    for (steps, part) in [
        (vec![step("a", &[]), step("a", &[])], "two steps are called `a`"),
        (vec![step("a", &["b"]), step("b", &[])], "no earlier step"),
        (Vec::new(), "at least one"),
    ] {
        let mut w = World::new();
        let mut outer = spec("1", 0);
        (outer.job.kind, outer.step) = (JobSpec::PIPELINE.into(), steps);
        let spec = Box::new(outer);
        let submit = Command::Submit { job: job(1), key: "k".into(), owner: "o".into(), spec, plan_only: false };
        let refused = w.command(submit);
        assert!(matches!(&refused, Err(Refusal::Invalid { message, .. }) if message.contains(part)), "{refused:?}");
    }
}

#[test]
fn the_urgent_job_goes_first_and_nobody_overtakes_a_gang_for_ever() {
    let mut w = World::new();
    w.join(1, "a", 2).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.submit(2, "2", 5);
    w.succeed(2, "probe");
    w.submit(3, "1", 0);
    assert_eq!((w.why(2), w.why(3)), ("slots_busy", "behind"));
    w.succeed(1, "train");
    assert_eq!(w.ranks(2), 2);
    assert_eq!(w.why(3), "slots_busy");
}

#[test]
fn a_lost_rank_is_replaced_at_once_and_a_telling_failure_beats_a_lost_peer() {
    let mut w = World::new();
    w.join(1, "a", 2).unwrap();
    w.submit(1, "2", 0);
    w.succeed(1, "probe");
    w.exit(1, 0, FailureClass::LostPeer).unwrap();
    w.plan();
    assert_eq!(w.phase(1, "train").generation, 1, "it waits for a better reason");
    w.after(500);
    assert_eq!((w.phase(1, "train").generation, w.ranks(1)), (2, 2));
    w.exit(1, 0, FailureClass::LostPeer).unwrap();
    w.exit(1, 1, FailureClass::Nan).unwrap();
    w.plan();
    assert_eq!(w.state.jobs[&job(1)].failure.as_ref().unwrap().class, FailureClass::Nan);
}

#[test]
fn a_crash_is_retried_with_a_pause_and_not_for_ever() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.exit(1, 0, FailureClass::Crash).unwrap();
    w.plan();
    assert_eq!((w.why(1), w.ranks(1)), ("backoff", 0));
    for _ in 0..3 {
        w.after(60_000);
        w.exit(1, 0, FailureClass::Crash).unwrap();
        w.plan();
    }
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Failed);
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!((w.phase(1, "probe").status, w.ranks(1)), (PhaseStatus::Succeeded, 1), "goes on where it failed");
}

#[test]
fn a_silent_node_is_lost_after_its_lease_and_its_job_moves() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "\"1..2\"", 0);
    w.succeed(1, "probe");
    w.join(2, "a", 1).unwrap();
    w.command(Command::Disconnect { node: node(1), incarnation: "a".into() }).unwrap();
    w.after(4_000);
    assert_eq!(w.phase(1, "train").generation, 1, "a connection that ends is no loss");
    w.after(2_000);
    assert_eq!(
        (w.phase(1, "train").generation, &w.phase(1, "train").attempt.as_ref().unwrap().placements[0].node),
        (2, &node(2))
    );
}

#[test]
fn an_agent_that_starts_again_has_lost_its_ranks() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    assert!(matches!(w.join(1, "b", 1), Err(Refusal::AlreadyExists(_))), "live twice");
    w.command(Command::Disconnect { node: node(1), incarnation: "a".into() }).unwrap();
    w.join(1, "b", 1).unwrap();
    assert_eq!(w.phase(1, "train").generation, 2);
}

#[test]
fn a_job_grows_after_a_while_onto_a_node_that_joins() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "\"1..2\"", 0);
    w.succeed(1, "probe");
    w.join(2, "a", 1).unwrap();
    w.after(4_000);
    assert!(w.phase(1, "train").attempt.as_ref().unwrap().stopping.is_none(), "not before the cool-down");
    w.after(2_000);
    assert!(w.phase(1, "train").attempt.as_ref().unwrap().stopping.is_some());
    w.exit(1, 0, FailureClass::Stopped).unwrap();
    w.plan();
    assert_eq!((w.phase(1, "train").generation, w.ranks(1)), (2, 2));
    assert!(w.phase(1, "train").failures.is_empty());
}

#[test]
fn a_drained_node_is_emptied_and_not_used() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.command(Command::Drain { node: node(1), undo: false }).unwrap();
    w.plan();
    w.exit(1, 0, FailureClass::Stopped).unwrap();
    w.plan();
    assert_eq!((w.ranks(1), w.why(1)), (0, "too_few_slots"));
    w.command(Command::Drain { node: node(1), undo: true }).unwrap();
    w.plan();
    assert_eq!(w.ranks(1), 1);
}

#[test]
fn what_an_old_attempt_says_has_no_effect() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.exit(1, 0, FailureClass::LostNode).unwrap();
    w.plan();
    let phase = PhaseId::new("main", "train");
    let old = Command::Checkpoint { job: job(1), phase, generation: 1, step: 5, blob: blob(), node: node(1) };
    assert_eq!(w.command(old), Err(Refusal::Stale));
    for (step, newest) in [(5, 5), (3, 5), (9, 9)] {
        w.command(w.checkpoint(1, step)).unwrap();
        assert_eq!(w.phase(1, "train").checkpoints[0].0, newest);
    }
}

#[test]
fn the_same_key_is_the_same_job() {
    let mut w = World::new();
    w.submit(1, "1", 0);
    w.submit(1, "1", 0);
    assert_eq!(w.state.jobs.len(), 1);
    let other = Command::Submit {
        job: job(2),
        key: "1".into(),
        owner: "o".into(),
        spec: Box::new(spec("2", 0)),
        plan_only: false,
    };
    assert!(matches!(w.command(other), Err(Refusal::AlreadyExists(_))));
}

#[test]
fn a_job_that_no_worker_can_do_is_refused_at_the_door() {
    let mut w = World::new();
    w.state.catalog = Some(Catalog::default());
    let submit = Command::Submit {
        job: job(1),
        key: "k".into(),
        owner: "o".into(),
        spec: Box::new(spec("1", 0)),
        plan_only: false,
    };
    assert!(matches!(w.command(submit), Err(Refusal::Invalid { message, .. }) if message.contains("no job kind")));
    assert!(w.log.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_history_breaks_an_invariant_and_the_log_rebuilds_the_state(steps in prop::collection::vec((0u8..12, 0u128..3, 0u32..3), 1..60)) {
        let mut w = World::new();
        for (what, n, small) in steps {
            let rank = small;
            let _ = match what {
                0 if w.state.jobs.contains_key(&job(n)) => w.command(Command::Remove { job: job(n) }),
                0 => {
                    w.submit(n, ["1", "2", "\"1..3\""][small as usize], small as i32);
                    Ok(())
                }
                1 => w.join(n, &small.to_string(), 1 + small),
                2 => w.command(Command::Disconnect { node: node(n), incarnation: small.to_string() }),
                3 => w.command(Command::Cancel { job: job(n) }),
                4 => w.command(Command::Retry { job: job(n) }),
                5 if w.state.jobs.contains_key(&job(n)) => w.exit(n, rank, FailureClass::ALL[(rank as usize * 3 + n as usize) % 8]),
                6 if w.state.jobs.contains_key(&job(n)) => w.command(w.result(n, if small == 0 { "probe" } else { "train" })),
                8 if w.state.jobs.contains_key(&job(n)) => w.command(w.checkpoint(n, u64::from(small))),
                9 if w.state.jobs.contains_key(&job(n)) => w.command(w.artifact(n, ["x", Artifact::MODEL][small as usize % 2])),
                7 => w.command(Command::Drain { node: node(n), undo: small == 0 }),
                10 => {
                    let (incarnation, problem) = (small.to_string(), ["", "x"][small as usize % 2].into());
                    w.command(Command::Judge { node: node(n), incarnation, slot: rank, problem })
                }
                _ => { w.after(u64::from(small) * 3_000); Ok(()) }
            };
            w.plan();
        }
        let mut again = State::default();
        w.log.iter().for_each(|e| apply(&mut again, e));
        prop_assert_eq!(again.jobs, w.state.jobs);
        prop_assert_eq!(again.keys, w.state.keys);
    }
}
