//! What teachers say, in units: when they are made, who does them, and what becomes of those that are lost.

use serde_json::json;
use tl_proto::{spec::Pushed, teaching::Teaching};

use super::*;

/// The probe of a job ends, and has found that its teachers need so many seconds.
pub(super) fn probed(w: &mut World, n: u128, seconds: f64) {
    let mut command = w.result(n, "probe");
    if let Command::Result { result, .. } = &mut command {
        *result = json!({ "teaching": Teaching { rows: 1_000, seconds, ..Teaching::default() } });
    }
    // In a random history there may be none that runs.
    let _ = w.command(command);
    w.plan();
}

/// Units of a job that run, by name, and the node of each.
pub(super) fn running(w: &World, n: u128) -> Vec<(String, NodeId)> {
    let units = w.state.jobs[&job(n)].units("main");
    let place = |p: &Phase| {
        let at = p.attempt.as_ref()?.placements.first()?;
        Some((p.id.0.trim_start_matches("main/").to_owned(), at.node.clone()))
    };
    units.filter_map(place).collect()
}

fn left(w: &World, n: u128, unit: &str) -> Command {
    let (node, _) = w.agent(n, unit, 0);
    let (phase, generation) = (PhaseId::new("main", unit), w.phase(n, unit).generation);
    let blob = Blob { digest: format!("of {unit}"), size: 1 };
    Command::Artifact { job: job(n), phase, generation, name: "features".into(), blob, node }
}

fn done(w: &mut World, n: u128, unit: &str) {
    w.command(left(w, n, unit)).unwrap();
    w.command(w.result(n, unit)).unwrap();
    w.plan();
}

fn fails(w: &mut World, n: u128, unit: &str, class: FailureClass) {
    let (node, incarnation) = w.agent(n, unit, 0);
    let (phase, generation) = (PhaseId::new("main", unit), w.phase(n, unit).generation);
    let failure = Some(Failure::new(class, "x", ""));
    w.command(Command::Exited { job: job(n), phase, generation, rank: 0, failure, node, incarnation }).unwrap();
    w.plan();
}

/// Three nodes of one slot, and a job whose gang takes one.
fn world() -> World {
    let mut w = World::new();
    for n in 1..=3 {
        w.join(n, "a", 1).unwrap();
    }
    w.submit(1, "1", 0);
    w
}

fn says(w: &World, n: u128) -> String {
    why(&w.state, &job(n), w.now).unwrap().to_string()
}

#[test]
fn idle_slots_beyond_the_gang_take_units_and_the_training_has_what_all_of_them_left() {
    let mut w = world();
    probed(&mut w, 1, 120.0);
    let nodes: Vec<NodeId> = running(&w, 1).into_iter().map(|(_, node)| node).collect();
    assert_eq!(nodes, [node(1), node(2), node(3)]);
    assert_eq!((w.ranks(1), says(&w, 1).as_str()), (0, "running: main/teach (0 of 12 units done)"));
    for n in 1..=12 {
        assert_eq!(w.ranks(1), 0, "before unit {n}");
        let (unit, _) = running(&w, 1).remove(0);
        done(&mut w, 1, &unit);
    }
    assert_eq!((w.ranks(1), says(&w, 1).as_str()), (1, "running: main/train"));
    assert!(w.state.needs_blob("of teach-1") && w.state.needs_blob("of teach-12"));
    assert!(w.state.jobs[&job(1)].artifacts.is_empty(), "they are nothing that people fetch");
    // What it has begun is not cut anew.
    w.exit(1, 0, FailureClass::LostNode).unwrap();
    w.plan();
    assert_eq!((w.ranks(1), w.state.jobs[&job(1)].units("main").count()), (1, 12));
    w.succeed(1, "train");
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded);
    assert!(!w.state.needs_blob("of teach-1"));
    // Of all units one line is left.
    let phases = &w.state.jobs[&job(1)].phases;
    assert_eq!(phases.iter().map(|p| p.kind).collect::<Vec<_>>(), [PhaseKind::Probe, PhaseKind::Train]);
    assert_eq!(phases[1].needs, [PhaseId::new("main", "probe")]);
    let told = "12 units of what teachers say: 4 done on `n1`, 4 done on `n2`, 4 done on `n3`";
    assert!(phases[1].history.iter().any(|(_, line)| line == told), "{:?}", phases[1].history);
}

#[test]
fn whoever_comes_later_does_not_take_the_slots_that_the_training_needs_after_its_units() {
    let mut w = World::new();
    w.join(4, "a", 1).unwrap();
    w.submit(9, "\"1..4\"", 0);
    w.succeed(9, "probe");
    for n in 1..=3 {
        w.join(n, "a", 1).unwrap();
    }
    w.submit(1, "2", 0);
    probed(&mut w, 1, 60.0);
    w.submit(2, "1", 0);
    for unit in 1..=5 {
        done(&mut w, 1, &format!("teach-{unit}"));
        // One slot is free after the fourth unit and two are after the fifth: the gang takes two.
        assert_eq!((w.ranks(1), w.phase(2, "probe").generation), (0, 0), "after unit {unit}");
    }
    assert_eq!(w.why(2), "behind");
    // Nor does a gang that runs grow onto them.
    w.after(6_000);
    assert!(w.phase(9, "train").attempt.as_ref().unwrap().stopping.is_none());
    done(&mut w, 1, "teach-6");
    assert_eq!((w.ranks(1), w.phase(2, "probe").generation), (2, 1));
}

#[test]
fn units_that_no_slot_is_free_for_keep_no_training_from_others() {
    let mut w = World::new();
    for (n, build) in [(1, "b"), (2, "b"), (3, "b"), (4, "c")] {
        w.join_build(n, "a", 1, build).unwrap();
    }
    w.submit(1, "1", 0);
    probed(&mut w, 1, 120.0);
    // A more urgent gang takes every slot of their build, as they fall free.
    w.submit(2, "3", 5);
    w.succeed(2, "probe");
    for unit in 1..=3 {
        assert_eq!((w.ranks(1), w.ranks(2)), (0, 0), "before unit {unit}");
        done(&mut w, 1, &format!("teach-{unit}"));
    }
    assert_eq!((w.ranks(1), w.ranks(2)), (1, 3));
    let at = w.phase(1, "train").attempt.as_ref().unwrap().placements[0].node.clone();
    assert_eq!(at, node(4));
    let said = &w.phase(1, "teach-4").history.last().unwrap().1;
    assert!(said.contains("no slot is free"), "{said}");
}

#[test]
fn the_loss_of_all_nodes_for_a_while_loses_no_unit() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    for n in 1..=3 {
        w.command(Command::Disconnect { node: node(n), incarnation: "a".into() }).unwrap();
    }
    w.after(10_000);
    assert!(running(&w, 1).is_empty() && w.ranks(1) == 0);
    w.join(2, "b", 1).unwrap();
    assert_eq!(running(&w, 1), [("teach-1".to_owned(), node(2))]);
}

#[test]
fn a_node_that_gives_up_one_unit_gets_no_other_and_two_such_nodes_end_them() {
    let mut w = world();
    probed(&mut w, 1, 120.0);
    fails(&mut w, 1, "teach-1", FailureClass::User);
    let at = |unit: &str, n: u128| (unit.to_owned(), node(n));
    assert_eq!(running(&w, 1), [at("teach-2", 2), at("teach-3", 3)]);
    done(&mut w, 1, "teach-2");
    assert_eq!(running(&w, 1), [at("teach-3", 3), at("teach-4", 2)]);
    fails(&mut w, 1, "teach-3", FailureClass::OutOfMemory);
    assert_eq!(running(&w, 1), [at("teach-4", 2)], "what runs may end");
    assert_eq!(w.state.jobs[&job(1)].units("main").filter(|p| p.is_left()).count(), 10);
    done(&mut w, 1, "teach-4");
    assert_eq!(w.ranks(1), 1);
    // Who tries the job again tries the units again only if its training has not begun.
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!((w.ranks(1), running(&w, 1).len()), (1, 0));
    let mut w = world();
    probed(&mut w, 1, 30.0);
    fails(&mut w, 1, "teach-1", FailureClass::User);
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!(running(&w, 1).len(), 3);
}

#[test]
fn a_unit_whose_file_did_not_arrive_is_done_again() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    let says_left = |w: &World, left: bool| {
        let mut command = w.result(1, "teach-1");
        if let Command::Result { result, .. } = &mut command {
            *result = json!({ "left": left });
        }
        command
    };
    w.command(says_left(&w, true)).unwrap();
    w.plan();
    let unit = w.phase(1, "teach-1");
    assert_eq!((unit.status, unit.failures[&FailureClass::Disk]), (PhaseStatus::Waiting, 1));
    w.after(5_000);
    assert_eq!(w.phase(1, "teach-1").generation, 2);
    // It may have had nothing to leave.
    w.command(says_left(&w, false)).unwrap();
    assert_eq!(w.phase(1, "teach-1").status, PhaseStatus::Succeeded);
}

#[test]
fn what_must_be_brought_to_other_nodes_first_is_time_that_is_not_saved() {
    let begins = |size: u64, slots: &[u32]| {
        let mut w = World::new();
        for (n, slots) in slots.iter().enumerate() {
            w.join(1 + n as u128, "a", *slots).unwrap();
        }
        let digest = "a".repeat(64);
        let (blob, name) = (Blob { digest: digest.clone(), size }, "d".into());
        w.command(Command::PushData { blob, name, files: 1 }).unwrap();
        let mut spec = spec("1", 0);
        let data = spec.data.as_mut().unwrap();
        (data.format, data.train, data.val) = ("idx".into(), Pushed::name(&digest), Pushed::name(&digest));
        w.submit_spec(1, spec);
        probed(&mut w, 1, 24.0);
        w.ranks(1)
    };
    // On two slots 24 seconds become 12, and 100 MB take two more.
    assert_eq!((begins(99_000_000, &[1, 1]), begins(101_000_000, &[1, 1])), (0, 1));
    assert_eq!((begins(1 << 40, &[2, 1]), begins(1 << 40, &[2])), (1, 0), "the node that trains needs them anyway");
}

#[test]
fn a_training_that_would_not_begin_much_sooner_begins_at_once() {
    let begins = |ranks: &str, seconds: f64| {
        let mut w = World::new();
        for n in 1..=3 {
            w.join(n, "a", 1).unwrap();
        }
        w.submit(1, ranks, 0);
        probed(&mut w, 1, seconds);
        w.ranks(1)
    };
    // On three slots for one, 15 seconds become 5: that is what is asked for.
    assert_eq!((begins("1", 14.9), begins("1", 15.0)), (1, 0));
    assert_eq!((begins("2", 59.0), begins("2", 60.0)), (2, 0));
    // Its ranks take every slot and share the work themselves.
    assert_eq!(begins("\"1..3\"", 1e6), 3);
    assert_eq!(begins("1", f64::NAN), 1);
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    probed(&mut w, 1, 1e6);
    assert_eq!(w.ranks(1), 1, "nobody else is idle");
}

#[test]
fn a_unit_of_a_lost_or_drained_node_goes_back_and_what_is_done_stays_done() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    done(&mut w, 1, "teach-1");
    let at = |unit: &str, n: u128| (unit.to_owned(), node(n));
    assert_eq!(running(&w, 1), [at("teach-2", 2), at("teach-3", 3)]);
    w.command(Command::Leave { node: node(2) }).unwrap();
    w.plan();
    assert_eq!(running(&w, 1), [at("teach-2", 1), at("teach-3", 3)]);
    assert_eq!(w.phase(1, "teach-2").generation, 2);
    // What the lost one says later has no effect.
    let (phase, generation) = (PhaseId::new("main", "teach-2"), 1);
    let (result, incarnation) = (serde_json::Value::Null, "a".to_owned());
    let late = Command::Result { job: job(1), phase, generation, result, node: node(2), incarnation };
    assert_eq!(w.command(late), Err(Refusal::Stale));
    w.command(Command::Drain { node: node(3), undo: false }).unwrap();
    w.plan();
    fails(&mut w, 1, "teach-3", FailureClass::Stopped);
    done(&mut w, 1, "teach-2");
    assert_eq!(running(&w, 1), [at("teach-3", 1)]);
    done(&mut w, 1, "teach-3");
    assert_eq!(w.ranks(1), 1);
}

#[test]
fn a_silent_node_loses_its_unit_with_its_lease() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    done(&mut w, 1, "teach-1");
    w.command(Command::Disconnect { node: node(3), incarnation: "a".into() }).unwrap();
    w.after(4_000);
    assert_eq!(w.phase(1, "teach-3").generation, 1, "within its lease it may come back");
    w.after(2_000);
    assert_eq!((w.phase(1, "teach-3").generation, running(&w, 1)[1].1.clone()), (2, node(1)));
}

#[test]
fn a_unit_that_fails_for_good_is_left_to_the_training() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    fails(&mut w, 1, "teach-1", FailureClass::User);
    assert_eq!(w.phase(1, "teach-1").status, PhaseStatus::Succeeded);
    let said = w.phase(1, "teach-1").history.last().unwrap().1.clone();
    assert_eq!(said, "left to the training: x (user)");
    done(&mut w, 1, "teach-2");
    done(&mut w, 1, "teach-3");
    assert_eq!((w.ranks(1), w.phase(1, "teach-1").output.clone()), (1, None));
}

#[test]
fn units_are_of_one_build_and_left_when_none_of_it_is_there() {
    let mut w = World::new();
    for (n, build) in [(1, "b"), (2, "b"), (3, "b"), (4, "c"), (5, "c")] {
        w.join_build(n, "a", 1, build).unwrap();
    }
    w.submit(1, "1", 0);
    probed(&mut w, 1, 120.0);
    assert_eq!(running(&w, 1).iter().map(|(_, n)| n.clone()).collect::<Vec<_>>(), [node(1), node(2), node(3)]);
    // They keep nobody from what is of no use to them.
    w.submit(2, "1", 0);
    assert!(w.phase(2, "probe").attempt.is_some());
    for n in 1..=3 {
        w.command(Command::Leave { node: node(n) }).unwrap();
    }
    w.plan();
    assert!(running(&w, 1).is_empty());
    assert_eq!(w.ranks(1), 1, "the training does it all");
}

#[test]
fn a_cancelled_job_goes_on_with_the_units_that_are_not_done() {
    let mut w = world();
    probed(&mut w, 1, 30.0);
    done(&mut w, 1, "teach-2");
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.plan();
    assert!(running(&w, 1).is_empty() && w.state.needs_blob("of teach-2"));
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    let units: Vec<String> = running(&w, 1).into_iter().map(|(unit, _)| unit).collect();
    assert_eq!(units, ["teach-1", "teach-3"]);
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.command(Command::Remove { job: job(1) }).unwrap();
    assert!(!w.state.needs_blob("of teach-2"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_to_units_the_job_can_end(steps in prop::collection::vec((0u8..8, 1u128..4, 0usize..4), 1..40)) {
        let mut w = world();
        probed(&mut w, 1, 120.0);
        for (what, n, which) in steps {
            let units = running(&w, 1);
            let unit = units.get(which % units.len().max(1)).map(|(unit, _)| unit.clone());
            let _ = match (what, unit) {
                (0, Some(unit)) => { done(&mut w, 1, &unit); Ok(()) }
                (1, Some(unit)) => { fails(&mut w, 1, &unit, FailureClass::ALL[which * 2]); Ok(()) }
                (2, _) => w.command(Command::Leave { node: node(n) }),
                (3, _) => w.join_build(n, &which.to_string(), 1 + which as u32 % 2, ["b", "c"][which % 2]),
                (4, _) => w.command(Command::Drain { node: node(n), undo: which == 0 }),
                (5, _) => w.command(Command::Cancel { job: job(1) }),
                (6, _) => w.command(Command::Retry { job: job(1) }),
                _ => { w.after(3_000 * which as u64); Ok(()) }
            };
            w.plan();
        }
        let mut again = State::default();
        w.log.iter().for_each(|e| apply(&mut again, e));
        prop_assert_eq!(&again.jobs, &w.state.jobs);
        // With nodes of the kind that is needed, and nothing that goes wrong, it comes to its end.
        let _ = w.command(Command::Retry { job: job(1) });
        w.join(9, "a", 2).unwrap();
        for _ in 0..200 {
            // Pauses after failures pass, and so do leases.
            w.after(70_000);
            let active = w.state.jobs[&job(1)].phases.iter().find(|p| p.attempt.is_some());
            let Some(phase) = active.map(|p| p.id.0.trim_start_matches("main/").to_owned()) else { break };
            // Whoever was told to stop on a drained node does.
            if w.phase(1, &phase).attempt.as_ref().is_some_and(|a| a.stopping.is_some()) {
                fails(&mut w, 1, &phase, FailureClass::Stopped);
            } else {
                w.succeed(1, &phase);
            }
        }
        prop_assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded, "{}", says(&w, 1));
    }
}
