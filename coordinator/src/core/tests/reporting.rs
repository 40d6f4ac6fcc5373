//! What agents report: who may, what counts, and what is kept.

use super::*;

/// A job of two ranks that trains on the nodes 1 and 2, and a third node.
fn training() -> World {
    let mut w = World::new();
    w.submit(1, "2", 0);
    (1..=3).for_each(|n| w.join(n, "a", 1).unwrap());
    w.succeed(1, "probe");
    assert_eq!((w.agent(1, "train", 0).0, w.agent(1, "train", 1).0), (node(1), node(2)));
    w
}

#[test]
fn only_the_agent_of_a_rank_tells_its_end() {
    let mut w = training();
    let (phase, generation) = (PhaseId::new("main", "train"), 1);
    for (from, start) in [(2, "a"), (3, "a"), (1, "b")] {
        let (phase, node, incarnation) = (phase.clone(), node(from), start.to_owned());
        let other = Command::Exited { job: job(1), phase, generation, rank: 0, failure: None, node, incarnation };
        assert_eq!(w.command(other), Err(Refusal::Stale), "{from} {start}");
    }
    w.command(w.artifact(1, Artifact::MODEL)).unwrap();
    let (node, incarnation, result) = (node(2), "a".to_owned(), serde_json::Value::Null);
    let result = Command::Result { job: job(1), phase, generation, result, node, incarnation };
    assert_eq!(w.command(result), Err(Refusal::Stale), "the result is rank 0's to tell");
    w.exit(1, 0, FailureClass::Crash).unwrap();
}

#[test]
fn a_node_reports_for_the_newest_attempt_if_it_has_a_part_in_it_also_when_that_is_over() {
    let mut w = training();
    let note = |from| {
        let (phase, node) = (PhaseId::new("main", "train"), node(from));
        Command::Notice { job: job(1), phase, generation: 1, text: "saved".into(), node }
    };
    assert_eq!(w.command(note(3)), Err(Refusal::Stale));
    w.command(note(2)).unwrap();
    w.exit(1, 0, FailureClass::Crash).unwrap();
    w.plan();
    assert!(w.phase(1, "train").attempt.is_none(), "it pauses");
    w.command(note(2)).unwrap();
    assert_eq!(w.command(note(3)), Err(Refusal::Stale));
}

#[test]
fn a_training_whose_model_did_not_arrive_is_done_again() {
    let mut w = training();
    w.command(w.artifact(1, "report.json")).unwrap();
    w.command(w.result(1, "train")).unwrap();
    w.plan();
    let phase = w.phase(1, "train");
    assert_eq!((phase.status, phase.failures[&FailureClass::Disk]), (PhaseStatus::Waiting, 1));
    assert!(phase.last_failure.as_ref().unwrap().message.contains("did not arrive"));
    w.after(60_000);
    assert_eq!(w.phase(1, "train").generation, 2);
    w.succeed(1, "train");
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded);
}

#[test]
fn ranks_that_are_lost_now_and_then_do_not_end_a_job_that_gets_on() {
    let mut w = training();
    let lose = |w: &mut World| {
        w.exit(1, 0, FailureClass::LostNode).unwrap();
        w.plan();
        w.after(60_000);
    };
    for step in 1..=30 {
        lose(&mut w);
        w.command(w.checkpoint(1, step)).unwrap();
    }
    assert_eq!((w.state.jobs[&job(1)].status, w.phase(1, "train").generation), (JobStatus::Active, 31));
    (0..=FailureClass::LostNode.retries()).for_each(|_| lose(&mut w));
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Failed, "without a new checkpoint it is in vain");
}

#[test]
fn a_cancelled_job_takes_the_state_that_its_ranks_save_when_they_are_stopped() {
    let mut w = training();
    let saved = |generation, step, from| {
        let (phase, node) = (PhaseId::new("main", "train"), node(from));
        Command::Checkpoint { job: job(1), phase, generation, step, blob: blob(), node }
    };
    w.command(Command::Cancel { job: job(1) }).unwrap();
    assert_eq!(w.command(saved(1, 7, 3)), Err(Refusal::Stale), "another node");
    assert_eq!(w.command(saved(2, 7, 1)), Err(Refusal::Stale), "another attempt");
    w.command(saved(1, 7, 1)).unwrap();
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Cancelled);
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    let phase = w.phase(1, "train");
    assert_eq!((phase.generation, phase.checkpoints[0].0), (2, 7), "it goes on from there");
    assert_eq!(w.command(saved(1, 9, 1)), Err(Refusal::Stale), "the next attempt has begun");
}

#[test]
fn a_phase_that_is_done_needs_its_checkpoints_no_more() {
    let mut w = training();
    w.command(w.checkpoint(1, 5)).unwrap();
    assert_eq!(w.phase(1, "train").checkpoints.len(), 1);
    w.succeed(1, "train");
    assert!(w.phase(1, "train").checkpoints.is_empty());
    assert_eq!(w.state.jobs[&job(1)].artifacts.len(), 1, "its files stay");
}

#[test]
fn a_long_history_keeps_its_beginning_and_what_is_new() {
    let mut w = training();
    for n in 0..300 {
        let (phase, text) = (PhaseId::new("main", "train"), format!("note {n}"));
        w.command(Command::Notice { job: job(1), phase, generation: 1, text, node: node(1) }).unwrap();
    }
    let history = &w.phase(1, "train").history;
    let text = |i: usize| history[i].1.as_str();
    assert_eq!((history.len(), text(0)), (200, "attempt 1 starts with 2 ranks"));
    assert_eq!((text(1), text(199)), ("note 101", "note 299"));
}

#[test]
fn the_newest_time_of_a_state_is_that_of_what_has_happened_last() {
    let mut w = training();
    assert_eq!(w.state.newest_ms(), w.now);
    w.now += 5_000;
    w.exit(1, 0, FailureClass::Crash).unwrap();
    w.plan();
    assert!(w.phase(1, "train").not_before_ms > w.now, "a pause lies ahead");
    assert_eq!(w.state.newest_ms(), w.now);
}
