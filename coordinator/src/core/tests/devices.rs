//! Which slots make a gang, which GPUs are nobody's, and what is said where that leaves too few.

use tl_proto::{
    hardware::{Gpu, Hardware},
    spec::{Device, Reduction},
};

use super::{
    teaching::{probed, running},
    *,
};

/// A GPU of the one model that there is.
pub(super) fn gpu(index: u32, uuid: &str, numbers: &str) -> Gpu {
    Gpu { index, name: "H100".into(), uuid: uuid.into(), numbers: numbers.into(), ..Gpu::default() }
}

/// A node with a slot on each of some GPUs, and CPU slots.
pub(super) fn joins(w: &mut World, n: u128, gpus: Vec<Gpu>, cpus: u32, nccl: &str) {
    starts(w, n, "a", (gpus, cpus, nccl)).unwrap();
}

fn starts(w: &mut World, n: u128, incarnation: &str, (gpus, cpus, nccl): (Vec<Gpu>, u32, &str)) -> Result<(), Refusal> {
    let devices = gpus.iter().map(|gpu| format!("cuda:{}", gpu.index)).chain((0..cpus).map(|_| "cpu".to_owned()));
    let slot = |(index, device)| Slot { index, device, address: format!("n{n}:{index}"), weight: 1 };
    let slots = (0..).zip(devices).map(slot).collect();
    let hardware = Box::new(Hardware { gpus, nccl: nccl.into(), ..Hardware::default() });
    let (name, incarnation, build) = (format!("n{n}"), incarnation.to_owned(), "b".to_owned());
    w.command(Command::Join { node: node(n), name, incarnation, build, slots, catalog: Box::default(), hardware })?;
    w.state.catalog = None;
    let now = w.now;
    w.state.nodes.get_mut(&node(n)).unwrap().seen_ms = now;
    w.plan();
    Ok(())
}

/// A job for a device.
pub(super) fn on(device: Device, ranks: &str, priority: i32) -> JobSpec {
    let mut spec = spec(ranks, priority);
    spec.cluster.device = device;
    spec
}

fn nodes(w: &World, n: u128) -> Vec<NodeId> {
    w.phase(n, "train").attempt.iter().flat_map(|a| &a.placements).map(|p| p.node.clone()).collect()
}

fn says(w: &World, n: u128) -> String {
    why(&w.state, &job(n), w.now).unwrap().to_string()
}

fn judge(n: u128, incarnation: &str, slot: u32, problem: &str) -> Command {
    Command::Judge { node: node(n), incarnation: incarnation.into(), slot, problem: problem.into() }
}

#[test]
fn a_gang_that_adds_up_over_nccl_has_the_same_one_on_all_nodes() {
    let mut w = World::new();
    for (n, nccl) in [(1, ""), (2, ""), (3, "2.27.6"), (4, "2.28.9")] {
        joins(&mut w, n, vec![gpu(0, &format!("u{n}"), "x")], 0, nccl);
    }
    w.submit_spec(1, on(Device::Cuda, "2", 0));
    w.succeed(1, "probe");
    assert_eq!((w.why(1), w.ranks(1)), ("mixed_builds", 0));
    assert!(says(&w, 1).contains("there are 1 at most; 2 GPUs have no NCCL"), "{}", says(&w, 1));
    // It keeps nobody waiting, and who adds up over TCP, or not at all, needs none.
    let mut ordered = on(Device::Cuda, "4", 0);
    ordered.cluster.reduction = Reduction::Ordered;
    w.submit_spec(2, ordered);
    w.succeed(2, "probe");
    assert_eq!(w.ranks(2), 4);
    w.succeed(2, "train");
    joins(&mut w, 5, vec![gpu(0, "u5", "x")], 0, "2.27.6");
    assert_eq!(nodes(&w, 1), [node(3), node(5)]);
    w.submit_spec(3, on(Device::Auto, "\"1..2\"", 0));
    w.succeed(3, "probe");
    assert_eq!(w.ranks(3), 1, "two of those that are left are no gang");
    w.after(20_000);
    assert!(w.phase(3, "train").attempt.as_ref().unwrap().stopping.is_none(), "and it does not grow");
}

#[test]
fn gpus_of_one_model_that_compute_other_numbers_are_no_gang() {
    for reduction in [Reduction::Ordered, Reduction::Auto] {
        let mut w = World::new();
        for (n, numbers) in [(1, "x"), (2, "y"), (3, "")] {
            joins(&mut w, n, vec![gpu(0, &format!("u{n}"), numbers)], 0, "2.27.6");
        }
        let mut two = on(Device::Cuda, "2", 0);
        two.cluster.reduction = reduction;
        w.submit_spec(1, two);
        w.succeed(1, "probe");
        assert_eq!((w.why(1), w.ranks(1)), ("mixed_builds", 0), "{reduction:?}");
        joins(&mut w, 4, vec![gpu(0, "u4", "y")], 0, "2.27.6");
        assert_eq!(nodes(&w, 1), [node(2), node(4)], "{reduction:?}");
    }
}

#[test]
fn a_gpu_that_works_no_more_is_passed_over_until_it_works_again() {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 0, "2.27.6");
    w.submit_spec(1, on(Device::Cuda, "1", 0));
    w.succeed(1, "probe");
    let slot = |w: &World| w.phase(1, "train").attempt.as_ref().map(|a| a.placements[0].slot);
    assert_eq!(slot(&w), Some(0));
    // Its agent says so before it says that the rank has ended.
    w.command(judge(1, "a", 0, "GPU 0 is gone")).unwrap();
    w.plan();
    assert_eq!(slot(&w), Some(0), "the rank ends by itself");
    w.exit(1, 0, FailureClass::LostDevice).unwrap();
    w.plan();
    assert_eq!((slot(&w), w.phase(1, "train").failures[&FailureClass::LostDevice]), (Some(1), 1));
    w.submit_spec(2, on(Device::Cuda, "2", 0));
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.plan();
    w.succeed(2, "probe");
    assert_eq!(w.why(2), "too_few_slots");
    assert_eq!(
        says(&w, 2),
        "it needs 2 slots on GPUs and all nodes together have 1; `n1`: GPU 0 is gone",
        "who waits is told why"
    );
    // The same start of the agent has not changed its mind; what another one says, or says of no slot, is nothing.
    w.command(Command::Disconnect { node: node(1), incarnation: "a".into() }).unwrap();
    joins(&mut w, 1, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 0, "2.27.6");
    assert_eq!(w.ranks(2), 0);
    for other in [judge(1, "b", 0, ""), judge(1, "a", 7, "x"), judge(2, "a", 0, "x")] {
        assert_eq!(w.command(other), Err(Refusal::Stale));
    }
    assert!(decide(&w.state, judge(1, "a", 0, "GPU 0 is gone"), w.now).unwrap().is_empty(), "it is known");
    w.command(judge(1, "a", 0, "")).unwrap();
    w.plan();
    assert_eq!(w.ranks(2), 2);
}

#[test]
fn another_start_of_an_agent_has_tried_its_gpus_anew() {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x")], 0, "");
    w.command(judge(1, "a", 0, "GPU 0 is gone")).unwrap();
    w.submit_spec(1, on(Device::Cuda, "1", 0));
    assert_eq!(w.why(1), "too_few_slots");
    w.command(Command::Disconnect { node: node(1), incarnation: "a".into() }).unwrap();
    starts(&mut w, 1, "b", (vec![gpu(0, "u0", "x")], 0, "")).unwrap();
    assert_eq!(w.why(1), "running");
}

#[test]
fn a_gpu_that_two_agents_offer_belongs_to_the_first_one_while_that_is_there() {
    let mut w = World::new();
    // The first one has the higher id.
    for n in [2, 1] {
        joins(&mut w, n, vec![gpu(0, "u", "x")], 0, "2.27.6");
    }
    w.submit_spec(1, on(Device::Cuda, "2", 0));
    w.submit_spec(2, on(Device::Cuda, "1", 0));
    w.succeed(1, "probe");
    assert_eq!((w.ranks(1), w.why(1)), (0, "too_few_slots"));
    assert!(says(&w, 1).contains("`n1`: GPU 0 is the one that node `n2` offers; `--gpus` "), "{}", says(&w, 1));
    w.succeed(2, "probe");
    assert_eq!(nodes(&w, 2), [node(2)]);
    // A connection that ends, and an agent that starts anew in time, change nothing.
    w.command(Command::Disconnect { node: node(2), incarnation: "a".into() }).unwrap();
    w.plan();
    starts(&mut w, 2, "b", (vec![gpu(0, "u", "x")], 0, "2.27.6")).unwrap();
    assert_eq!(nodes(&w, 2), [node(2)]);
    w.command(Command::Leave { node: node(2) }).unwrap();
    w.plan();
    assert_eq!(nodes(&w, 2), [node(1)]);
    starts(&mut w, 2, "c", (vec![gpu(0, "u", "x")], 0, "2.27.6")).unwrap();
    w.exit(2, 0, FailureClass::LostNode).unwrap();
    w.plan();
    assert_eq!(nodes(&w, 2), [node(1)], "now the other one was first");
    // What tells nothing of itself is taken to be one of its own.
    for n in [3, 4] {
        joins(&mut w, n, vec![gpu(0, "", "x")], 0, "2.27.6");
    }
    assert_eq!(nodes(&w, 1), [node(3), node(4)]);
}

#[test]
fn units_run_on_gpus_that_compute_the_numbers_of_those_that_wait_for_them() {
    let mut w = World::new();
    for (n, numbers) in [(1, "x"), (2, "y"), (3, "x")] {
        joins(&mut w, n, vec![gpu(0, &format!("u{n}"), numbers)], 0, "2.27.6");
    }
    w.submit_spec(1, on(Device::Cuda, "1", 0));
    probed(&mut w, 1, 120.0);
    let at: Vec<NodeId> = running(&w, 1).into_iter().map(|(_, node)| node).collect();
    assert_eq!(at, [node(1), node(3)]);
    assert!(w.state.jobs[&job(1)].units("main").all(|p| p.unit.as_ref().unwrap().numbers == "x"));
    // Those of older releases ran on any GPU of their build.
    let (phase, build, device) = (PhaseId::new("main", "train"), "b".to_owned(), "cuda".to_owned());
    let numbers = String::new();
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.submit_spec(2, on(Device::Cuda, "1", 0));
    w.command(w.result(2, "probe")).unwrap();
    w.apply(vec![Event::TeachingSplit { job: job(2), phase, units: 3, build, device, numbers, at: w.now }]);
    w.plan();
    assert_eq!(running(&w, 2).len(), 3);
}

#[test]
fn what_was_measured_on_another_kind_of_device_is_no_reason_to_share_out() {
    let shares = |busy: bool| {
        let mut w = World::new();
        joins(&mut w, 1, (0..3).map(|n| gpu(n, &format!("u{n}"), "x")).collect(), 1, "2.27.6");
        if busy {
            w.submit_spec(2, on(Device::Cuda, "3", 0));
            w.succeed(2, "probe");
            assert_eq!(w.ranks(2), 3);
        }
        w.submit_spec(1, on(Device::Auto, "1", 0));
        assert_eq!(w.phase(1, "probe").ran_on.as_ref().unwrap().kind, if busy { "cpu" } else { "cuda" });
        if busy {
            w.command(Command::Cancel { job: job(2) }).unwrap();
        }
        probed(&mut w, 1, 120.0);
        (running(&w, 1).len(), w.ranks(1))
    };
    assert_eq!((shares(false), shares(true)), ((3, 0), (0, 1)));
}

#[test]
fn who_wants_a_device_that_nobody_offers_is_told_how_it_would_be_offered() {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x")], 0, "");
    w.submit_spec(1, on(Device::Cpu, "1", 0));
    let cpus = "it needs 1 slot on CPUs and all nodes together have 0; a worker offers CPU slots with `--slots`";
    assert_eq!((w.why(1), says(&w, 1).as_str()), ("too_few_slots", cpus));

    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit_spec(1, on(Device::Cuda, "1", 0));
    let gpus = "it needs 1 slot on GPUs and all nodes together have 0";
    assert_eq!(
        says(&w, 1),
        format!("{gpus}; a worker that is built with CUDA offers the GPUs that work and that `--gpus` names")
    );
    let hardware = &mut w.state.nodes.get_mut(&node(1)).unwrap().hardware;
    hardware.gpus = vec![gpu(0, "u0", ""), gpu(1, "u1", "")];
    hardware.gpus[0].problem = "GPU 0 is broken".into();
    hardware.gpus[1].problem = "`--gpus` does not name it".into();
    hardware.note = "a reason".into();
    let reasons = "`n1`: GPU 0 is broken; `n1`: GPU 1: `--gpus` does not name it; `n1`: a reason";
    assert_eq!(says(&w, 1), format!("{gpus}; {reasons}"));
    w.join(2, "a", 1).unwrap();
    w.state.nodes.get_mut(&node(2)).unwrap().hardware.note = "another".into();
    assert!(says(&w, 1).ends_with("; `n1`: a reason; 1 more in `tlctl nodes --output json`"), "{}", says(&w, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn two_ranks_never_have_one_gpu(steps in prop::collection::vec((0u8..7, 1u128..4, 0usize..3), 1..50)) {
        let mut w = World::new();
        for (what, n, which) in steps {
            let incarnation = which.to_string();
            // Three nodes of one machine, each with two of its three GPUs.
            let gpus = (0..2).map(|i| gpu(i, &format!("u{}", (n as u32 + i) % 3), "x")).collect();
            let there = w.state.jobs.contains_key(&job(n));
            let _ = match what {
                0 if !there => { w.submit_spec(n, on(Device::Auto, ["1", "2", "\"1..3\""][which], 0)); Ok(()) }
                1 => starts(&mut w, n, &incarnation, (gpus, 1, "2.27.6")),
                2 => w.command(Command::Disconnect { node: node(n), incarnation }),
                3 => w.command(Command::Leave { node: node(n) }),
                4 => w.command(judge(n, &incarnation, which as u32 % 2, ["", "broken"][which % 2])),
                5 if there => w.command(w.result(n, "probe")),
                _ => { w.after(3_000 * which as u64); Ok(()) }
            };
            w.plan();
            let mut used = std::collections::BTreeSet::new();
            for (id, slot) in w.state.held() {
                let known = &w.state.nodes[id];
                let device = known.slots.iter().find(|s| s.index == slot).map(|s| s.device.as_str()).unwrap_or_default();
                if let Some(gpu) = known.gpu(device) {
                    prop_assert!(used.insert(gpu.uuid.clone()), "two ranks on {}: {:?}", gpu.uuid, w.state.held());
                }
            }
        }
    }
}

#[test]
fn a_gpu_stays_with_the_node_whose_rank_is_on_it() {
    let mut w = World::new();
    let both = || vec![gpu(0, "u", "x")];
    joins(&mut w, 1, both(), 0, "");
    joins(&mut w, 2, both(), 0, "");
    // The one that came first comes back without it, and then with it, while it is there all the time.
    let again = |w: &mut World, before: &str, incarnation: &str, gpus| {
        w.command(Command::Disconnect { node: node(1), incarnation: before.into() }).unwrap();
        starts(w, 1, incarnation, (gpus, 1, "")).unwrap();
    };
    again(&mut w, "a", "b", Vec::new());
    w.submit_spec(1, on(Device::Cuda, "1", 0));
    w.succeed(1, "probe");
    assert_eq!(nodes(&w, 1), [node(2)]);
    again(&mut w, "b", "c", both());
    w.submit_spec(2, on(Device::Cuda, "1", 0));
    assert!(w.phase(2, "probe").attempt.is_none(), "two ranks have one GPU");
    assert_eq!((withheld(&w.state, &node(1)).len(), withheld(&w.state, &node(2)).len()), (1, 0));
    w.succeed(1, "train");
    assert_eq!((withheld(&w.state, &node(1)).len(), withheld(&w.state, &node(2)).len()), (0, 1));
}
