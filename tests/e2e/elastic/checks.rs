//! What must hold in every schedule. The numbers are those of the design's list of invariants.

use std::{collections::BTreeMap, ops::Range};

use tl_coordinator::core::elastic::Event;
use tl_engine::elastic::Plan;
use tl_proto::elastic::{RankProcess, Report, Saved, Stamp};

use super::plan::{Run, Trained};

/// Looks at everything that happens, and panics at the first thing that must not.
#[derive(Debug)]
pub struct Checks {
    run: Run,
    /// State after a step, as the first rank of a generation had it.
    states: BTreeMap<(u64, u64), Trained>,
    /// What each state was made from, by digest.
    parents: BTreeMap<u64, u64>,
    /// Grains that were computed for a step, by rank, within a generation.
    computed: BTreeMap<(u64, u64), BTreeMap<usize, Range<usize>>>,
    /// The newest step that each member has applied within a generation.
    standing: BTreeMap<u64, BTreeMap<RankProcess, u64>>,
    /// Grains computed, over all generations; what is above one each was done again.
    pub work: u64,
    published: Vec<Saved>,
    committed: u64,
    generation: u64,
    /// Restores that the log tells of.
    pub restores: u64,
    /// Nothing breaks: members of a generation leave it after the same step.
    pub only_planned: bool,
}

impl Checks {
    pub fn new(run: Run) -> Self {
        Self {
            run,
            states: BTreeMap::new(),
            parents: BTreeMap::new(),
            computed: BTreeMap::new(),
            standing: BTreeMap::new(),
            work: 0,
            published: Vec::new(),
            committed: 0,
            generation: 0,
            restores: 0,
            only_planned: false,
        }
    }

    /// A member holds a state in a generation. I2: one per generation and step.
    pub fn holds(&mut self, generation: u64, who: RankProcess, state: Trained) {
        let first = *self.states.entry((generation, state.applied)).or_insert(state);
        assert_eq!(first, state, "I2: two states after step {} of generation {generation}", state.applied);
        self.standing.entry(generation).or_default().insert(who, state.applied);
    }

    /// A rank starts to compute: it must hold the agreed state. I6.
    pub fn computes(&mut self, generation: u64, step: u64, rank: usize, grains: Range<usize>, state: Trained) {
        assert_eq!(state.applied + 1, step);
        assert_eq!(
            self.states.get(&(generation, state.applied)),
            Some(&state),
            "I6: rank {rank} computes step {step} on another state"
        );
        self.work += grains.len() as u64;
        let before = self.computed.entry((generation, step)).or_default().insert(rank, grains);
        assert_eq!(before, None, "rank {rank} computes step {step} of generation {generation} twice");
    }

    /// A rank is about to apply a step. I4: every grain is in it exactly once.
    pub fn applies(&mut self, generation: u64, step: u64, state: Trained) {
        assert_eq!(state.applied + 1, step, "I11: the state changed in between");
        let mut seen = vec![0; self.run.grains(step)];
        let parts = self.computed.get(&(generation, step)).into_iter().flat_map(BTreeMap::values);
        parts.for_each(|grains| grains.clone().for_each(|g| seen[g] += 1));
        assert!(seen.iter().all(|n| *n == 1), "I4: step {step} of generation {generation} holds {seen:?}");
    }

    /// A rank has applied a step. I1: nobody in its generation is more than one behind.
    pub fn applied(
        &mut self,
        generation: u64,
        members: &[RankProcess],
        who: RankProcess,
        (before, state): (Trained, Trained),
    ) {
        self.parents.insert(state.digest, before.digest);
        self.holds(generation, who, state);
        let standing = &self.standing[&generation];
        for member in members {
            let at = standing.get(member).copied();
            assert!(
                at.is_some_and(|at| at + 1 >= state.applied),
                "I1: {member:?} is at {at:?}, {who:?} at {} in generation {generation}",
                state.applied
            );
        }
    }

    /// A rank says how new its state is. I11: exactly as new as the state is.
    pub fn says(&self, stamp: Stamp, state: Trained) {
        assert_eq!(stamp.applied, state.applied, "I11: a rank says what it does not hold");
    }

    /// A rank says that a step is committed; everybody has applied it.
    pub fn commits(&self, generation: u64, members: &[RankProcess], step: u64) {
        let standing = self.standing.get(&generation);
        for member in members {
            let at = standing.and_then(|s| s.get(member)).copied();
            assert!(at.is_some_and(|at| at >= step), "step {step} is called committed, {member:?} is at {at:?}");
        }
    }

    /// All members of a generation that was left by plan have left it after the same step. I9.
    pub fn left_by_plan(&self, generation: u64, members: &[RankProcess]) {
        let Some(standing) = self.standing.get(&generation).filter(|_| self.only_planned) else { return };
        let ends: Vec<u64> = members.iter().filter_map(|m| standing.get(m).copied()).collect();
        assert!(ends.windows(2).all(|w| w[0] == w[1]), "I9: generation {generation} was left after {ends:?}");
    }

    /// The coordinator writes something down because of a report. I5: not because of one of an older generation.
    pub fn hears(&self, report: &Report, event: &Event) {
        let (Report::Progress { generation, .. }
        | Report::Publish { generation, .. }
        | Report::Finished { generation, .. }) = report
        else {
            return;
        };
        // A formation may follow from anything: it is time that makes it due.
        let effect = !matches!(event, Event::Formed(_) | Event::Diverged { .. });
        assert!(!effect || *generation >= self.generation, "I5: {event:?} follows from {report:?}");
    }

    /// The coordinator writes something down.
    pub fn records(&mut self, event: &Event) {
        let of = |generation: u64| assert_eq!(generation, self.generation, "I5: {event:?} is of an older generation");
        match event {
            Event::Formed(f) => {
                assert!(f.generation > self.generation, "I8: {event:?} after generation {}", self.generation);
                self.generation = f.generation;
                if let Some(saved) = f.restore {
                    self.restores += 1;
                    let known = saved.step == 0 || self.published.contains(&saved);
                    assert!(known, "restored what was never published: {saved:?}");
                    assert!(saved.step <= self.committed, "I3: restored {saved:?} after {}", self.committed);
                    self.published.retain(|p| p.step <= saved.step);
                    self.committed = saved.step;
                }
            }
            Event::Activated { generation } => of(*generation),
            Event::Committed { generation, step, samples } => {
                of(*generation);
                assert!(*step > self.committed, "I3: committed {step} after {}", self.committed);
                assert_eq!(*samples, self.run.samples_until(*step), "I7: samples of step {step}");
                self.committed = *step;
            }
            Event::Published { generation, saved } => {
                of(*generation);
                let last = self.published.last().copied().unwrap_or(Trained::default().saved());
                assert!(saved.step > last.step, "I3: published {saved:?} after {last:?}");
                let mut from = saved.digest;
                (last.step..saved.step).for_each(|_| from = self.parents[&from]);
                assert_eq!(from, last.digest, "I3: {saved:?} does not come from {last:?}: the history has forked");
                assert_eq!(saved.samples, self.run.samples_until(saved.step), "I7: samples of step {}", saved.step);
                self.published.push(*saved);
                self.committed = self.committed.max(saved.step);
            }
            Event::Finished { generation, saved } => {
                of(*generation);
                assert_eq!(saved.step, self.run.steps, "it ends with its last step");
                assert_eq!(saved.samples, self.run.samples_until(saved.step), "I7: samples at the end");
            }
            Event::Diverged { one, other } => panic!("I2: {one:?} and {other:?} hold different states"),
        }
    }
}
