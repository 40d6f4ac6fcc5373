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
//! # What there is
//!
//! * `Device`: a GPU, one stream on it, its memory (a pool, and `Staging` for uploads that nobody waits for), and kernels that
//!   NVRTC compiles for its compute capability when they are first asked for;
//! * `Array`: numbers there, and their shape; `Placed`: one that layers hand on, with its GPU;
//! * `ops`: what layers, optimizers and the ordered tree compute, one function each, over the files of `kernels/`, cuBLAS and
//!   cuDNN;
//! * `Fault`: what can go wrong. A library that is missing is named.
//!
//! A few layers call them (below), and no run does. **None of it has ever run on a GPU.** What was done instead: NVRTC 12.9
//! and 13.5 take every file, for `sm_80`, `sm_90` and newer ones; and `tests/gpu` runs every function through the real bindings
//! over fakes of the driver, NVRTC, cuBLAS and cuDNN (`nvlib::fake`), which compile the same files as C++ and run them thread
//! by thread, and compares with the layers of `nn`, bit by bit where the order of a sum is the CPU's. Where there is a GPU, the
//! same tests use it, and the script `tests/gpu/run.sh` brings them there. What fakes cannot show: races within a warp that no
//! order of whole threads shows, what cuBLAS and cuDNN really answer (which algorithms are deterministic for channels-last f32,
//! above all), and any speed.
//!
//! What is missing: a bias or an activation fused into a product, convolutions of bf16 memory (f32 that was rounded gives the
//! same sums, at f32's speed), graphs of launches, and everything that a profile would show: kernels divide by the number of
//! channels in 64 bits, and arrays are cleared that cuBLAS and cuDNN go on to write.
//!
//! # The seam that training on GPUs is to have
//!
//! A second device comes in at three places, and nowhere else:
//!
//! 1. What layers take and give, which is there: `nn::Array` is the host's or a GPU's, and asking one for the other kind is an
//!    error, not a copy. `train::chain` makes arrays of batches and tensors of taps, and nothing else does in a run. Taps come
//!    down there already (`Array::to_tensor`); a batch is to go up there, once per grain.
//! 2. What layers compute: one branch in front of the host's code, which hands what lies on a GPU to `ops`. Dense layers,
//!    activations, sums (and with them residual blocks), and means over an image have theirs; lines of layers need none. All
//!    others refuse.
//! 3. Parameters and their gradients. `nn::Packs` keeps what `Pass::placed` has sent up: once for the grains of a step, once
//!    for all steps where nothing trains it. Gradients gather on the GPU and come down into the flat gradient at the end of
//!    `chain::backward`, so that the tree, the optimizers and checkpoints stay as they are. Later buckets live there too:
//!    `collective` reduces one in place through `nccl-rs`, or in the ordered tree with its own addition kernel, and a step is
//!    applied only after `Communicator::complete` has said yes.
//!
//! What comes next, in this order: convolutions, norms with their running sums, the other pools, and joins of channels, so
//! that a network of images is whole; attention with its heads split and its scores masked by length, embeddings, dropout and
//! LSTMs; adapters; the batch that goes up, and a rank that opens its GPU; the optimizers over the flat buffers, with `optim`
//! making their factors; the tree's addition in `collective`, and the norm for clipping; then the numerics fingerprint of a
//! GPU (its model, the driver, the versions of cuBLAS, cuDNN and NVRTC, and a probe), without which `ordered` may not take one;
//! and [`TRAINS`]. What holds on a CPU holds there by the same tests: finite differences, and the host's result within the
//! bounds that PyTorch's float32 has against float64.

#[cfg(feature = "cuda")]
mod afford;
#[cfg(feature = "cuda")]
mod array;
#[cfg(feature = "cuda")]
mod blas;
#[cfg(feature = "cuda")]
mod bound;
#[cfg(feature = "cuda")]
mod check;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod dnn;
#[cfg(feature = "cuda")]
mod fault;
#[cfg(feature = "cuda")]
mod fingerprint;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod look;
#[cfg(feature = "cuda")]
mod operand;
#[cfg(feature = "cuda")]
pub mod ops;
mod place;
#[cfg(feature = "cuda")]
mod placed;
#[cfg(feature = "cuda")]
mod span;
#[cfg(feature = "cuda")]
mod step;
#[cfg(feature = "cuda")]
mod tables;

use serde::Serialize;
use tl_proto::hardware::Gpu;

pub use self::place::Place;
#[cfg(feature = "cuda")]
pub use self::{
    array::Array,
    check::{check, works},
    device::{Device, Staging},
    fault::Fault,
    fingerprint::fingerprint,
    look::look,
    operand::Operand,
    place::OnGpu,
    placed::Placed,
    step::step,
};

#[cfg(feature = "cuda")]
pub(crate) use self::span::Span;

/// Whether this build trains on GPUs. One that does not offers CPU slots only, and a rank of it that is told to use a GPU
/// refuses.
pub const TRAINS: bool = cfg!(feature = "cuda");

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
    /// Seconds for a small step of training, which came to the host's numbers, or why it did not.
    pub train: std::result::Result<f64, String>,
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
    Err(no_cuda())
}

/// This build has no CUDA.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn works(_: u32) -> crate::Result<()> {
    Err(no_cuda())
}

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> crate::Error {
    crate::Error::user("this build has no CUDA", "build with `--features cuda`, or set `cluster.device = \"cpu\"`")
}
