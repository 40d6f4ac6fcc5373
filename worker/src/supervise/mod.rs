//! Processes of ranks: what runs on this node is what the coordinator wants, one process per launch.
//!
//! [`supervisor`] compares the two, and starts and stops. [`process`] is the life of one rank. Before it starts, [`weights`]
//! and [`features`] bring what it needs beside its models and data sets. [`command`] says what is run, [`spawner`] starts it,
//! and [`orphans`] sees that it ends with its agent. What the two tell each other is in [`ipc`]. [`courier`] takes the files
//! that the rank leaves to the blob store.

pub(crate) mod command;
mod courier;
mod features;
pub(crate) mod ipc;
pub(crate) mod orphans;
pub(crate) mod process;
pub(crate) mod spawner;
pub(crate) mod supervisor;
mod weights;
