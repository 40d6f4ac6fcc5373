//! Where gangs go, when they are moved, and whom a waiting one holds up.

use tl_proto::{hardware::Gpu, spec::Device};

use super::*;

fn is_stopping(w: &World, n: u128) -> bool {
    w.phase(n, "train").attempt.as_ref().is_some_and(|a| a.stopping.is_some())
}

fn nodes(w: &World, n: u128) -> Vec<NodeId> {
    w.phase(n, "train").attempt.iter().flat_map(|a| &a.placements).map(|p| p.node.clone()).collect()
}

#[test]
fn a_gang_is_not_disturbed_for_slots_that_cannot_join_it() {
    let mut w = World::new();
    w.join_build(1, "a", 1, "old").unwrap();
    w.submit(1, "\"1..3\"", 0);
    w.succeed(1, "probe");
    w.join_build(2, "a", 1, "new").unwrap();
    w.after(20_000);
    assert!(!is_stopping(&w, 1), "placed anew it would have one rank, as it has now");
    w.join_build(3, "a", 1, "new").unwrap();
    assert!(is_stopping(&w, 1), "the other build has room for two");
    w.exit(1, 0, FailureClass::Stopped).unwrap();
    w.plan();
    assert_eq!(nodes(&w, 1), [node(2), node(3)]);
    w.after(20_000);
    assert!(!is_stopping(&w, 1));
}

#[test]
fn a_job_that_no_slot_could_ever_take_does_not_keep_others_from_growing() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "\"1..2\"", 0);
    w.succeed(1, "probe");
    let mut on_gpus = spec("1", 9);
    on_gpus.cluster.device = Device::Cuda;
    w.submit_spec(2, on_gpus);
    w.join(2, "a", 1).unwrap();
    w.after(6_000);
    assert_eq!((w.why(2), is_stopping(&w, 1)), ("too_few_slots", true));
}

#[test]
fn a_gang_does_not_grow_onto_slots_that_somebody_waits_for() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "\"1..2\"", 0);
    w.succeed(1, "probe");
    w.join(2, "a", 1).unwrap();
    w.submit(2, "2", 0);
    w.succeed(2, "probe");
    w.after(20_000);
    assert_eq!((w.why(2), is_stopping(&w, 1)), ("slots_busy", false));
}

#[test]
fn a_gang_for_which_no_build_has_slots_enough_holds_nobody_up() {
    let mut w = World::new();
    w.join_build(1, "a", 1, "old").unwrap();
    w.join_build(2, "a", 1, "new").unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.submit(2, "2", 0);
    w.succeed(2, "probe");
    assert_eq!(w.why(2), "mixed_builds");
    w.submit(3, "1", 0);
    assert_eq!(w.phase(3, "probe").status, PhaseStatus::Running);
}

fn give(w: &mut World, n: u128, device: &str) {
    let node = w.state.nodes.get_mut(&node(n)).unwrap();
    node.hardware.nccl = "2.27.6".into();
    for slot in &mut node.slots {
        slot.device = format!("{device}:{}", slot.index);
    }
}

#[test]
fn a_gang_is_never_of_gpus_and_cpus() {
    let mut w = World::new();
    for n in 1..=3 {
        w.join(n, "a", 2).unwrap();
    }
    give(&mut w, 3, "cuda");
    w.submit(1, "5", 0);
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("mixed_devices", 0));
    let wait = why(&w.state, &job(1), w.now).unwrap().to_string();
    assert_eq!(wait, "it needs 5 slots on one kind of device, and there are 4 on cpu and 2 on cuda");
    w.submit(2, "3", 0);
    w.succeed(2, "probe");
    assert_eq!(nodes(&w, 2), [node(1), node(1), node(2)], "three are there without a GPU only");
}

#[test]
fn a_gang_is_of_one_model_of_gpu() {
    let mut w = World::new();
    for (n, slots, name) in [(1, 2, "H100"), (2, 1, "L4"), (3, 1, "H100")] {
        w.join(n, "a", slots).unwrap();
        give(&mut w, n, "cuda");
        let gpu = |index| Gpu { index, name: name.into(), ..Gpu::default() };
        w.state.nodes.get_mut(&node(n)).unwrap().hardware.gpus = (0..slots).map(gpu).collect();
    }
    w.submit(1, "4", 0);
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("mixed_builds", 0));
    w.submit(2, "\"2..4\"", 0);
    w.succeed(2, "probe");
    assert_eq!(nodes(&w, 2), [node(1), node(1), node(3)]);
}

#[test]
fn who_takes_any_device_gets_gpus_where_those_are_enough() {
    let mut w = World::new();
    w.join(1, "a", 4).unwrap();
    w.join(2, "a", 2).unwrap();
    give(&mut w, 2, "cuda");
    w.submit(1, "\"1..4\"", 0);
    w.succeed(1, "probe");
    let placed: Vec<String> =
        w.phase(1, "train").attempt.iter().flat_map(|a| &a.placements).map(|p| p.device.clone()).collect();
    assert_eq!(placed, ["cuda:0", "cuda:1"]);
    w.after(20_000);
    assert!(!is_stopping(&w, 1), "it would be placed on the same ones anew");
}

#[test]
fn a_worker_that_only_its_own_machine_reaches_joins_no_gang_of_others() {
    let mut w = World::new();
    w.join_at(1, "a", 1, "b", "127.0.0.1").unwrap();
    w.join_at(2, "a", 1, "b", "10.0.0.2").unwrap();
    w.submit(1, "2", 0);
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("mixed_builds", 0));
    w.join_at(3, "a", 1, "b", "10.0.0.3").unwrap();
    assert_eq!(nodes(&w, 1), [node(2), node(3)]);
    w.join_at(4, "a", 1, "b", "127.0.0.1").unwrap();
    w.submit(2, "2", 0);
    w.succeed(2, "probe");
    assert_eq!(nodes(&w, 2), [node(1), node(4)], "workers of one machine are a gang");
}

#[test]
fn a_rank_that_is_stopped_has_time_to_bring_its_state_away() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.command(Command::Drain { node: node(1), undo: false }).unwrap();
    w.plan();
    w.after(20_000);
    assert!(is_stopping(&w, 1));
    w.command(w.checkpoint(1, 5)).unwrap();
    w.after(50_000);
    assert_eq!((w.ranks(1), w.phase(1, "train").checkpoints.len()), (0, 1), "but not for ever");
}
