//! What a process does for its rank's machine: the mesh, the state, the work.

use std::collections::BTreeSet;

use tl_engine::elastic::{Frame, Input, Output, Rank};
use tl_proto::elastic::{Formation, RankProcess, Report, Stamp};

use super::{
    plan::{Run, Trained},
    world::{Happen, RENDEZVOUS, World},
};

/// One process.
pub struct Host {
    pub rank: Rank<Run>,
    pub state: Trained,
    /// Counts how often the work under way was dropped.
    pub work: u64,
    pub session: Option<u64>,
    /// Stopped by a signal until then.
    pub stopped_until: u64,
    /// Dropping work takes too long.
    pub stuck: bool,
    /// Published, and perhaps not yet heard.
    pub unsent: Vec<Report>,
    /// Has kept its state safe on its machine.
    pub parked: bool,
}

impl Host {
    pub fn new(process: RankProcess, run: Run) -> Self {
        Self {
            rank: Rank::new(process, run, Stamp::default()),
            state: Trained::default(),
            work: 0,
            session: None,
            stopped_until: 0,
            stuck: false,
            unsent: Vec::new(),
            parked: false,
        }
    }
}

/// The connections of one generation.
#[derive(Debug, Default)]
pub struct Mesh {
    pub members: Vec<RankProcess>,
    arrived: BTreeSet<usize>,
    left: BTreeSet<usize>,
    complete: bool,
    /// The state that is streamed, and by whom.
    given: Option<(usize, Trained)>,
    /// Who waits for it.
    takers: Vec<(RankProcess, u64, u64)>,
}

impl World {
    /// Lets a rank's machine take something in, and carries out what it says.
    pub fn rank(&mut self, process: RankProcess, input: Input) {
        let Some(host) = self.hosts.get_mut(&process) else { return };
        for output in host.rank.handle(input) {
            if !self.carry_out(process, output) {
                return;
            }
        }
    }

    /// Something local happened; what changes the state is done first.
    pub fn local(&mut self, process: RankProcess, input: Input) {
        if let Input::Applied { .. } = input {
            let run = self.run;
            let Some(host) = self.hosts.get_mut(&process) else { return };
            let generation = host.rank.generation();
            let before = host.state;
            host.state = before.after(&run, generation);
            let state = host.state;
            let members = self.members(generation);
            self.checks.applied(generation, &members, process, (before, state));
        }
        self.rank(process, input);
    }

    /// False if the process has ended.
    fn carry_out(&mut self, me: RankProcess, output: Output) -> bool {
        let Some(host) = self.hosts.get(&me) else { return false };
        let (generation, state, work) = (host.rank.generation(), host.state, host.work);
        let seat = |world: &Self| world.meshes[&generation].members.iter().position(|m| *m == me).expect("a member");
        match output {
            Output::Report(report) => {
                if let Report::Ready { stamp } | Report::Quiesced { stamp, .. } = report {
                    self.checks.says(stamp, state);
                }
                self.report(me, report);
            }
            Output::Send { to, frame } => {
                if matches!(frame, Frame::CaughtUp | Frame::Part { .. }) {
                    self.checks.holds(generation, me, state);
                }
                let from = seat(self);
                self.frame(generation, from, to, frame);
            }
            Output::Meet(formation) => self.meet(me, &formation),
            Output::Give { to } => {
                let from = seat(self);
                assert!(!to.contains(&from));
                let mesh = self.meshes.get_mut(&generation).expect("a mesh");
                mesh.given = Some((from, state));
                for (to, work, digest) in std::mem::take(&mut mesh.takers) {
                    self.later(20, 300, Happen::Taken { to, work, generation, from, digest });
                }
            }
            Output::Take { from, digest } => {
                let mesh = self.meshes.get_mut(&generation).expect("a mesh");
                if mesh.given.is_some() {
                    self.later(20, 300, Happen::Taken { to: me, work, generation, from, digest });
                } else {
                    mesh.takers.push((me, work, digest));
                }
            }
            Output::Compute { step, grains } => {
                let rank = seat(self);
                self.checks.holds(generation, me, state);
                self.checks.computes(generation, step, rank, grains, state);
                let input = Input::Computed { generation, step };
                self.later(10, 120, Happen::Local { to: me, work: Some(work), input });
            }
            Output::Apply { step } => {
                self.checks.applies(generation, step, state);
                self.later(1, 15, Happen::Local { to: me, work: None, input: Input::Applied { step } });
            }
            Output::Commit { step } => {
                assert_eq!(step, state.applied, "the counters inside the state are those of the step");
                self.checks.holds(generation, me, state);
                let members = self.members(generation);
                self.checks.commits(generation, &members, step);
                self.report(me, Report::Progress { generation, committed: step, samples: state.samples });
            }
            Output::Publish { step } => {
                assert_eq!(step, state.applied);
                let report = Report::Publish { generation, saved: state.saved() };
                self.later(20, 600, Happen::Uploaded { from: me, report, state });
            }
            Output::Finish { step } => {
                assert_eq!(step, state.applied);
                self.checks.holds(generation, me, state);
                let members = self.members(generation);
                self.checks.commits(generation, &members, step);
                self.report(me, Report::Finished { generation, saved: state.saved() });
            }
            Output::Abort { generation } => {
                let stuck = host.stuck;
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.work += 1;
                    host.stuck = false;
                }
                self.leave_mesh(me, 2);
                let input = Input::Aborted { generation };
                let (from, to) = if stuck { (2_500, 3_000) } else { (1, 60) };
                self.later(from, to, Happen::Local { to: me, work: Some(work + 1), input });
            }
            Output::Park => {
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.parked = true;
                }
            }
            Output::Exit(why) => {
                assert!(!why.contains("parts of a step"), "I4: {why}");
                self.dies(me, false);
                if !self.over() {
                    self.later(100, 1_000, Happen::Spawn);
                }
                return false;
            }
            Output::Diverged(peer) => panic!("I2: {me:?} and {peer:?} hold different states of one stamp"),
        }
        true
    }

    fn meet(&mut self, me: RankProcess, formation: &Formation) {
        let generation = formation.generation;
        if !formation.urgent && formation.restore.is_none() && generation > 1 {
            let mesh = &self.meshes[&(generation - 1)];
            if mesh.left.len() == mesh.members.len() {
                let members = mesh.members.clone();
                self.checks.left_by_plan(generation - 1, &members);
            }
        }
        self.meshes.entry(generation).or_insert_with(|| Mesh { members: formation.members.clone(), ..Mesh::default() });
        let Some(host) = self.hosts.get_mut(&me) else { return };
        let work = host.work;
        match formation.restore {
            Some(saved) => {
                let state = match saved.step {
                    0 => Trained::default(),
                    step => self.blobs[&(step, saved.digest)],
                };
                self.later(20, 200, Happen::Restored { to: me, work, generation, state });
            }
            None => self.arrives(me, generation),
        }
    }

    fn arrives(&mut self, me: RankProcess, generation: u64) {
        let Some(mesh) = self.meshes.get_mut(&generation) else { return };
        if let Some(seat) = mesh.members.iter().position(|m| *m == me) {
            mesh.arrived.insert(seat);
        }
        let members = self.members(generation);
        self.at(self.now + RENDEZVOUS, Happen::Rendezvous { to: me, generation });
        let clear = members.iter().map(|m| self.cut_until(me, *m)).max().unwrap_or(0);
        self.at(clear, Happen::Complete(generation));
        self.complete(generation);
    }

    /// Everybody is there and can reach everybody: the mesh stands.
    pub fn complete(&mut self, generation: u64) {
        let Some(mesh) = self.meshes.get(&generation) else { return };
        let members = mesh.members.clone();
        let reach = |a: RankProcess| members.iter().all(|b| self.cut_until(a, *b) <= self.now);
        let whole = mesh.arrived.len() == members.len() && mesh.left.is_empty() && !mesh.complete;
        if !(whole && members.iter().all(|m| reach(*m))) {
            return;
        }
        if let Some(mesh) = self.meshes.get_mut(&generation) {
            mesh.complete = true;
        }
        for to in members {
            let Some(host) = self.hosts.get(&to) else { continue };
            let (digest, work) = (host.state.digest, Some(host.work));
            self.later(2, 40, Happen::Local { to, work, input: Input::Met { generation, digest } });
        }
    }

    /// A process is no part of its mesh any more; its peers find that out after a while.
    pub fn leave_mesh(&mut self, me: RankProcess, after: u64) {
        let Some(generation) = self.hosts.get(&me).map(|h| h.rank.generation()) else { return };
        let Some(mesh) = self.meshes.get_mut(&generation) else { return };
        let Some(seat) = mesh.members.iter().position(|m| *m == me) else { return };
        if !mesh.left.insert(seat) || !mesh.complete {
            return;
        }
        for to in mesh.members.clone().into_iter().filter(|m| *m != me) {
            let input = Input::Lost { generation, peer: seat };
            let not_before = self.now + after;
            self.on_wire((generation, me.0, to.0), not_before, Happen::Local { to, work: None, input });
        }
    }

    /// What concerns one process.
    pub fn of_host(&mut self, what: Happen) {
        match what {
            Happen::Restored { to, work, generation, state } => {
                let Some(host) = self.hosts.get_mut(&to).filter(|h| h.work == work) else { return };
                host.state = state;
                self.rank(to, Input::Loaded { generation });
                self.arrives(to, generation);
            }
            Happen::Taken { to, work, generation, from, digest } => {
                let given = self.meshes.get(&generation).filter(|m| !m.left.contains(&from)).and_then(|m| m.given);
                let Some(host) = self.hosts.get_mut(&to).filter(|h| h.work == work) else { return };
                // Its source may have gone in the middle; then the peer is lost, and this never ends.
                let Some((source, state)) = given else { return };
                assert_eq!((source, state.digest), (from, digest), "I6: another state was promised");
                host.state = state;
                self.rank(to, Input::Loaded { generation });
            }
            Happen::Rendezvous { to, generation } => {
                let Some(mesh) = self.meshes.get(&generation).filter(|m| !m.complete) else { return };
                let missing = |seat: &usize| {
                    let there = mesh.arrived.contains(seat) && !mesh.left.contains(seat);
                    mesh.members[*seat] != to && (!there || self.cut_until(mesh.members[*seat], to) > self.now)
                };
                // Where all can reach this one, two others cannot reach each other; one of them will say so.
                if let Some(peer) = (0..mesh.members.len()).find(missing) {
                    self.rank(to, Input::Lost { generation, peer });
                }
            }
            Happen::Silent { to, generation, peer } => {
                let stopped = self.hosts.get(&peer).is_none_or(|h| h.stopped_until > self.now);
                let cut = self.cut_until(to, peer) > self.now;
                let seat = self.members(generation).iter().position(|m| *m == peer);
                if let Some(peer) = seat.filter(|_| stopped || cut) {
                    self.rank(to, Input::Lost { generation, peer });
                }
            }
            Happen::Uploaded { from, report, state } => {
                self.blobs.insert((state.applied, state.digest), state);
                self.report(from, report);
            }
            _ => {}
        }
    }
}
