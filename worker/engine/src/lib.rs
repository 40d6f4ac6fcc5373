//! The training library of `tl`: layers, backbones, objectives, data, optimizers, the loop, collectives, checkpoints.
//! A new technique is one file in one of these folders, and a line in the list of its `mod.rs`.
//!
//! Synchronous. It sees local paths and its [`link::Link`] only: no sockets but those of its peers, no clocks that steer
//! a result, no coordinator. Layers compute on the host, or where [`gpu::Place`] says; losses and all above them on the host.

pub mod backbone;
pub mod cache;
pub mod check;
pub mod collective;
pub mod data;
pub mod elastic;
pub mod environment;
mod error;
pub mod eval;
pub mod files;
pub mod gpu;
pub mod link;
pub mod modifier;
pub mod nn;
pub mod num;
pub mod objective;
pub mod optim;
pub mod picture;
pub mod predict;
pub mod train;
pub mod weights;

pub use error::{Error, Full, Result};

/// Everything that this build offers.
pub fn catalog() -> tl_proto::catalog::Catalog {
    tl_proto::catalog::Catalog {
        backbones: backbone::catalog(),
        objectives: objective::catalog(),
        modifiers: modifier::catalog(),
        formats: data::catalog(),
        optimizers: optim::catalog(),
        schedules: optim::schedule::catalog(),
    }
}
