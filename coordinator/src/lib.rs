//! The coordinator: takes jobs, places them on nodes, survives restarts, shows a dashboard.
//!
//! [`core`] is pure: it decides, applies and plans. [`driver`] is the only writer: it makes events durable and applies
//! them. [`rpc`] and [`web`] are the ways in; [`records`] keeps what ranks report, [`store`] puts everything on disk.

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
