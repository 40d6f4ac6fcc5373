//! The coordinator: takes jobs, places them on nodes, survives restarts, shows a dashboard.
//!
//! [`core`] is pure: it decides, applies and plans. [`driver`] is the only writer: it makes events durable and applies
//! them. [`rpc`] and [`web`] are the ways in; [`records`] keeps what ranks report, [`store`] puts everything on disk.
//!
//! Map work, which is what frozen teachers say of samples, has no machinery of its own: each unit of it is a phase on one
//! slot, beside probes and gangs. A gang over all idle slots would have been as short, but one lost node would have started
//! all of it anew, and it could only have been placed where its ranks reach each other. Frozen prefixes of the network that
//! is trained are computed by its ranks, who share them: those of later stages depend on what is trained before.

pub mod cli;
mod clock;
pub mod config;
pub mod core;
pub mod driver;
pub mod records;
pub mod rpc;
mod serve;
pub mod store;
pub mod web;

pub use serve::{Bound, Error, run};
