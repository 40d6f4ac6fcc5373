//! What goes into the machine and what comes out.

use std::ops::Range;

use tl_proto::elastic::{Formation, Order, RankProcess, Report, Stamp};

/// Counts that travel with a rank's part of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The grains whose gradients are in the part. Empty for the closing exchange.
    pub grains: Range<usize>,
    /// Samples in them.
    pub samples: u64,
    /// The sender knows of a newer generation.
    pub saw_newer: bool,
    /// The sender was asked to stop.
    pub wants_stop: bool,
}

/// Rank to rank, over the mesh of one generation; frames of another one never arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// What the sender has.
    Hello {
        /// Its stamp.
        stamp: Stamp,
        /// What its state hashes to.
        digest: u64,
    },
    /// The sender holds the agreed state.
    CaughtUp,
    /// The sender's part of a reduction.
    Part {
        /// The step to be applied, from 1; one more than the last for the closing exchange.
        step: u64,
        /// What is in it.
        tally: Tally,
    },
}

/// What happens to a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The coordinator says something.
    Order(Order),
    /// The connection with the coordinator is there (again).
    Connected,
    /// The mesh of a generation stands, and this is what the state hashes to.
    Met {
        /// The generation.
        generation: u64,
        /// Digest of the state.
        digest: u64,
    },
    /// A peer says something.
    Frame {
        /// In this generation.
        generation: u64,
        /// Its rank.
        from: usize,
        /// What it says.
        frame: Frame,
    },
    /// A peer is gone or silent.
    Lost {
        /// In this generation.
        generation: u64,
        /// Its rank.
        peer: usize,
    },
    /// Gradients of the own grains of a step are there.
    Computed {
        /// In this generation.
        generation: u64,
        /// The step.
        step: u64,
    },
    /// A step was applied.
    Applied {
        /// The step.
        step: u64,
    },
    /// The state of a peer, or of the blob store, has replaced the own one; its digest was checked.
    Loaded {
        /// In this generation.
        generation: u64,
    },
    /// What was under way is dropped, and the state is as it was before.
    Aborted {
        /// In this generation.
        generation: u64,
    },
    /// It is this late, in milliseconds.
    Tick(u64),
}

/// What the host has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell the coordinator, if it can be reached.
    Report(Report),
    /// Tell a peer.
    Send {
        /// Its rank.
        to: usize,
        /// What.
        frame: Frame,
    },
    /// Connect with all members (and load the state to restore, first), then say [`Input::Met`].
    Meet(Formation),
    /// Stream the whole state to these ranks.
    Give {
        /// Ranks.
        to: Vec<usize>,
    },
    /// Receive the whole state from a rank, check its digest, swap it in, then say [`Input::Loaded`].
    Take {
        /// The rank.
        from: usize,
        /// What it must hash to.
        digest: u64,
    },
    /// Compute the gradients of these grains of a step, then say [`Input::Computed`].
    Compute {
        /// The step.
        step: u64,
        /// Own grains.
        grains: Range<usize>,
    },
    /// Report [`Report::Progress`] with the counters inside the state as it is now.
    Commit {
        /// Steps applied to it.
        step: u64,
    },
    /// Upload the state as it is now, and report [`Report::Publish`] when it is there.
    Publish {
        /// Steps applied to it.
        step: u64,
    },
    /// Apply the reduced gradients, then say [`Input::Applied`]. Cannot fail half-way.
    Apply {
        /// The step.
        step: u64,
    },
    /// Drop what is under way, close the mesh, then say [`Input::Aborted`].
    Abort {
        /// Of this generation.
        generation: u64,
    },
    /// Waited long for the coordinator: keep the state safe on this machine.
    Park,
    /// Report [`Report::Finished`] with the final state.
    Finish {
        /// Steps applied to it.
        step: u64,
    },
    /// End the process; the reason is for the log.
    Exit(&'static str),
    /// Report that a peer holds another state under the same stamp, and end the process.
    Diverged(RankProcess),
}
