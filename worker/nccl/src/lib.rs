//! A thin safe communicator over NCCL.
//!
//! NCCL's own calls may wait for a dead peer for ever. Here every communicator is made non-blocking, every wait has a
//! deadline, and a [`Handle`] aborts it from any thread; who waits for one to be made is called off by
//! [`Communicator::connect_unless`]. An aborted collective "succeeds" as far as the stream is concerned and leaves part of a sum
//! behind, so [`Communicator::complete`] is the gate that results have to pass: it says yes only when the stream is done and
//! *then* the communicator was still whole.
//!
//! ```no_run
//! use std::time::Duration;
//! use nccl_rs::{Communicator, Options, UniqueId};
//!
//! # fn example(rank: usize, id: UniqueId) -> Result<(), Box<dyn std::error::Error>> {
//! let stream = cudarc::driver::CudaContext::new(0)?.new_stream()?;
//! let ranks = Communicator::connect(&stream, rank, 2, &id, Options::default())?;
//! let mut sums = stream.clone_htod(&[1.0f32, 2.0])?;
//! ranks.all_reduce(&mut sums)?;
//! ranks.complete()?;
//! println!("{:?}", stream.clone_dtoh(&sums)?);
//! ranks.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! The environment has the last word on what blocks. Where `NCCL_COMM_BLOCKING` is not 0, no communicator is made; but the files
//! in which NCCL looks for its variables (`/etc/nccl.conf`, `~/.nccl.conf`, the one of `NCCL_CONF_FILE`) are not read here. Who
//! does not know them starts the process with `NCCL_COMM_BLOCKING=0`, which goes before them.
//!
//! Nor does a deadline hold where the system has no thread to give, which giving a communicator back within a time takes.
//!
//! The library is loaded at run time, by [`nvlib`]: without it, or with one that is too old, [`Nccl::open`] is an error that
//! says so. cudarc gives device memory, streams and the layout of NCCL's structures; its own NCCL functions are not called,
//! because they panic where the library is missing, and read a status as a Rust `enum`, which is undefined behaviour as soon
//! as a newer library answers with a new one.
//!
//! **Checked** without a GPU only: the tests run it against a driver and an NCCL written in C for them, with ranks that are
//! threads, and with processes, of which one is killed. Where there is a GPU, `tests/processes.rs` takes the real ones.

mod api;
mod comm;
mod element;
mod error;
mod id;
mod operation;
mod shared;
mod version;
mod wait;

pub use api::Nccl;
pub use comm::{Communicator, Options};
pub use element::Element;
pub use error::{Code, NcclError, Result};
pub use id::UniqueId;
pub use shared::Handle;
pub use version::{Standing, Version};
