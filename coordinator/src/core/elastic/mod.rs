//! Who belongs to a gang, generation by generation, while ranks die, hang, come back and join.
//!
//! Pure: a machine per attempt takes what happens ([`Input`]) and says what to write and whom to tell ([`Effect`]). It
//! decides membership only; which state is the newest is found by the ranks. Two rules keep what was published true:
//! - the first report of a generation makes it *active*, durably, before the report counts;
//! - a new generation needs a member whose state is of the active generation or a newer one. Where there is none left,
//!   everybody starts from the newest published state, by an explicit restore that takes the ledger back with it.
//!
//! The ranks' side is `tl_engine::elastic`. Recovery restarts the rank processes today, so nothing drives this machine
//! but its simulation in `tests/e2e/elastic/`.

mod form;
mod ledger;
mod machine;

use tl_proto::elastic::{Order, RankProcess, Report};

pub use ledger::{Event, Ledger};
pub use machine::Elastic;

use super::state::Millis;

/// How many ranks may train together, and how long things may take. The defaults are those of the design.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fewer never train.
    pub min: usize,
    /// More never train.
    pub max: usize,
    /// How long members have to drop what is under way and say where they are.
    pub quiesce_ms: Millis,
    /// How long faults that come together are gathered.
    pub settle_ms: Millis,
    /// How long a generation may take to its first committed step.
    pub meeting_ms: Millis,
    /// How long a member may be out of sight, and how long the newest state is waited for.
    pub lease_ms: Millis,
    /// After a restart nobody is declared dead before.
    pub grace_ms: Millis,
    /// How long a generation runs undisturbed before it grows.
    pub cooldown_ms: Millis,
}

impl Limits {
    /// For a gang of `min..=max` ranks.
    pub fn for_gang(min: usize, max: usize) -> Self {
        Self {
            min,
            max,
            quiesce_ms: 1_000,
            settle_ms: 100,
            meeting_ms: 20_000,
            lease_ms: 5_000,
            grace_ms: 5_000,
            cooldown_ms: 5_000,
        }
    }
}

/// What happens to a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A rank says something.
    Report {
        /// Who.
        from: RankProcess,
        /// What.
        report: Report,
    },
    /// A rank's connection ended; it may live.
    Disconnected(RankProcess),
    /// A rank's process has ended, says its agent.
    Exited(RankProcess),
    /// A rank is to be taken out when it costs nothing.
    Drain(RankProcess),
    /// Time has passed.
    Tick,
}

/// What follows, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write it to the log; what comes after waits until it is durable.
    Record(Event),
    /// Tell a rank, if it can be reached.
    Tell(RankProcess, Order),
}
