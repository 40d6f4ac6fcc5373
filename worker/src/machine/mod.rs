//! The machine: what it is made of, and which of its GPUs work.

pub mod device;
pub mod doctor;
pub mod inventory;
pub mod look;
pub(crate) mod quarantine;
pub(crate) mod threads;
