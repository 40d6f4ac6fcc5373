//! GPUs: which there are, and whether they work. **Nothing trains on them yet** ([`TRAINS`]), so no node offers them.
//!
//! # What CUDA this is built on, and why
//!
//! cudarc alone: its driver bindings for memory, streams and launches, NVRTC for our own kernels, cuBLAS and cuDNN for
//! products and convolutions, NCCL through `nccl-rs`. Not candle's `cuda` feature. Because
//!
//! * layers here are explicit, with kernels of their own, and use candle's tensors as storage in the host's memory; autograd
//!   runs above the taps only, on logits and embeddings, which are small enough to be fetched. Candle's CUDA kernels would
//!   compute nothing;
//! * with it a build needs nvcc and five minutes on two cores more, and asks the linker for `-lcuda`, which has to be
//!   satisfied by something. Without it `cargo build --features cuda` is all: every library is opened at run time, kernels
//!   are compiled by NVRTC on the machine that has the GPU, and the same program starts where there is none;
//! * the operations of a step stay ours, and with them their order of summation: sums of blocks in a fixed tree, no float
//!   atomics, cuDNN's algorithms chosen by their determinism and never by a stopwatch.
//!
//! The price: no operation comes for free, each is written and tested here.
//!
//! # The seam that training on GPUs is to have
//!
//! The engine's tensors are host memory wherever a layer opens one: `nn::act` gives slices, and a layer's `forward` and
//! `backward` call `num`. A second device comes in at three places, and nowhere else:
//!
//! 1. `nn::act`: an activation is either host memory or a `CudaSlice`; asking one for the other kind is an error, not a copy.
//!    Batches go up once per grain, taps come down once per grain.
//! 2. `num`: what a layer calls (`gemm`, convolution by taps, the vectorised loops) becomes a trait object that the store
//!    carries, with the code of today as its first implementation. A layer knows shapes and order, not the device.
//! 3. `nn::store` and the flat gradient: parameters and buckets live where the activations do; `collective` reduces a bucket in
//!    place through `nccl-rs`, or in the ordered tree with its own addition kernel; a step is applied only after
//!    `Communicator::complete` has said yes.
//!
//! Dense layers through cuBLAS are first, since they need all three and one operation. What holds on a CPU holds there by
//! the same tests: finite differences, and the host's result within the bounds that PyTorch's float32 has against float64.

#[cfg(feature = "cuda")]
mod check;
#[cfg(feature = "cuda")]
mod look;

use serde::Serialize;
use tl_proto::hardware::Gpu;

#[cfg(feature = "cuda")]
pub use self::{check::check, look::look};

/// Whether the engine can train on GPUs. As long as it cannot, nodes offer CPU slots only, and a rank that is told to use a GPU
/// refuses.
pub const TRAINS: bool = false;

/// Why GPUs are not used although they are there.
pub const CANNOT_TRAIN: &str = "this release finds GPUs and cannot train on them yet";

/// What a build finds of GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// By number.
    pub gpus: Vec<Gpu>,
    /// Version of the driver; empty without one.
    pub driver: String,
    /// The newest CUDA that it knows; empty without one.
    pub cuda: String,
    /// Version of NCCL; empty without it.
    pub nccl: String,
    /// Libraries, there or not.
    pub libraries: Vec<Found>,
    /// Why there are none, or why they are not used; empty where that needs no reason.
    pub note: String,
}

/// A library of NVIDIA's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What it is called.
    pub name: String,
    /// Its version; empty if it is not there or does not tell.
    pub version: String,
    /// The file; empty if it is not there.
    pub path: String,
    /// Why it cannot be used and where it was looked for, or a warning about it; empty if all is well.
    pub problem: String,
}

/// How a GPU did.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Bytes a second that it reads and writes when it copies its own memory.
    pub copy: f64,
    /// Operations a second of a product of matrices, or why there was none.
    pub multiply: std::result::Result<f64, String>,
    /// Seconds for a sum through NCCL, of one rank, or why there was none.
    pub all_reduce: std::result::Result<f64, String>,
}

/// This build has no CUDA, and does not look.
#[cfg(not(feature = "cuda"))]
pub fn look() -> Gpus {
    Gpus::default()
}

/// This build has no CUDA.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn check(_: u32) -> crate::Result<Checked> {
    Err(crate::Error::user("this build has no CUDA", "build with `--features cuda`"))
}
