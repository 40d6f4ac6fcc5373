//! The coordinator's mind, without IO: commands are decided, events applied, what follows from the state planned.
//!
//! `decide(&State, Command, now)` says yes with events or no with a reason; `apply` never fails; `plan` looks at a state
//! and says what should happen next. Time and randomness are arguments. Planning after a plan was applied plans nothing.

mod apply;
mod command;
mod decide;
mod devices;
pub mod elastic;
mod event;
mod gate;
pub mod invariants;
mod models;
mod placement;
mod plan;
mod round;
mod stake;
mod state;
mod teach;
#[cfg(test)]
mod tests;
mod why;

pub use apply::apply;
pub use command::{Command, Refusal};
pub use decide::decide;
pub use devices::withheld;
pub use event::{End, Event};
pub use plan::{Context, plan};
pub use stake::blobs_at_stake;
pub use state::{
    Artifact, Attempt, Blob, DataSet, Job, JobStatus, Millis, Model, Node, NodeStatus, Phase, PhaseKind, PhaseStatus,
    Placement, RanOn, Slot, State, Unit,
};
pub use teach::came_to;
pub use why::{On, Wait, why};
