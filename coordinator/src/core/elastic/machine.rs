//! The machine: `Collecting -> Meeting -> Running`, and back to `Collecting` when a member is lost.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::elastic::{Formation, Order, RankProcess, Report, Stamp};

use super::{Effect, Event, Input, Ledger, Limits, form};
use crate::core::state::Millis;

/// Where a rank said that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Not heard of since the coordinator started.
    Unknown,
    /// At rest, with this state; may become a member.
    Rest(Stamp),
    /// In a generation.
    Work,
}

/// What is known of a rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub at: At,
    /// When its connection ended, if it has.
    pub gone: Option<Millis>,
    /// Not taken in before; it could not be reached by others.
    pub benched: Millis,
    pub strikes: u32,
}

/// Where the gang stands.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Just started: members get time to come back.
    Recovering { until: Millis },
    /// The generation before is given up, the next not yet decided.
    Collecting { since: Millis, deadline: Millis, settled: Option<Millis> },
    /// Decided; nothing committed yet.
    Meeting { until: Millis },
    /// It trains.
    Running { since: Millis },
    /// It is over.
    Over,
}

/// The coordinator's side of one gang.
#[derive(Debug)]
pub struct Elastic {
    pub(super) limits: Limits,
    pub(super) ledger: Ledger,
    pub(super) peers: BTreeMap<RankProcess, Peer>,
    pub(super) draining: BTreeSet<RankProcess>,
    pub(super) exited: BTreeSet<RankProcess>,
    /// Who was suspected by whom in the newest generation.
    pub(super) suspects: BTreeMap<RankProcess, BTreeSet<RankProcess>>,
    phase: Phase,
    out: Vec<Effect>,
}

impl Elastic {
    /// The machine after a (re)start, from what was logged before.
    pub fn replay<'a>(limits: Limits, log: impl IntoIterator<Item = &'a Event>, now: Millis) -> Self {
        let mut ledger = Ledger::default();
        log.into_iter().for_each(|event| ledger.apply(event));
        let fresh = Peer { at: At::Unknown, gone: None, benched: 0, strikes: 0 };
        let peers = ledger.members().iter().map(|m| (*m, fresh)).collect();
        let phase = if ledger.over {
            Phase::Over
        } else if ledger.formation.is_none() {
            Phase::Collecting { since: now, deadline: now, settled: None }
        } else {
            Phase::Recovering { until: now + limits.grace_ms }
        };
        Self {
            limits,
            ledger,
            peers,
            draining: BTreeSet::new(),
            exited: BTreeSet::new(),
            suspects: BTreeMap::new(),
            phase,
            out: Vec::new(),
        }
    }

    /// What is durable.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes in what happened, and what follows from the time.
    pub fn handle(&mut self, input: Input, now: Millis) -> Vec<Effect> {
        match input {
            Input::Report { from, report } if !self.exited.contains(&from) => self.report(from, &report, now),
            Input::Report { .. } | Input::Tick => {}
            Input::Disconnected(p) => drop(self.peers.get_mut(&p).map(|peer| peer.gone = Some(now))),
            Input::Exited(p) => {
                self.exited.insert(p);
                self.peers.remove(&p);
            }
            Input::Drain(p) => drop(self.draining.insert(p)),
        }
        self.advance(now);
        std::mem::take(&mut self.out)
    }

    fn report(&mut self, from: RankProcess, report: &Report, now: Millis) {
        let current = self.ledger.generation();
        let peer = self.peers.entry(from).or_insert(Peer { at: At::Unknown, gone: None, benched: 0, strikes: 0 });
        peer.gone = None;
        if matches!(self.phase, Phase::Over) {
            return self.out.push(Effect::Tell(from, Order::Release));
        }
        match report {
            Report::Ready { stamp } => {
                peer.at = At::Rest(*stamp);
                if self.in_generation() && self.ledger.members().contains(&from) {
                    // It has not heard of it.
                    self.tell_membership(from, 0);
                }
            }
            Report::Standing { generation } => {
                peer.at = At::Work;
                if *generation < current {
                    self.tell_membership(from, *generation);
                } else if matches!(self.phase, Phase::Collecting { .. }) {
                    self.out.push(Effect::Tell(from, Order::Quiesce { generation: current }));
                }
            }
            Report::Quiesced { generation, stamp } => {
                peer.at = At::Rest(*stamp);
                if *generation == current {
                    self.collect(now);
                } else if self.in_generation() {
                    self.tell_membership(from, *generation);
                }
            }
            Report::Suspect { generation, peer } if *generation == current => {
                self.suspects.entry(*peer).or_default().insert(from);
                self.collect(now);
            }
            Report::Progress { generation, committed, samples } if *generation == current => {
                self.activate(now);
                if *committed > self.ledger.committed {
                    self.record(Event::Committed { generation: current, step: *committed, samples: *samples });
                }
            }
            Report::Publish { generation, saved } if *generation == current => {
                self.activate(now);
                if self.ledger.published.last().is_none_or(|p| p.step < saved.step) {
                    self.record(Event::Published { generation: current, saved: *saved });
                }
            }
            Report::Finished { generation, saved } if *generation == current => {
                self.activate(now);
                self.record(Event::Finished { generation: current, saved: *saved });
                self.release();
            }
            Report::Finished { generation, .. } if *generation < current => {
                peer.at = At::Work;
                self.tell_membership(from, *generation);
            }
            Report::Diverged { generation, peer } if *generation == current => {
                self.record(Event::Diverged { one: from, other: *peer });
                self.release();
            }
            // Of a generation that is no more: without effect.
            _ => {}
        }
    }

    /// Whether a generation is decided and not given up.
    fn in_generation(&self) -> bool {
        matches!(self.phase, Phase::Meeting { .. } | Phase::Running { .. } | Phase::Recovering { .. })
    }

    fn record(&mut self, event: Event) {
        self.ledger.apply(&event);
        self.out.push(Effect::Record(event));
    }

    fn release(&mut self) {
        self.phase = Phase::Over;
        self.out.extend(self.peers.keys().map(|p| Effect::Tell(*p, Order::Release)));
    }

    /// A generation has committed something: durable before anything that it reports.
    fn activate(&mut self, now: Millis) {
        let generation = self.ledger.generation();
        if self.ledger.active < generation {
            self.record(Event::Activated { generation });
        }
        if matches!(self.phase, Phase::Meeting { .. } | Phase::Recovering { .. }) {
            self.phase = Phase::Running { since: now };
        }
    }

    /// What a rank that is in an older generation has to know.
    fn tell_membership(&mut self, to: RankProcess, generation: u64) {
        let Some(f) = &self.ledger.formation else { return };
        // One that leaves by plan goes with the others; one that was left behind goes at once.
        let behind = f.urgent || generation + 1 < f.generation;
        let order = if f.rank_of(to).is_none() && behind {
            Order::Fence { generation: f.generation }
        } else {
            Order::Form(f.clone())
        };
        self.out.push(Effect::Tell(to, order));
    }

    /// Gives the generation up: members drop what is under way and say where they are.
    fn collect(&mut self, now: Millis) {
        let grace = match self.phase {
            Phase::Collecting { .. } | Phase::Over => return,
            Phase::Recovering { until } => until,
            Phase::Meeting { .. } | Phase::Running { .. } => now,
        };
        let deadline = grace.max(now + self.limits.quiesce_ms);
        self.phase = Phase::Collecting { since: now, deadline, settled: None };
        let generation = self.ledger.generation();
        let alive: Vec<RankProcess> = self.alive().collect();
        self.out.extend(alive.into_iter().map(|m| Effect::Tell(m, Order::Quiesce { generation })));
    }

    /// Members that are not known to have ended.
    fn alive(&self) -> impl Iterator<Item = RankProcess> + '_ {
        self.ledger.members().iter().copied().filter(|m| !self.exited.contains(m))
    }

    fn at(&self, p: RankProcess) -> At {
        self.peers.get(&p).map_or(At::Unknown, |p| p.at)
    }

    fn advance(&mut self, now: Millis) {
        let lost = self.ledger.members().iter().any(|m| {
            let gone = self.peers.get(m).and_then(|p| p.gone);
            self.exited.contains(m) || gone.is_some_and(|t| now >= t + self.limits.lease_ms)
        });
        match self.phase {
            Phase::Recovering { until } => {
                if lost || now >= until {
                    self.collect(now);
                } else if self.alive().all(|m| self.at(m) == At::Work) {
                    self.phase = Phase::Meeting { until: now + self.limits.meeting_ms };
                }
            }
            Phase::Meeting { until } if lost || now >= until => self.collect(now),
            Phase::Running { .. } if lost => self.collect(now),
            Phase::Running { since } => {
                let cooled = now >= since + self.limits.cooldown_ms;
                if let Some(members) = form::better(self, cooled, now) {
                    self.form(members, false, None, now);
                }
            }
            Phase::Collecting { since, deadline, settled } => {
                let answered = self.alive().all(|m| matches!(self.at(m), At::Rest(_)));
                if !answered && now < deadline {
                    return;
                }
                let from = settled.unwrap_or(now);
                self.phase = Phase::Collecting { since, deadline, settled: Some(from) };
                if now < from + self.limits.settle_ms {
                    return;
                }
                if answered {
                    form::bench(self, now);
                }
                // Somebody out of sight may still have the newest state.
                let patient = now < since + self.limits.lease_ms;
                if let Some((members, restore)) = form::next(self, patient, now) {
                    self.form(members, true, restore, now);
                }
            }
            Phase::Meeting { .. } | Phase::Over => {}
        }
    }

    fn form(
        &mut self,
        members: Vec<RankProcess>,
        urgent: bool,
        restore: Option<tl_proto::elastic::Saved>,
        now: Millis,
    ) {
        let formation = Formation { generation: self.ledger.generation() + 1, members, urgent, restore };
        self.record(Event::Formed(formation.clone()));
        self.suspects.clear();
        self.phase = Phase::Meeting { until: now + self.limits.meeting_ms };
        for (process, peer) in &mut self.peers {
            if formation.rank_of(*process).is_some() {
                peer.at = At::Work;
            }
            self.out.push(Effect::Tell(*process, Order::Form(formation.clone())));
        }
    }
}
