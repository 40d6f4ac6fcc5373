//! What breaks.

use tl_coordinator::core::elastic::Input;
use tl_engine::elastic::Input as RankInput;
use tl_proto::elastic::RankProcess;

use super::world::{Happen, SILENCE, World};

/// One thing that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process is killed.
    Kill,
    /// A machine vanishes without a word.
    Vanish,
    /// Everybody is killed at once.
    KillAll,
    /// A process is stopped for a while.
    Stop,
    /// Two ranks cannot reach each other for a while; both still reach the coordinator.
    Cut,
    /// A rank takes another one for dead that is well.
    FalseAlarm,
    /// A session with the coordinator breaks and is made anew.
    Disconnect,
    /// The coordinator dies.
    Crash,
    /// The coordinator dies in the middle of what it does next.
    CrashInside,
    /// One more process starts.
    Join,
    /// A process is to leave.
    Drain,
    /// A process will not get rid of its work.
    Stuck,
}

/// All of them.
pub const ALL: [Fault; 12] = [
    Fault::Kill,
    Fault::Vanish,
    Fault::KillAll,
    Fault::Stop,
    Fault::Cut,
    Fault::FalseAlarm,
    Fault::Disconnect,
    Fault::Crash,
    Fault::CrashInside,
    Fault::Join,
    Fault::Drain,
    Fault::Stuck,
];

impl World {
    /// `count` faults of some kinds at random times before `until`.
    pub fn plan_faults(&mut self, kinds: &[Fault], count: u64, until: u64) {
        for _ in 0..count {
            let time = self.draw.within(0, until);
            if let Some(kind) = self.draw.one_of(kinds) {
                self.at(time, Happen::Fault(kind));
            }
        }
    }

    fn anyone(&mut self) -> Option<RankProcess> {
        let all: Vec<_> = self.hosts.keys().copied().collect();
        self.draw.one_of(&all)
    }

    pub fn breaks(&mut self, fault: &Fault) {
        let Some(victim) = self.anyone() else { return };
        match fault {
            Fault::Kill | Fault::Vanish => {
                self.dies(victim, *fault == Fault::Vanish);
                self.later(300, 3_000, Happen::Spawn);
            }
            Fault::KillAll => {
                let all: Vec<_> = self.hosts.keys().copied().collect();
                for process in all {
                    self.dies(process, false);
                    self.later(300, 3_000, Happen::Spawn);
                }
            }
            Fault::Stop => {
                let resumes = self.now + self.draw.within(100, 8_000);
                if let Some(host) = self.hosts.get_mut(&victim) {
                    host.stopped_until = host.stopped_until.max(resumes);
                }
                self.seems_silent(victim, None);
            }
            Fault::Cut => {
                let Some(other) = self.anyone().filter(|o| *o != victim) else { return };
                let until = self.now + self.draw.within(100, 8_000);
                self.cut.insert((victim.min(other), victim.max(other)), until);
                self.seems_silent(victim, Some(other));
                self.seems_silent(other, Some(victim));
            }
            Fault::FalseAlarm => {
                let generation = self.hosts[&victim].rank.generation();
                let members = self.members(generation);
                let others: Vec<_> = (0..members.len()).filter(|s| members[*s] != victim).collect();
                if let Some(peer) = self.draw.one_of(&others) {
                    self.rank(victim, RankInput::Lost { generation, peer });
                }
            }
            Fault::Disconnect => {
                let seen = self.draw.within(1, 1_500);
                self.disconnect(victim, seen);
                self.later(1, 3_000, Happen::Connect(victim));
            }
            Fault::Crash => self.crash(),
            Fault::CrashInside => self.crash_after = Some(self.draw.within(0, 6) as usize),
            Fault::Join => self.spawn(),
            Fault::Drain => {
                self.coordinator(Input::Drain(victim));
                self.later(1, 500, Happen::Spawn);
            }
            Fault::Stuck => {
                if let Some(host) = self.hosts.get_mut(&victim) {
                    host.stuck = true;
                }
            }
        }
    }

    /// Its peers (or one of them) hear nothing of it any more.
    fn seems_silent(&mut self, victim: RankProcess, only: Option<RankProcess>) {
        let generation = self.newest_generation();
        let members = self.members(generation);
        if !members.contains(&victim) {
            return;
        }
        let peers = members.into_iter().filter(|m| *m != victim && only.is_none_or(|o| o == *m));
        for to in peers.collect::<Vec<_>>() {
            self.at(self.now + SILENCE, Happen::Silent { to, generation, peer: victim });
        }
    }
}
