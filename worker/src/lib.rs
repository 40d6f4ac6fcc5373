//! The agent of a node: a session with the coordinator, one process per rank, all remote IO.

mod agent;
pub mod cli;
pub mod machine;
pub mod rank;
mod session;
mod store;
mod supervise;
