//! Processes of ranks: what runs here is what the coordinator wants.

pub(crate) mod command;
mod courier;
mod features;
pub(crate) mod ipc;
pub(crate) mod orphans;
pub(crate) mod process;
pub(crate) mod spawner;
pub(crate) mod supervisor;
mod weights;
