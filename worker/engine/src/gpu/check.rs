//! Whether a GPU works: copies, a product, a small step of training, and a sum through NCCL; and whether two do together.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use cudarc::{
    cublas::{CudaBlas, Gemm, GemmConfig, result::CublasError, sys::cublasOperation_t},
    driver::{CudaContext, CudaStream, DriverError},
};
use nccl_rs::{Communicator, Nccl, NcclError, Options, UniqueId};
use nvlib::Library;

use super::{Device, Fault, Part, bound, step};
use crate::{Error, Result};

/// Elements that are copied.
const COPIED: usize = 1 << 26;
/// Rows, columns and depth of the product.
const SIDE: usize = 4096;
/// How often each is done.
const TIMES: u32 = 10;

/// A GPU that is tried, part by part.
pub struct Check {
    index: u32,
    stream: Arc<CudaStream>,
}

impl Check {
    /// Of the GPU of a number.
    ///
    /// # Errors
    /// There is no such GPU.
    pub fn open(index: u32) -> Result<Self> {
        guarded(index, opened).map(|stream| Self { index, stream })
    }

    /// What a part comes to. NCCL has `patience` to begin, and as long again to add up.
    ///
    /// # Errors
    /// Why it comes to nothing, in words. That a library is missing is such a reason.
    pub fn run(&self, which: Part, patience: Duration) -> Result<f64, String> {
        part(|| match which {
            Part::Copy => copy(&self.stream).map_err(refused),
            Part::Multiply => multiply(&self.stream),
            Part::Train => train(self.index),
            Part::AllReduce => sum(&self.stream, (0, 1), &named()?, patience),
        })
    }
}

/// That by which a node decides whether it offers a GPU: a small step of training.
///
/// # Errors
/// A rank could not train there.
pub fn works(index: u32) -> Result<()> {
    guarded(index, train).map(|_| ())
}

/// Adds up over NCCL on two GPUs of this machine, a rank on each: seconds for it. NCCL has `patience` to begin, and as long again
/// to add up.
///
/// # Errors
/// Why it does not, in words: one of them cannot be used, NCCL is not there, refuses, or is not done in time.
pub fn between(pair: [u32; 2], patience: Duration) -> Result<f64, String> {
    // Two GPUs in one process, as nowhere else: there NCCL may have one of them reach into the arrays of the other, and to memory
    // of a driver's pool only its own GPU has access. Three numbers go by a protocol that takes them through NCCL's own memory;
    // for many, `NCCL_P2P_DIRECT_DISABLE=1` would have to be in the environment before NCCL is opened.
    part(|| {
        Library::Driver.open().map_err(|e| e.to_string())?;
        let streams = [opened(pair[0])?, opened(pair[1])?];
        let id = &named()?;
        let outcomes = std::thread::scope(|scope| {
            let start = |rank: usize| {
                let stream = &streams[rank];
                scope.spawn(move || part(|| sum(stream, (rank, pair.len()), id, patience)))
            };
            let broken = |_| Err("the thread of its rank broke down".into());
            [0, 1].map(start).map(|rank| rank.join().unwrap_or_else(broken))
        });
        let failed = outcomes.iter().zip(pair).filter_map(|(outcome, gpu)| Some((gpu, outcome.as_ref().err()?)));
        let failed: Vec<String> = failed.map(|(gpu, why)| format!("GPU {gpu}: {why}")).collect();
        match failed.is_empty() {
            true => Ok(outcomes.into_iter().flatten().fold(0.0, f64::max)),
            false => Err(failed.join("; ")),
        }
    })
}

fn guarded<T>(index: u32, work: fn(u32) -> Result<T, String>) -> Result<T> {
    Library::Driver.open().map_err(|e| Error::user(e.to_string(), "install NVIDIA's driver"))?;
    // The bindings panic where a library of another age lacks a function.
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(index)));
    let done = done.unwrap_or_else(|_| Err("a library lacks a function that is needed: it is of another age".into()));
    done.map_err(|cause| Error::Gpu { number: index, cause })
}

fn opened(index: u32) -> Result<Arc<CudaStream>, String> {
    CudaContext::new(index as usize).and_then(|context| context.new_stream()).map_err(refused)
}

/// What the driver refuses.
fn refused(e: DriverError) -> String {
    Fault::from(e).to_string()
}

/// A part that may fail by itself, also where a library lacks a function.
fn part(work: impl FnOnce() -> Result<f64, String>) -> Result<f64, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("a library lacks a function: it is of another age".into()))
}

/// Seconds for each of several times `work`, all of whose work is done by then.
fn timed<E>(
    stream: &CudaStream,
    mut work: impl FnMut() -> Result<(), E>,
    failed: impl Fn(DriverError) -> E,
) -> Result<f64, E> {
    // Once before the clock runs: what is loaded or built first is not what is measured.
    work()?;
    stream.synchronize().map_err(&failed)?;
    let started = Instant::now();
    for _ in 0..TIMES {
        work()?;
    }
    stream.synchronize().map_err(failed)?;
    Ok(started.elapsed().as_secs_f64() / f64::from(TIMES))
}

fn copy(stream: &Arc<CudaStream>) -> Result<f64, DriverError> {
    let from = stream.alloc_zeros::<f32>(COPIED)?;
    let mut to = stream.alloc_zeros::<f32>(COPIED)?;
    let seconds = timed(stream, || stream.memcpy_dtod(&from, &mut to), |e| e)?;
    Ok((2 * COPIED * size_of::<f32>()) as f64 / seconds)
}

#[expect(unsafe_code, reason = "cuBLAS takes sizes on trust")]
fn multiply(stream: &Arc<CudaStream>) -> Result<f64, String> {
    bound::open(Library::Cublas).map_err(|e| e.to_string())?;
    let failed = |e: CublasError| Fault::from(e).to_string();
    let blas = CudaBlas::new(stream.clone()).map_err(failed)?;
    let ones = stream.clone_htod(&vec![1.0f32; SIDE * SIDE]).map_err(refused)?;
    let mut product = stream.alloc_zeros::<f32>(SIDE * SIDE).map_err(refused)?;
    let side = SIDE as i32;
    let plan = GemmConfig {
        transa: cublasOperation_t::CUBLAS_OP_N,
        transb: cublasOperation_t::CUBLAS_OP_N,
        m: side,
        n: side,
        k: side,
        alpha: 1.0f32,
        lda: side,
        ldb: side,
        beta: 0.0,
        ldc: side,
    };
    // SAFETY: three square matrices of that side.
    let work = || unsafe { blas.gemm(plan, &ones, &ones, &mut product) }.map_err(failed);
    let seconds = timed(stream, work, refused)?;
    let first = stream.clone_dtoh(&product.slice(..1)).map_err(refused)?;
    if first != [SIDE as f32] {
        return Err(format!("a product of ones is {first:?} and should be {SIDE}"));
    }
    Ok(2.0 * (SIDE * SIDE * SIDE) as f64 / seconds)
}

fn train(index: u32) -> Result<f64, String> {
    let device = Device::open(index).map_err(|e| e.to_string())?;
    step(&Arc::new(device)).map_err(|e| e.to_string())
}

/// The name of a new group.
fn named() -> Result<UniqueId, String> {
    Nccl::open().and_then(Nccl::unique_id).map_err(|e| e.to_string())
}

/// A rank's part of a sum through NCCL to which each brings the same: seconds for it.
fn sum(
    stream: &Arc<CudaStream>,
    (rank, world): (usize, usize),
    id: &UniqueId,
    patience: Duration,
) -> Result<f64, String> {
    let said = |e: NcclError| e.to_string();
    let options = Options { patience, ..Options::default() };
    let group = Communicator::connect(stream, rank, world, id, options).map_err(said)?;
    let mut data = stream.clone_htod(&[1.0f32, 2.0, 3.0]).map_err(refused)?;
    let started = Instant::now();
    group.all_reduce(&mut data).and_then(|()| group.complete()).map_err(said)?;
    let seconds = started.elapsed().as_secs_f64();
    let sums = stream.clone_dtoh(&data).map_err(refused)?;
    if sums != [1.0, 2.0, 3.0].map(|v| v * world as f32) {
        return Err(format!("a sum in which each of {world} ranks adds 1, 2, 3 is {sums:?}"));
    }
    group.finish().map_err(said)?;
    Ok(seconds)
}
