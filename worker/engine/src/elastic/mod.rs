//! One rank's part in surviving the loss of another: a machine of states and messages, without sockets, clocks or
//! tensors.
//!
//! The host of a [`Rank`] feeds it what happens ([`Input`]) and carries out what it says ([`Output`]); the state that is
//! trained stays with the host. Three rules make a loss harmless:
//! - a rank sends its part of step `k + 1` only after it has applied `k`, so that within a generation nobody is more
//!   than one step ahead;
//! - having everybody's part of `k + 1` therefore proves that all have applied `k`; only then is `k` *committed*, and
//!   may be told to anybody outside;
//! - in a new generation the largest [`Stamp`](tl_proto::elastic::Stamp) wins, and everyone below it takes over the
//!   whole state of a rank that has it.
//!
//! Recovery restarts the rank processes today, so nothing drives this machine but its simulation, together with the
//! coordinator's machine, in `tests/e2e/elastic/`.

mod message;
mod rank;
mod reduce;

pub use message::{Frame, Input, Output, Tally};
pub use rank::Rank;

/// What a rank has to know about the run to check a step before it is applied. A function of the job alone.
pub trait Plan {
    /// Steps of the whole run.
    fn steps(&self) -> u64;

    /// Grains of a step, counted from 1.
    fn grains(&self, step: u64) -> usize;

    /// Samples of a step.
    fn samples(&self, step: u64) -> u64;

    /// Whether the state after a step is published.
    fn publishes(&self, step: u64) -> bool;
}
