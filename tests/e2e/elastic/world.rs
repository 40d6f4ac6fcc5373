//! A coordinator's machine, ranks' machines, the wires between them, and a clock: one seeded schedule at a time.

use std::collections::{BTreeMap, BTreeSet};

use tl_coordinator::core::elastic::{Effect, Elastic, Event, Input, Limits};
use tl_engine::elastic::{Frame, Input as RankInput};
use tl_proto::elastic::{Order, RankProcess, Report};

use super::{
    checks::Checks,
    faults::Fault,
    host::{Host, Mesh},
    plan::{Draw, Run, Trained},
};

/// Silence after which a peer is given up, in milliseconds.
pub const SILENCE: u64 = 1_000;
/// How long a mesh waits for all of its members.
pub const RENDEZVOUS: u64 = 3_000;

/// What happens at some time.
#[derive(Clone, Debug)]
pub enum Happen {
    /// The coordinator's clock.
    Tick,
    /// The coordinator comes back.
    Restart,
    /// On a session, from a rank.
    Report { session: u64, from: RankProcess, report: Report },
    /// A session is seen to have ended.
    Gone { session: u64, from: RankProcess },
    /// An agent says that a process has ended.
    Exited(RankProcess),
    /// On a session, to a rank.
    Order { session: u64, to: RankProcess, order: Order },
    /// A rank tries to connect.
    Connect(RankProcess),
    /// Something local to a rank; void if its work was dropped since (`work` differs).
    Local { to: RankProcess, work: Option<u64>, input: RankInput },
    /// The state to restore is there.
    Restored { to: RankProcess, work: u64, generation: u64, state: Trained },
    /// A peer's whole state is there.
    Taken { to: RankProcess, work: u64, generation: u64, from: usize, digest: u64 },
    /// A mesh may stand by now.
    Complete(u64),
    /// A mesh has to stand by now.
    Rendezvous { to: RankProcess, generation: u64 },
    /// A peer seems silent; `to` finds it lost if it still is.
    Silent { to: RankProcess, generation: u64, peer: RankProcess },
    /// An upload is done.
    Uploaded { from: RankProcess, report: Report, state: Trained },
    /// Something breaks.
    Fault(Fault),
    /// A new process starts.
    Spawn,
}

/// Everything.
pub struct World {
    pub run: Run,
    pub now: u64,
    pub draw: Draw,
    pub checks: Checks,
    pub coordinator: Option<Elastic>,
    pub limits: Limits,
    /// The coordinator's durable log.
    pub log: Vec<Event>,
    pub hosts: BTreeMap<RankProcess, Host>,
    pub meshes: BTreeMap<u64, Mesh>,
    /// Pairs that cannot reach each other, and until when.
    pub cut: BTreeMap<(RankProcess, RankProcess), u64>,
    pub blobs: BTreeMap<(u64, u64), Trained>,
    /// The coordinator dies after so many more effects.
    pub crash_after: Option<usize>,
    queue: BTreeMap<(u64, u64), Happen>,
    sequence: u64,
    links: BTreeMap<(u64, u64, u64), u64>,
    processes: u64,
    sessions: u64,
    /// Ended processes that the coordinator does not know of.
    unheard: BTreeSet<RankProcess>,
}

impl World {
    pub fn new(seed: u64, run: Run, limits: Limits, ranks: usize) -> Self {
        let mut world = Self {
            run,
            now: 0,
            draw: Draw::new(seed),
            checks: Checks::new(run),
            coordinator: Some(Elastic::replay(limits.clone(), [], 0)),
            limits,
            log: Vec::new(),
            hosts: BTreeMap::new(),
            meshes: BTreeMap::new(),
            cut: BTreeMap::new(),
            blobs: BTreeMap::new(),
            crash_after: None,
            queue: BTreeMap::new(),
            sequence: 0,
            links: BTreeMap::new(),
            processes: 0,
            sessions: 0,
            unheard: BTreeSet::new(),
        };
        world.at(50, Happen::Tick);
        (0..ranks).for_each(|_| world.spawn());
        world
    }

    /// Whether the run is over, as far as the coordinator's log tells.
    pub fn over(&self) -> bool {
        matches!(self.log.last(), Some(Event::Finished { .. }))
    }

    /// Goes on until `done`. False if it is not before `until`.
    pub fn until(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let Some(((time, sequence), what)) = self.queue.pop_first() else { return false };
            if time > until {
                self.queue.insert((time, sequence), what);
                return false;
            }
            self.now = time;
            match self.target(&what).and_then(|p| self.hosts.get(&p)).map(|h| h.stopped_until) {
                // A stopped process finds it when it goes on.
                Some(resumes) if resumes > time => drop(self.queue.insert((resumes, sequence), what)),
                _ => self.happens(what),
            }
        }
        true
    }

    pub fn at(&mut self, time: u64, what: Happen) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), what);
    }

    pub fn later(&mut self, from: u64, to: u64, what: Happen) {
        let delay = self.draw.within(from, to);
        self.at(self.now + delay, what);
    }

    /// Over a wire that keeps the order; `link` names it.
    pub fn on_wire(&mut self, link: (u64, u64, u64), not_before: u64, what: Happen) {
        let delay = self.draw.within(1, 8);
        let last = self.links.get(&link).copied().unwrap_or(0);
        let time = (self.now + delay).max(last).max(not_before);
        self.links.insert(link, time);
        self.at(time, what);
    }

    /// The process that has to be running for this to happen.
    fn target(&self, what: &Happen) -> Option<RankProcess> {
        match what {
            Happen::Order { to, .. }
            | Happen::Local { to, .. }
            | Happen::Restored { to, .. }
            | Happen::Taken { to, .. }
            | Happen::Rendezvous { to, .. }
            | Happen::Silent { to, .. }
            | Happen::Connect(to) => Some(*to),
            Happen::Uploaded { from, .. } => Some(*from),
            _ => None,
        }
    }

    pub fn spawn(&mut self) {
        self.processes += 1;
        let process = RankProcess(self.processes);
        self.hosts.insert(process, Host::new(process, self.run));
        self.later(1, 200, Happen::Connect(process));
        self.later(50, 100, Happen::Local { to: process, work: None, input: RankInput::Tick(self.now) });
    }

    fn happens(&mut self, what: Happen) {
        match what {
            Happen::Tick => {
                self.coordinator(Input::Tick);
                self.at(self.now + 50, Happen::Tick);
            }
            Happen::Restart => {
                self.coordinator = Some(Elastic::replay(self.limits.clone(), &self.log, self.now));
                let all: Vec<_> = self.hosts.keys().copied().collect();
                all.into_iter().for_each(|p| self.later(1, 250, Happen::Connect(p)));
                let unheard: Vec<_> = self.unheard.iter().copied().collect();
                unheard.into_iter().for_each(|p| self.later(50, 400, Happen::Exited(p)));
            }
            Happen::Report { session, from, report } => {
                let open = self.hosts.get(&from).is_none_or(|h| h.session == Some(session));
                if open && self.coordinator.is_some() {
                    self.coordinator(Input::Report { from, report });
                }
            }
            Happen::Gone { session, from } => {
                let newer = self.hosts.get(&from).is_some_and(|h| h.session.is_some_and(|s| s != session));
                if !newer {
                    self.coordinator(Input::Disconnected(from));
                }
            }
            Happen::Exited(process) => {
                if self.coordinator.is_some() {
                    self.unheard.remove(&process);
                    self.coordinator(Input::Exited(process));
                } else {
                    self.unheard.insert(process);
                }
            }
            Happen::Order { session, to, order } => {
                if self.hosts.get(&to).is_some_and(|h| h.session == Some(session)) {
                    self.rank(to, RankInput::Order(order));
                }
            }
            Happen::Connect(process) => self.connect(process),
            Happen::Fault(fault) => self.breaks(&fault),
            Happen::Spawn => self.spawn(),
            Happen::Complete(generation) => self.complete(generation),
            Happen::Local { to, work, input } => {
                if self.hosts.get(&to).is_some_and(|h| work.is_none_or(|w| w == h.work)) {
                    if matches!(input, RankInput::Tick(_)) {
                        let next = RankInput::Tick(self.now + 100);
                        self.at(self.now + 100, Happen::Local { to, work: None, input: next });
                    }
                    self.local(to, input);
                }
            }
            other => self.of_host(other),
        }
    }

    fn connect(&mut self, process: RankProcess) {
        let up = self.coordinator.is_some();
        let Some(host) = self.hosts.get_mut(&process) else { return };
        if host.session.is_some() {
            return;
        }
        if !up {
            return self.later(200, 250, Happen::Connect(process));
        }
        self.sessions += 1;
        host.session = Some(self.sessions);
        let unsent = host.unsent.clone();
        self.rank(process, RankInput::Connected);
        unsent.into_iter().for_each(|report| self.report(process, report));
    }

    /// Lets the coordinator's machine take something in, and carries out what follows.
    pub fn coordinator(&mut self, input: Input) {
        let Some(machine) = &mut self.coordinator else { return };
        let report = if let Input::Report { report, .. } = &input { Some(report.clone()) } else { None };
        for effect in machine.handle(input, self.now) {
            match &mut self.crash_after {
                Some(0) => return self.crash(),
                Some(left) => *left -= 1,
                None => {}
            }
            match effect {
                Effect::Record(event) => {
                    report.iter().for_each(|report| self.checks.hears(report, &event));
                    self.checks.records(&event);
                    self.log.push(event);
                }
                Effect::Tell(to, order) => {
                    if let Some(session) = self.hosts.get(&to).and_then(|h| h.session) {
                        self.on_wire((to.0, session, 0), 0, Happen::Order { session, to, order });
                    }
                }
            }
        }
    }

    /// The coordinator dies; what it had not yet made durable or sent is lost.
    pub fn crash(&mut self) {
        self.crash_after = None;
        if self.coordinator.take().is_some() {
            self.hosts.values_mut().for_each(|h| h.session = None);
            self.later(100, 3_000, Happen::Restart);
        }
    }

    /// Sends a report, if there is a session; what must arrive is kept for the next one.
    pub fn report(&mut self, from: RankProcess, report: Report) {
        let Some(host) = self.hosts.get_mut(&from) else { return };
        if matches!(report, Report::Publish { .. }) && !host.unsent.contains(&report) {
            host.unsent.push(report.clone());
        }
        if let Some(session) = host.session {
            self.on_wire((from.0, session, 1), 0, Happen::Report { session, from, report });
        }
    }

    /// Ends a session; the coordinator sees it after a while.
    pub fn disconnect(&mut self, process: RankProcess, seen_after: u64) {
        let Some(session) = self.hosts.get_mut(&process).and_then(|h| h.session.take()) else { return };
        let seen = self.now + seen_after;
        self.on_wire((process.0, session, 1), seen, Happen::Gone { session, from: process });
    }

    /// A process is no more. `silently`: nobody is told, not even by its machine.
    pub fn dies(&mut self, process: RankProcess, silently: bool) {
        if !self.hosts.contains_key(&process) {
            return;
        }
        self.disconnect(process, if silently { 1_500 } else { 5 });
        self.leave_mesh(process, if silently { SILENCE } else { 2 });
        self.hosts.remove(&process);
        if !silently {
            self.later(5, 60, Happen::Exited(process));
        }
    }

    /// Whether two processes cannot reach each other now, and until when.
    pub fn cut_until(&self, a: RankProcess, b: RankProcess) -> u64 {
        self.cut.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    /// Members of a generation.
    pub fn members(&self, generation: u64) -> Vec<RankProcess> {
        self.meshes.get(&generation).map(|m| m.members.clone()).unwrap_or_default()
    }

    /// A frame on the wire between two members.
    pub fn frame(&mut self, generation: u64, from: usize, to: usize, frame: Frame) {
        let members = self.members(generation);
        let (sender, receiver) = (members[from], members[to]);
        let link = (generation, sender.0, receiver.0);
        let cut = self.cut_until(sender, receiver);
        let input = RankInput::Frame { generation, from, frame };
        self.on_wire(link, cut, Happen::Local { to: receiver, work: None, input });
    }

    /// The newest generation that anybody has gone into.
    pub fn newest_generation(&self) -> u64 {
        self.meshes.keys().next_back().copied().unwrap_or(0)
    }
}
