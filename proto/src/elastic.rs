//! What ranks and the coordinator tell each other about membership, so that a gang survives the loss of a member.
//!
//! The coordinator decides who belongs to a generation, and nothing else; which state is the newest is found by the
//! ranks among themselves. The rank's side is `tl_engine::elastic`, the coordinator's `tl_coordinator::core::elastic`.

use serde::{Deserialize, Serialize};

/// One start of one rank process; never used twice within a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RankProcess(pub u64);

/// How new a rank's state is. The larger one wins, generation first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The generation in which the rank last held the state that all its members agreed on; 0 before the first.
    pub generation: u64,
    /// Steps applied to it.
    pub applied: u64,
}

/// A state that lies in the blob store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Steps applied to it.
    pub step: u64,
    /// Samples drawn up to it, as counted inside the state.
    pub samples: u64,
    /// What it hashes to. Not looked at for step 0, which every rank makes for itself.
    pub digest: u64,
}

/// Who trains together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// Its number; every formation of an attempt has a larger one.
    pub generation: u64,
    /// The members, by rank.
    pub members: Vec<RankProcess>,
    /// Whether the work under way is dropped. Otherwise all leave the generation before after the same step.
    pub urgent: bool,
    /// Nobody who held the newest agreed state is left: all start from this one instead.
    pub restore: Option<Saved>,
}

impl Formation {
    /// The rank of a process.
    pub fn rank_of(&self, process: RankProcess) -> Option<usize> {
        self.members.iter().position(|m| *m == process)
    }
}

/// Coordinator to rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The whole desired membership, also to those who are no longer in it.
    Form(Formation),
    /// Drop what is under way in this generation or an older one, and say where you are.
    Quiesce {
        /// The generation that is given up.
        generation: u64,
    },
    /// You are not a member of this generation: leave an older one, keep your state, wait.
    Fence {
        /// The newest generation.
        generation: u64,
    },
    /// Stop, all after the same step.
    Stop,
    /// The run is over; exit.
    Release,
}

/// Rank to coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Warm, and a member of nothing.
    Ready {
        /// Its state.
        stamp: Stamp,
    },
    /// At work in a generation.
    Standing {
        /// Which.
        generation: u64,
    },
    /// A peer does not answer.
    Suspect {
        /// Seen in this generation.
        generation: u64,
        /// The peer.
        peer: RankProcess,
    },
    /// Work in a generation is given up; the state is whole.
    Quiesced {
        /// The newest generation that the rank was a member of.
        generation: u64,
        /// Its state.
        stamp: Stamp,
    },
    /// A step is committed: every member has applied it.
    Progress {
        /// By this generation.
        generation: u64,
        /// The step; steps before it are as well.
        committed: u64,
        /// Samples drawn since the start of training, as counted inside the state.
        samples: u64,
    },
    /// A committed state lies in the blob store.
    Publish {
        /// By this generation.
        generation: u64,
        /// The state.
        saved: Saved,
    },
    /// The last step is committed.
    Finished {
        /// By this generation.
        generation: u64,
        /// The final state.
        saved: Saved,
    },
    /// Two members with equal stamps hold different states: a bug, or broken hardware.
    Diverged {
        /// Seen in this generation.
        generation: u64,
        /// The other one.
        peer: RankProcess,
    },
}
