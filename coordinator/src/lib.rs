//! The coordinator: takes jobs, places them on nodes, survives restarts, shows a dashboard.

pub mod core;
pub mod store;
