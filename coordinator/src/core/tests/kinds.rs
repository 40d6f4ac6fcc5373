//! Who waits for whom: jobs that want other devices never do, those that want the same do in their order. Who takes either
//! waits for GPUs where there are enough, and a training stays on the kind of device that it has begun on.

use tl_proto::{
    hardware::Gpu,
    spec::{Device, Precision},
};

use super::{
    devices::{gpu, joins, on},
    teaching::{probed, running},
    *,
};
use crate::core::plan::{queue, ranks};

/// What the ranks of a phase run on.
fn runs_on(w: &World, n: u128, kind: &str) -> Vec<String> {
    w.phase(n, kind).attempt.iter().flat_map(|a| &a.placements).map(|p| p.device.clone()).collect()
}

fn is_stopping(w: &World, n: u128) -> bool {
    w.phase(n, "train").attempt.as_ref().is_some_and(|a| a.stopping.is_some())
}

/// A job that trains.
fn trains(w: &mut World, n: u128, spec: JobSpec) {
    w.submit_spec(n, spec);
    w.succeed(n, "probe");
    assert!(w.ranks(n) > 0, "job {n}: {}", why(&w.state, &job(n), w.now).unwrap());
}

/// One GPU and so many CPU slots on one node.
fn one_gpu(cpus: u32) -> World {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u", "x")], cpus, "2.27");
    w
}

#[test]
fn who_waits_for_a_gpu_keeps_nobody_from_the_cpus() {
    let mut w = one_gpu(3);
    trains(&mut w, 1, on(Device::Cuda, "1", 0));
    w.submit_spec(2, on(Device::Cuda, "1", 9));
    assert_eq!(w.why(2), "slots_busy");
    trains(&mut w, 3, on(Device::Cpu, "1", 0));
    trains(&mut w, 4, on(Device::Cpu, "1", 0));
    let said = why(&w.state, &job(2), w.now).unwrap().to_string();
    assert_eq!(said, "it needs 1 slot on GPUs at once and 0 are free");
}

#[test]
fn who_waits_for_cpus_keeps_nobody_from_a_gpu_and_has_the_next_one() {
    let mut w = one_gpu(2);
    trains(&mut w, 1, on(Device::Cpu, "1", 0));
    trains(&mut w, 2, on(Device::Cpu, "1", 0));
    w.submit_spec(3, on(Device::Cpu, "2", 0));
    trains(&mut w, 4, on(Device::Cuda, "1", 0));
    w.submit_spec(5, on(Device::Cpu, "1", 0));
    w.succeed(1, "train");
    assert_eq!((w.phase(3, "probe").generation, w.phase(5, "probe").generation), (1, 0), "the order stays");
    assert_eq!(w.why(5), "slots_busy");
    w.succeed(3, "probe");
    assert_eq!((w.ranks(3), w.why(3), w.why(5)), (0, "slots_busy", "behind"), "the free one is kept for two ranks");
    w.succeed(2, "train");
    assert_eq!((w.ranks(3), w.phase(5, "probe").generation), (2, 0));
}

#[test]
fn who_takes_any_device_does_not_take_the_gpu_that_is_kept_for_another() {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 1, "2.27");
    trains(&mut w, 1, on(Device::Cuda, "1", 0));
    trains(&mut w, 2, on(Device::Cuda, "1", 0));
    w.submit_spec(3, on(Device::Cuda, "2", 0));
    w.succeed(1, "train");
    w.succeed(3, "probe");
    w.submit_spec(4, on(Device::Auto, "1", 0));
    w.succeed(4, "probe");
    assert_eq!((w.why(3), w.why(4), w.ranks(4)), ("slots_busy", "behind", 0));
    w.succeed(2, "train");
    assert_eq!((w.ranks(3), w.ranks(4)), (2, 0));
    w.succeed(3, "train");
    assert_eq!(runs_on(&w, 4, "train"), ["cuda:0"]);
}

#[test]
fn who_takes_any_device_waits_for_gpus_where_there_are_enough_and_is_told_what_is_free_instead() {
    let mut w = one_gpu(4);
    trains(&mut w, 1, on(Device::Cuda, "1", 0));
    w.submit_spec(2, on(Device::Auto, "\"1..2\"", 0));
    assert_eq!(runs_on(&w, 2, "probe"), ["cpu"], "that is a matter of seconds");
    w.succeed(2, "probe");
    let said = why(&w.state, &job(2), w.now).unwrap().to_string();
    let instead = "4 on CPUs are free, which `cluster.device = \"cpu\"` takes";
    assert_eq!((w.why(2), said), ("slots_busy", format!("it needs 1 slot on GPUs at once and 0 are free; {instead}")));
    // It keeps no CPU from others, nor from those for whom there are too few GPUs.
    trains(&mut w, 3, on(Device::Cpu, "1", 0));
    trains(&mut w, 4, on(Device::Auto, "2", 0));
    assert_eq!(runs_on(&w, 4, "train"), ["cpu", "cpu"]);
    w.submit_spec(5, on(Device::Auto, "\"1..2\"", 0));
    w.succeed(5, "probe");
    w.succeed(1, "train");
    assert_eq!((runs_on(&w, 2, "train"), w.ranks(5)), (vec!["cuda:0".to_owned()], 0));
    w.succeed(2, "train");
    assert_eq!(runs_on(&w, 5, "train"), ["cuda:0"]);
}

#[test]
fn who_takes_any_device_neither_waits_for_nor_begins_on_gpus_that_do_not_multiply_its_precision() {
    let with = |device, precision| {
        let mut spec = on(device, "1", 0);
        spec.model.as_mut().unwrap().precision = precision;
        spec
    };
    let of = |compute: &str| vec![Gpu { compute: compute.into(), ..gpu(0, "u", "x") }];
    for (compute, precision, trains_on) in [
        ("7.5", Precision::Bf16, "cpu"),
        ("7.0", Precision::Tf32, "cpu"),
        ("7.5", Precision::F32, "cuda:0"),
        ("8.0", Precision::Bf16, "cuda:0"),
        ("12.0", Precision::Tf32, "cuda:0"),
        ("", Precision::Bf16, "cuda:0"),
    ] {
        let mut w = World::new();
        joins(&mut w, 1, of(compute), 2, "2.27");
        w.submit_spec(1, with(Device::Auto, precision));
        assert_eq!(runs_on(&w, 1, "probe"), [trains_on], "{compute} {precision}");
        w.succeed(1, "probe");
        assert_eq!(runs_on(&w, 1, "train"), [trains_on], "{compute} {precision}");
    }
    // Somebody has the GPU: it is not waited for. Without a CPU there is nothing, and it is said why.
    let mut w = World::new();
    joins(&mut w, 1, of("7.5"), 1, "2.27");
    trains(&mut w, 1, on(Device::Cuda, "1", 0));
    trains(&mut w, 2, with(Device::Auto, Precision::Bf16));
    assert_eq!(runs_on(&w, 2, "train"), ["cpu"]);
    let mut w = World::new();
    joins(&mut w, 1, of("7.5"), 0, "2.27");
    w.submit_spec(1, with(Device::Auto, Precision::Bf16));
    let said = why(&w.state, &job(1), w.now).unwrap().to_string();
    assert!(
        w.why(1) == "too_few_slots" && said.ends_with("`n1`: cuda:0 does not multiply what `precision` rounds to"),
        "{said}"
    );
    // Who asks for GPUs gets it, and is told there.
    w.submit_spec(2, with(Device::Cuda, Precision::Bf16));
    assert_eq!(runs_on(&w, 2, "probe"), ["cuda:0"]);
}

#[test]
fn a_connection_that_breaks_sends_nobody_to_the_cpus_before_the_lease_is_over() {
    let mut w = one_gpu(0);
    w.join(2, "a", 1).unwrap();
    w.submit_spec(1, on(Device::Auto, "1", 0));
    assert_eq!(runs_on(&w, 1, "probe"), ["cuda:0"]);
    w.command(Command::Disconnect { node: node(1), incarnation: "a".into() }).unwrap();
    w.succeed(1, "probe");
    assert_eq!((w.ranks(1), w.why(1)), (0, "nodes_unknown"), "nobody has it");
    w.after(6_000);
    assert_eq!((w.state.nodes[&node(1)].status, runs_on(&w, 1, "train")), (NodeStatus::Lost, vec!["cpu".to_owned()]));
}

#[test]
fn a_training_keeps_and_takes_the_kind_of_device_for_which_its_teachers_were_asked() {
    let mut w = World::new();
    for n in 1..=3 {
        w.join(n, "a", 1).unwrap();
    }
    w.submit_spec(1, on(Device::Auto, "1", 0));
    probed(&mut w, 1, 120.0);
    assert_eq!(running(&w, 1).len(), 3);
    // Units are on all CPUs when a GPU comes: others may have it.
    joins(&mut w, 4, vec![gpu(0, "u", "x")], 0, "2.27");
    trains(&mut w, 2, on(Device::Cuda, "1", 0));
    w.succeed(2, "train");
    while let Some((unit, _)) = running(&w, 1).first().cloned() {
        w.succeed(1, &unit);
    }
    assert_eq!(runs_on(&w, 1, "train"), ["cpu"], "what was worked out is of use there alone");
}

#[test]
fn a_gang_on_cpus_grows_while_somebody_waits_for_a_gpu() {
    let mut w = one_gpu(1);
    trains(&mut w, 1, on(Device::Cuda, "1", 0));
    trains(&mut w, 2, on(Device::Cpu, "\"1..2\"", 0));
    w.submit_spec(3, on(Device::Cuda, "1", 0));
    w.join(2, "a", 1).unwrap();
    w.after(6_000);
    assert_eq!((w.why(3), is_stopping(&w, 2)), ("slots_busy", true));
}

#[test]
fn a_training_goes_on_on_the_kind_of_device_that_it_has_begun_on() {
    let mut w = one_gpu(1);
    trains(&mut w, 1, on(Device::Auto, "1", 0));
    assert_eq!(runs_on(&w, 1, "train"), ["cuda:0"]);
    w.command(w.checkpoint(1, 5)).unwrap();
    let judge = |problem: &str| {
        let problem = problem.to_owned();
        Command::Judge { node: node(1), incarnation: "a".into(), slot: 0, problem }
    };
    w.command(judge("GPU 0 is gone")).unwrap();
    w.exit(1, 0, FailureClass::LostDevice).unwrap();
    w.plan();
    assert_eq!((w.ranks(1), w.why(1)), (0, "too_few_slots"));
    let said = why(&w.state, &job(1), w.now).unwrap().to_string();
    let begun = "it needs 1 slot on GPUs, where it has begun, and all nodes together have 0; ";
    assert!(said.starts_with(begun) && said.ends_with("; `n1`: GPU 0 is gone"), "{said}");
    w.command(judge("")).unwrap();
    w.plan();
    assert_eq!(runs_on(&w, 1, "train"), ["cuda:0"]);
    // Who wants it to go on all the same says so.
    w.command(judge("GPU 0 is gone")).unwrap();
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!(runs_on(&w, 1, "train"), ["cpu"]);
}

#[test]
fn what_has_not_come_to_a_checkpoint_begins_anew_on_any_device() {
    let mut w = one_gpu(1);
    trains(&mut w, 1, on(Device::Auto, "1", 0));
    let problem = "GPU 0 is gone".to_owned();
    w.command(Command::Judge { node: node(1), incarnation: "a".into(), slot: 0, problem }).unwrap();
    w.exit(1, 0, FailureClass::LostDevice).unwrap();
    w.plan();
    assert_eq!(runs_on(&w, 1, "train"), ["cpu"]);
}

#[test]
fn a_gang_grows_onto_devices_of_its_kind_only() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    trains(&mut w, 1, on(Device::Auto, "\"1..4\"", 0));
    joins(&mut w, 2, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 0, "2.27");
    w.after(20_000);
    assert!(!is_stopping(&w, 1), "two GPUs are more slots, and other numbers");
    w.join(3, "a", 1).unwrap();
    w.after(20_000);
    assert!(is_stopping(&w, 1));
    // It saves its state when it is stopped.
    w.command(w.checkpoint(1, 3)).unwrap();
    w.exit(1, 0, FailureClass::Stopped).unwrap();
    w.plan();
    assert_eq!(runs_on(&w, 1, "train"), ["cpu", "cpu"]);
}

#[test]
fn a_training_waits_for_the_gpu_that_a_probe_holds() {
    let begins = |first_is_cancelled: bool| {
        let mut w = one_gpu(4);
        w.submit_spec(1, on(Device::Auto, "1", 0));
        assert_eq!(runs_on(&w, 1, "probe"), ["cuda:0"]);
        w.submit_spec(2, on(Device::Auto, "1", 0));
        w.succeed(2, "probe");
        assert_eq!((w.ranks(2), w.why(2)), (0, "slots_busy"), "what it begins on it stays on");
        trains(&mut w, 3, on(Device::Cpu, "1", 0));
        if first_is_cancelled {
            w.command(Command::Cancel { job: job(1) }).unwrap();
            w.plan();
        } else {
            w.succeed(1, "probe");
            assert_eq!(runs_on(&w, 1, "train"), ["cuda:0"]);
        }
        runs_on(&w, 2, "train")
    };
    assert_eq!((begins(true), begins(false)), (vec!["cuda:0".to_owned()], Vec::new()));
}

#[test]
fn gpus_that_probes_hold_go_to_the_most_urgent_of_those_that_wait() {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 4, "2.27");
    for n in 1..=4 {
        w.submit_spec(n, on(Device::Auto, "1", if n < 3 { 0 } else { 1 }));
    }
    assert_eq!(runs_on(&w, 1, "probe"), ["cuda:0"]);
    assert_eq!(runs_on(&w, 2, "probe"), ["cuda:1"]);
    w.succeed(3, "probe");
    w.succeed(4, "probe");
    assert_eq!((w.ranks(3), w.ranks(4)), (0, 0));
    w.succeed(1, "probe");
    w.succeed(2, "probe");
    let all: Vec<String> = (1..=4).flat_map(|n| runs_on(&w, n, "train")).collect();
    assert_eq!((all, w.why(1)), (vec!["cuda:0".to_owned(), "cuda:1".to_owned()], "slots_busy"));
    w.succeed(4, "train");
    assert_eq!((runs_on(&w, 1, "train"), w.ranks(2)), (vec!["cuda:1".to_owned()], 0));
}

/// Jobs of histories: every other one is for GPUs, and none takes what the others do.
fn asked(n: u128, priorities: &[i32]) -> JobSpec {
    let device = if n.is_multiple_of(2) { Device::Cuda } else { Device::Cpu };
    on(device, ["1", "2", "\"1..3\""][n as usize / 2 % 3], priorities[n as usize])
}

fn is_cuda(job: &Job) -> bool {
    job.spec.cluster.device == Device::Cuda
}

/// Where the phases of all jobs of a kind are.
fn shown(w: &World, cuda: bool) -> Vec<String> {
    let at = |a: &Attempt| {
        let placed: Vec<_> = a.placements.iter().map(|p| (p.node.clone(), p.slot)).collect();
        (a.stopping.is_some(), placed)
    };
    let jobs = w.state.jobs.iter().filter(|(_, job)| is_cuda(job) == cuda);
    let phases = jobs.flat_map(|(id, job)| job.phases.iter().map(move |p| (id, p)));
    phases.map(|(id, p)| format!("{id} {} {:?} {:?}", p.id, p.status, p.attempt.as_ref().map(at))).collect()
}

/// What becomes of the jobs of a kind, step by step, where only those of the kinds that `takes_part` names are submitted.
fn history(steps: &[(u8, u128)], priorities: &[i32], takes_part: &[bool], cuda: bool) -> Vec<Vec<String>> {
    let mut w = World::new();
    joins(&mut w, 1, vec![gpu(0, "u0", "x"), gpu(1, "u1", "x")], 2, "2.27");
    joins(&mut w, 2, vec![gpu(0, "u2", "x")], 1, "2.27");
    let mut seen = Vec::new();
    for (what, n) in steps.iter().copied() {
        let there = w.state.jobs.contains_key(&job(n));
        let spec = asked(n, priorities);
        match what {
            3 => w.after(3_000),
            _ if !takes_part.contains(&(spec.cluster.device == Device::Cuda)) => {}
            0 if !there => w.submit_spec(n, spec),
            1 if there => {
                let running = ["probe", "train"].into_iter().find(|kind| w.phase(n, kind).attempt.is_some());
                running.into_iter().for_each(|kind| w.succeed(n, kind));
            }
            2 if there => {
                for rank in 0..w.ranks(n) as u32 {
                    // It may have said so before.
                    let _ = w.exit(n, rank, FailureClass::Stopped);
                }
                w.plan();
            }
            _ => {}
        }
        seen.push(shown(&w, cuda));
    }
    seen
}

/// Plans until nothing follows. Those that start are the first in line that do not pause, and the next one has no room.
fn plans_in_order(w: &mut World, slots: usize) -> Result<(), TestCaseError> {
    loop {
        let deadlines = DEADLINES();
        let events = plan(&w.state, &Context { now: w.now, deadlines: &deadlines, entropy: 1 });
        let started = events.iter().filter_map(|e| match e {
            Event::AttemptStarted { job, phase, placements, .. } => Some(((job, phase), placements.len())),
            _ => None,
        });
        let (started, taken): (Vec<_>, Vec<usize>) = started.unzip();
        let ready = queue(&w.state).into_iter().filter(|(_, _, p)| p.not_before_ms <= w.now);
        let ready: Vec<_> = ready.map(|(id, job, p)| ((id, &p.id), ranks(job, p).unwrap().0)).collect();
        let first: Vec<_> = ready.iter().take(started.len()).map(|(names, _)| *names).collect();
        prop_assert_eq!(&started, &first, "of {:?}", &ready);
        if events.is_empty() || !started.is_empty() {
            let left = slots - w.state.held().len() - taken.iter().sum::<usize>();
            prop_assert!(ready.get(started.len()).is_none_or(|(_, need)| *need > left), "{left} left of {ready:?}");
        }
        if events.is_empty() {
            return Ok(());
        }
        w.apply(events);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn jobs_that_share_no_slots_change_nothing_for_each_other(
        steps in prop::collection::vec((0u8..4, 0u128..8), 1..60),
        priorities in prop::collection::vec(0i32..3, 8),
    ) {
        for cuda in [false, true] {
            let together = history(&steps, &priorities, &[false, true], cuda);
            let alone = history(&steps, &priorities, &[cuda], cuda);
            prop_assert_eq!(together, alone);
        }
    }

    #[test]
    fn jobs_that_share_slots_start_in_their_order(
        steps in prop::collection::vec((0u8..4, 0u128..8), 1..60),
        priorities in prop::collection::vec(0i32..3, 8),
    ) {
        let mut w = World::new();
        w.join(1, "a", 4).unwrap();
        for (what, n) in steps {
            let there = w.state.jobs.contains_key(&job(n));
            let running = ["probe", "train"].into_iter().find(|k| there && w.phase(n, k).attempt.is_some());
            let _ = match (what, running) {
                (0, _) if !there => {
                    let spec = Box::new(on(Device::Auto, ["1", "2", "3", "\"1..4\""][n as usize % 4], priorities[n as usize]));
                    w.command(Command::Submit { job: job(n), key: n.to_string(), owner: "o".into(), spec, plan_only: false })
                }
                (1, Some("train")) => {
                    w.command(w.artifact(n, Artifact::MODEL)).unwrap();
                    w.command(w.result(n, "train"))
                }
                (1, Some(probe)) => w.command(w.result(n, probe)),
                (2, Some("train")) => w.command(w.exited(n, 0, FailureClass::Crash)),
                _ => {
                    w.now += 3_000;
                    let now = w.now;
                    w.state.nodes.values_mut().for_each(|n| n.seen_ms = now);
                    Ok(())
                }
            };
            plans_in_order(&mut w, 4)?;
        }
    }
}
