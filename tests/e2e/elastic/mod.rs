//! Ranks and coordinator as pure machines, under a seeded simulation of everything that can go wrong between them.
//!
//! One schedule is one number: a failure names it, and `SEED=n cargo test -p tl-tests elastic` plays it again.

mod checks;
mod faults;
mod host;
mod plan;
mod world;

use tl_coordinator::core::elastic::{Event, Limits};
use tl_engine::elastic::Plan;

use self::{
    faults::{ALL, Fault},
    plan::Run,
    world::World,
};

const RUN: Run = Run { steps: 100, publish_every: 8 };
/// When the last fault happens, in milliseconds of the simulation.
const FAULTS_END: u64 = 15_000;
/// By when a run must be over. The longest fault takes 8 s, a bench 64 s.
const PATIENCE: u64 = 240_000;

/// The schedules of a test; `SEED` names a single one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

/// Names the schedule if a check panics.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("schedule SEED={}", self.0);
        }
    }
}

/// Grains of all steps.
fn grains() -> u64 {
    (1..=RUN.steps).map(|k| RUN.grains(k) as u64).sum()
}

/// One schedule, to its end.
fn play(seed: u64, kinds: &[Fault], count: u64, (min, max): (usize, usize), ranks: usize) -> World {
    let _naming = Naming(seed);
    let mut world = World::new(seed, RUN, Limits::for_gang(min, max), ranks);
    world.plan_faults(kinds, count, FAULTS_END);
    let ended = world.until(PATIENCE, World::over);
    assert!(ended, "I10: not over after {PATIENCE} ms: {:#?}\n{:#?}", world.coordinator, world.log.last());
    world
}

/// Formations of the log, as (members, urgent).
fn formations(world: &World) -> Vec<(usize, bool)> {
    let formed = world.log.iter().filter_map(|e| match e {
        Event::Formed(f) => Some((f.members.len(), f.urgent)),
        _ => None,
    });
    formed.collect()
}

#[test]
fn whatever_breaks_each_sample_counts_once_and_the_run_ends() {
    let (mut restores, mut redone) = (0, 0);
    for seed in seeds(1_500) {
        let min = 1 + seed as usize % 2;
        let max = min + 1 + seed as usize % 3;
        let ranks = min + seed as usize / 3 % 4;
        let world = play(seed, &ALL, seed % 13, (min, max), ranks);
        restores += world.checks.restores;
        redone += u64::from(world.checks.work > grains());
        assert!(formations(&world).iter().all(|(members, _)| (min..=max).contains(members)), "SEED={seed}");
    }
    // Schedules that never come to it prove nothing.
    assert!(std::env::var("SEED").is_ok() || (restores > 50 && redone > 500), "{restores} restores, {redone} redone");
}

#[test]
fn without_faults_nothing_is_computed_twice() {
    for seed in seeds(50) {
        let world = play(seed, &[], 0, (1, 3), 3);
        assert_eq!(world.checks.work, grains(), "SEED={seed}");
    }
}

#[test]
fn who_joins_or_drains_costs_no_step() {
    let mut changes = 0;
    for seed in seeds(200) {
        let _naming = Naming(seed);
        let mut world = World::new(seed, RUN, Limits::for_gang(1, 4), 2);
        world.checks.only_planned = true;
        world.plan_faults(&[Fault::Join, Fault::Drain], 1 + seed % 3, FAULTS_END);
        // Somebody has to stay: a drain of everybody at once leaves nobody to take the state from.
        assert!(world.until(PATIENCE, World::over), "I10");
        let formed = formations(&world);
        if formed.iter().skip(1).all(|(_, urgent)| !urgent) {
            assert_eq!(world.checks.work, grains(), "I9: a step was computed again");
            changes += formed.len() - 1;
        }
    }
    assert!(std::env::var("SEED").is_ok() || changes > 200, "{changes} planned changes");
}

#[test]
fn a_coordinator_that_dies_anywhere_disturbs_nobody() {
    for seed in seeds(200) {
        let world = play(seed, &[Fault::Crash, Fault::CrashInside], 1 + seed % 5, (2, 2), 2);
        assert_eq!(formations(&world).len(), 1, "I8: SEED={seed}: {:?}", world.log);
        assert_eq!(world.checks.work, grains(), "I8: SEED={seed}");
    }
}

#[test]
fn survivors_without_a_coordinator_keep_their_state_safe_and_go_on_when_it_is_back() {
    for seed in seeds(20) {
        let _naming = Naming(seed);
        let mut world = World::new(seed, RUN, Limits::for_gang(1, 3), 3);
        let trains = |w: &World| {
            let all = formations(w).last().is_some_and(|(members, _)| *members == 3);
            all && matches!(w.log.last(), Some(Event::Committed { .. }))
        };
        assert!(world.until(PATIENCE, trains));
        // It stays away for long: nothing brings it back before.
        world.coordinator = None;
        world.hosts.values_mut().for_each(|h| h.session = None);
        let first = *world.hosts.keys().next().expect("a rank");
        world.dies(first, false);
        let before = world.log.len();
        let parked = world.until(world.now + 10_000, |w| w.hosts.values().filter(|h| h.parked).count() == 2);
        assert!(parked, "nobody parked");
        assert_eq!(world.log.len(), before, "nothing is decided without a coordinator");
        world.at(world.now + 1_000, world::Happen::Restart);
        assert!(world.until(PATIENCE, World::over), "I10");
        assert_eq!(world.checks.restores, 0, "the state was in memory all the time");
    }
}
