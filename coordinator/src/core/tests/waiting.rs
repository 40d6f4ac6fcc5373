//! How long things are waited for, to the millisecond, and what is counted while one waits.

use tl_proto::spec::Device;

use super::*;

/// What is planned at some time, with these deadlines; nothing is applied.
fn planned(w: &World, now: u64, deadlines: &Deadlines) -> Vec<Event> {
    plan(&w.state, &Context { now, deadlines, entropy: 1 })
}

#[test]
fn a_node_is_lost_when_its_lease_is_over_and_not_before() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    let (seen, deadlines) = (w.now, DEADLINES());
    assert!(planned(&w, seen + deadlines.lease_ms, &deadlines).is_empty());
    let events = planned(&w, seen + deadlines.lease_ms + 1, &deadlines);
    assert!(matches!(&events[..], [Event::NodeLost { .. }]), "{events:?}");
}

#[test]
fn a_gang_that_was_asked_to_stop_has_time_to_take_its_state_away() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.command(Command::Drain { node: node(1), undo: false }).unwrap();
    w.plan();
    let since = w.phase(1, "train").attempt.as_ref().unwrap().stopping.as_ref().unwrap().1;
    // Twice the grace to stop, and for the upload a minute or ten times the grace.
    for (stop_grace_ms, waits) in [(3_000, 66_000), (10_000, 120_000)] {
        let deadlines = Deadlines { stop_grace_ms, lease_ms: 1 << 40, ..DEADLINES() };
        assert!(planned(&w, since + waits, &deadlines).is_empty(), "{stop_grace_ms}");
        let events = planned(&w, since + waits + 1, &deadlines);
        assert!(matches!(&events[..], [Event::AttemptEnded { end: End::Replan { .. }, .. }]), "{events:?}");
    }
}

#[test]
fn who_waits_is_told_how_many_slots_are_out_of_sight_or_being_emptied() {
    let mut w = World::new();
    w.join(9, "a", 1).unwrap();
    w.submit(1, "8", 0);
    w.succeed(1, "probe");
    w.command(Command::Leave { node: node(9) }).unwrap();
    for (n, slots) in [(1, 2), (2, 3)] {
        w.join(n, "a", slots).unwrap();
        w.command(Command::Disconnect { node: node(n), incarnation: "a".into() }).unwrap();
    }
    assert_eq!(why(&w.state, &job(1), w.now), Some(Wait::NodesUnknown(5)));
    for (n, slots) in [(1, 2), (2, 3), (3, 1)] {
        w.join(n, "b", slots).unwrap();
    }
    for n in [1, 2] {
        w.command(Command::Drain { node: node(n), undo: false }).unwrap();
    }
    let wait = why(&w.state, &job(1), w.now).unwrap();
    let on = On { device: Device::Auto, begun: false };
    assert_eq!(wait, Wait::TooFewSlots { need: 8, on, have: 1, draining: 5, reasons: Vec::new() });
    assert_eq!(wait.to_string(), "it needs 8 slots and all nodes together have 1 (5 more are being drained)");
    // Where those would be enough, nothing else is the matter.
    let on = On { device: Device::Cpu, begun: true };
    let wait = Wait::TooFewSlots { need: 1, on, have: 0, draining: 2, reasons: Vec::new() };
    let head = "it needs 1 slot on CPUs, where it has begun, and all nodes together have 0 (2 more are being drained)";
    let undo = "`tlctl drain --undo NODE` lets one be used again, unless its worker is being stopped";
    assert_eq!(wait.to_string(), format!("{head}; {undo}"));
}

#[test]
fn a_job_that_wants_a_device_gets_that_device() {
    let mut w = World::new();
    for (n, device) in [(1, "cuda:0"), (2, "cpu")] {
        w.join(n, "a", 1).unwrap();
        w.state.nodes.get_mut(&node(n)).unwrap().slots[0].device = device.into();
    }
    for (n, device, takes) in [(1, Device::Cpu, 2), (2, Device::Cuda, 1)] {
        let mut wanted = spec("1", 0);
        wanted.cluster.device = device;
        w.submit_spec(n, wanted);
        assert_eq!(w.phase(n, "probe").attempt.as_ref().unwrap().placements[0].node, node(takes), "{device:?}");
        w.command(Command::Cancel { job: job(n) }).unwrap();
    }
}

#[test]
fn every_attempt_has_a_secret_of_its_own_that_follows_from_fresh_randomness() {
    let mut w = World::new();
    w.join(1, "a", 2).unwrap();
    let secrets = |entropy: u128, w: &World| -> Vec<String> {
        let deadlines = DEADLINES();
        let events = plan(&w.state, &Context { now: w.now, deadlines: &deadlines, entropy });
        let started = events.into_iter().filter_map(|e| match e {
            Event::AttemptStarted { secret, .. } => Some(secret),
            _ => None,
        });
        started.collect()
    };
    for n in [1, 2] {
        let (spec, key) = (Box::new(spec("1", 0)), n.to_string());
        w.command(Command::Submit { job: job(n), key, owner: "o".into(), spec, plan_only: false }).unwrap();
    }
    let (first, other) = (secrets(1, &w), secrets(2, &w));
    let all: std::collections::BTreeSet<&String> = first.iter().chain(&other).collect();
    assert_eq!((first.len(), all.len()), (2, 4), "{all:?}");
    assert!(all.iter().all(|s| s.len() == 64));
}
