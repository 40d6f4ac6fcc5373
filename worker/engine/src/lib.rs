//! The training library of `tl`: layers, backbones, objectives, data, optimizers, the loop, collectives, checkpoints.
//!
//! Synchronous. It sees local paths and its [`link::Link`] only: no sockets but those of its peers, no clocks that steer
//! a result, no coordinator.

pub mod backbone;
pub mod data;
mod error;
pub mod modifier;
pub mod nn;
pub mod num;
pub mod objective;
pub mod optim;
pub mod weights;

pub use error::{Error, Result};
