//! What is said between this node and the coordinator.

pub(crate) mod control;
pub(crate) mod outbox;
pub(crate) mod remote;
pub(crate) mod report;
