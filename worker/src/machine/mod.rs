//! The machine: what it is made of, which of its GPUs work, and how its cores are shared out.
//!
//! [`inventory`] is what the coordinator is told when the agent starts. GPUs are found and tried by processes of their own, of
//! which [`look`] is both ends. One that fails a rank later is in `quarantine` until it works again. `threads` shares the cores
//! out. For people there are [`doctor`], which tries what a rank does, and [`device`], what a command computes on without a
//! cluster.

pub mod device;
pub mod doctor;
pub mod inventory;
pub mod look;
pub(crate) mod quarantine;
pub(crate) mod threads;
