//! GPUs: which there are, whether they work, and what a run computes on one.
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
//! * `Device`: a GPU, one stream on it, its memory (a pool, and `Staging` for uploads that nobody waits for), and kernels
//!   that NVRTC compiles for its compute capability when they are first asked for, and `keep_kernels` keeps for others;
//! * `Array`: numbers there, and their shape; `Placed`: one with its GPU; `Mixed`: what layers hand on, such a one of f32 or
//!   of bf16; `Span`: a run of one that is lent to another stream;
//! * `ops`: what layers, optimizers and the ordered tree compute, one function each, over the files of `kernels/`, cuBLAS
//!   and cuDNN;
//! * [`Place`]: where a rank computes, the host or a GPU, and which numbers come out there: `fingerprint` is a digest of
//!   the model, the driver, the versions of cuBLAS, cuDNN and NVRTC, and of what a little of everything comes to;
//! * `step`, by which a node decides whether it offers a GPU, and [`Check`], which `tl-worker doctor` prints;
//! * `Fault`: what can go wrong. A library that is missing is named.
//!
//! # The seam
//!
//! A run trains on a GPU, evaluates there, and computes there what is frozen, with the same loop as on the host. The second
//! device comes in at these places, and nowhere else:
//!
//! 1. **What layers take and give.** `nn::Array` is the host's or a GPU's, and asking one for the other kind is an error, not a
//!    copy. `train::chain` makes arrays of batches and tensors of taps, and nothing else does in a run: a batch goes up once
//!    per grain, through pinned memory while the host goes on, and most while the one before is computed (`Place::expect`);
//!    taps come down, and gradients of them go up. Losses, and what objectives train beside networks, are the host's.
//! 2. **What layers compute.** One branch in front of the host's code hands what lies on a GPU to `ops`. Every layer has
//!    it, but for those that are made of others. What a layer keeps for its way back lies where its input does.
//! 3. **Parameters.** `Pass::placed` sends them up: once for the grains of a step, once for all steps where nothing trains
//!    them (`nn::Packs`). What stays there (5) is taken from where it lies.
//! 4. **Gradients.** They gather on the GPU, and so do the sums of batch-norms; `nn::Flat` is the flat gradient in either
//!    memory, and the tree adds two of them where they lie. Ranks that add up fast do it over NCCL, in place, in buckets that
//!    go while their last grain still goes backward (`train::overlap`); in the ordered reduction, and for whatever else ranks
//!    tell each other, they go over TCP.
//! 5. **The update.** Values, moments, averages and what holds them stay there from step to step as well (`train::stay`), in
//!    stretches that end where somebody looks at the state of the run: at a checkpoint, at the end of an epoch. Where there is
//!    no room for that, or gradients came over TCP, the mean gradient comes down, and the optimizer is the host's. The bits are
//!    the same. (It also comes down in the first twenty steps of a stage, to be looked at: `train::gate`.)
//!
//! `Store::place` says to each of them where. A rank opens its GPU when it starts (`Place::open`); a build without CUDA,
//! and one on a machine without a GPU, knows the host alone.
//!
//! # What is known of it
//!
//! **None of it has ever run on a GPU.** What was done instead: NVRTC 12.9 and 13.5 take all sixteen files of kernels, for
//! `sm_70` (13.5: `sm_75`), `sm_80`, `sm_90` and `sm_120`, and 13.0 does for `sm_90`; and tests go through the real bindings over
//! fakes of the driver, NVRTC, cuBLAS, cuDNN and NCCL (`nvlib::fake`), which compile the same files as C++ and run them thread by
//! thread: every operation and every layer, forward and backward, against those of `nn`, bit by bit where the order of a sum is
//! the CPU's (`tests/gpu`), and whole jobs through a coordinator and workers, on one rank and on two, of which one is killed
//! (`gpu_job` of the end-to-end tests). Where there is a GPU, the same tests use it; the script `tests/gpu/run.sh` brings them
//! there, with PyTorch beside them.
//!
//! What fakes cannot show: races within a warp that no order of whole threads shows; what cuBLAS and cuDNN really answer
//! (which algorithms are deterministic for channels-last f32, above all); how NCCL ends when a rank is killed, and how long
//! that takes; whether streams that do run side by side wait for each other where they have to; and any speed.
//!
//! # What is missing
//!
//! * Sums over ranks while backward goes on, for several tasks, episodes, and objectives that compare the samples of a batch.
//! * Gradients of bf16 convolutions with kernels of several pixels, without windows in memory (`ops::Patches`): cuDNN's own would
//!   be rounded to bf16.
//! * An activation fused into a product, graphs of launches, cuDNN's graph API, and whatever a profile would show.
//! * Averages that teach in a step (self-training with them) are the host's, and such a run takes its updates there.

#[cfg(feature = "cuda")]
mod afford;
#[cfg(feature = "cuda")]
mod ahead;
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
mod mixed;
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
    check::{Check, between, works},
    device::{Device, Staging, Upload},
    fault::Fault,
    fingerprint::fingerprint,
    kernels::keep_kernels,
    look::look,
    mixed::Mixed,
    operand::Operand,
    place::OnGpu,
    placed::Placed,
    step::step,
};

#[cfg(feature = "cuda")]
pub(crate) use self::{
    mixed::{both, either},
    span::Span,
};

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

/// What a GPU is tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Copies within its memory: bytes a second that it reads and writes.
    Copy,
    /// A product of matrices: operations a second.
    Multiply,
    /// A small step of training, which has to come to the host's numbers: seconds.
    Train,
    /// A sum of one rank through NCCL: seconds.
    AllReduce,
}

/// This build has no CUDA, and does not look.
#[cfg(not(feature = "cuda"))]
pub fn look() -> Gpus {
    Gpus::default()
}

/// This build has no CUDA, and nothing to try.
#[cfg(not(feature = "cuda"))]
pub enum Check {}

#[cfg(not(feature = "cuda"))]
impl Check {
    /// This build has no CUDA.
    ///
    /// # Errors
    /// Always.
    pub fn open(_: u32) -> crate::Result<Self> {
        Err(no_cuda())
    }

    /// Nobody has one to call this on.
    ///
    /// # Errors
    /// None.
    pub fn run(&self, _: Part, _: std::time::Duration) -> std::result::Result<f64, String> {
        match *self {}
    }
}

/// This build has no CUDA.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn between(_: [u32; 2], _: std::time::Duration) -> std::result::Result<f64, String> {
    Err(no_cuda().to_string())
}

/// This build has no CUDA.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn works(_: u32) -> crate::Result<()> {
    Err(no_cuda())
}

/// This build has no CUDA, and compiles nothing for it.
#[cfg(not(feature = "cuda"))]
pub fn keep_kernels(_: &std::path::Path) {}

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> crate::Error {
    crate::Error::user("this build has no CUDA", "build with `--features cuda`, or set `cluster.device = \"cpu\"`")
}
