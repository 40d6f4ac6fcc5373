//! A driver and an NCCL that need no GPU, for tests of whoever uses the real ones. They show that calls are made as they
//! should be; what a GPU does with them they do not show. With a compiler of kernels and the libraries of products and
//! convolutions beside them, they also compute: slowly, and in an order of threads that no GPU has.
//!
//! Memory is of pools, as on GPUs of today, unless `FAKE_POOLS=0` is in the environment. The driver aborts the process where
//! a kernel, a copy or an all-reduce uses memory of a pool on a stream that has not waited until it was there, or where it is
//! given back on one that has not waited for what they do with it on another. Of products, convolutions and NCCL's other calls
//! it does not know, and a stream that is made in the place of one that is gone counts as having waited for it.
//!
//! The ranks of that NCCL are threads of one process. Where its processes are told a folder by `FAKE_NCCL_DIR`, they are
//! processes, which meet there; the others notice when one ends.

use std::{ffi::c_int, io, path::Path, process::Command};

use crate::Library;

/// What the driver calls its GPUs.
pub const GPU: &str = "Fake GPU";

const SOURCES: [(&str, &str); 2] = [("libcuda.so.1", include_str!("cuda.c")), ("libnccl.so.2", include_str!("nccl.c"))];
const COMPUTING: [(&str, &str); 6] = [
    ("libcuda.so.1", include_str!("cuda.c")),
    ("libnccl.so.2", include_str!("nccl.c")),
    ("libnvrtc.so.13", include_str!("nvrtc.c")),
    ("libnvrtc-builtins.so.13.0", include_str!("builtins.c")),
    ("libcublas.so.13", include_str!("cublas.c")),
    ("libcudnn.so.9", include_str!("cudnn.c")),
];

/// Where it is set only a real GPU counts: then nothing is made that stands for one.
const REAL: &str = "TL_GPU_REAL";

/// Whether nothing may stand for a real GPU, as `TL_GPU_REAL` in the environment says.
pub fn is_barred() -> bool {
    std::env::var_os(REAL).is_some()
}

/// Compiles both into a folder; `NVLIB_PATH` or [`crate::Library::open_from`] make a process take them.
///
/// # Errors
/// There is no C compiler, or it refuses, or [`is_barred`].
pub fn build(dir: &Path) -> io::Result<()> {
    compile(dir, &SOURCES)
}

/// Compiles a driver that runs kernels, and NCCL, NVRTC, cuBLAS and cuDNN. Kernels are compiled by the machine's C++
/// compiler, when they are asked for, in that folder: it must stay as long as the process.
///
/// # Errors
/// There is no C compiler, or it refuses, or [`is_barred`].
pub fn build_computing(dir: &Path) -> io::Result<()> {
    std::fs::write(dir.join("kernel.h"), include_str!("kernel.h"))?;
    compile(dir, &COMPUTING)
}

/// Bytes that this thread has sent up, where the driver that is open is the one from here.
#[expect(unsafe_code, reason = "calls the driver")]
pub fn sent() -> Option<u64> {
    let driver = Library::Driver.open().ok()?;
    // SAFETY: that is its type in `cuda.c`, and no other driver has a function of that name.
    let sent = unsafe { driver.function::<unsafe extern "C" fn() -> u64>("fake_sent") }.ok()?;
    // SAFETY: it reads a number.
    Some(unsafe { sent() })
}

/// Has the driver find no room for `times` arrays and kernels of this thread, after so many more; nothing where the driver that
/// is open is not the one from here.
#[expect(unsafe_code, reason = "calls the driver")]
pub fn full(after: u64, times: u64) -> Option<()> {
    let driver = Library::Driver.open().ok()?;
    // SAFETY: that is its type in `cuda.c`, and no other driver has a function of that name.
    let full = unsafe { driver.function::<unsafe extern "C" fn(u64, u64)>("fake_full") }.ok()?;
    // SAFETY: it writes numbers of this thread.
    unsafe { full(after, times) };
    Some(())
}

/// Has the driver tell this thread that no more bytes than so many are free, whatever it gives; nothing where the driver that is
/// open is not the one from here.
#[expect(unsafe_code, reason = "calls the driver")]
pub fn free(bytes: u64) -> Option<()> {
    let driver = Library::Driver.open().ok()?;
    // SAFETY: that is its type in `cuda.c`, and no other driver has a function of that name.
    let free = unsafe { driver.function::<unsafe extern "C" fn(u64)>("fake_free") }.ok()?;
    // SAFETY: it writes a number of this thread.
    unsafe { free(bytes) };
    Some(())
}

/// Has the library of products answer the next `times` of this thread with that status, and make none; nothing where the one that
/// is open is not the one from here.
#[expect(unsafe_code, reason = "calls the library")]
pub fn refuse_products(status: i32, times: u64) -> Option<()> {
    let cublas = Library::Cublas.open().ok()?;
    // SAFETY: that is its type in `cublas.c`, and no other library of products has a function of that name.
    let refuse = unsafe { cublas.function::<unsafe extern "C" fn(c_int, u64)>("fake_refuse") }.ok()?;
    // SAFETY: it writes numbers of this thread.
    unsafe { refuse(status, times) };
    Some(())
}

/// The most bytes that arrays of this thread have at a time while it works, beside those that it had before; nothing where the
/// driver that is open is not the one from here.
#[expect(unsafe_code, reason = "calls the driver")]
pub fn most(work: impl FnOnce()) -> Option<u64> {
    let driver = Library::Driver.open().ok()?;
    // SAFETY: that is its type in `cuda.c`, and no other driver has a function of that name.
    let tell = unsafe { driver.function::<unsafe extern "C" fn(*mut [i64; 2])>("fake_held") }.ok()?;
    let told = || {
        let mut told = [0; 2];
        // SAFETY: it writes two numbers.
        unsafe { tell(&raw mut told) };
        told
    };
    let [before, _] = told();
    work();
    let [_, most] = told();
    u64::try_from(most - before).ok()
}

/// What a thread has done with streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// Events that it has recorded.
    pub recorded: u64,
    /// How often it has told a stream to wait for what another one had been asked for.
    pub crossed: u64,
    /// The stream behind which it has last given memory back, by some number.
    pub freed: u64,
}

/// What this thread has done with streams, where the driver that is open is the one from here.
#[expect(unsafe_code, reason = "calls the driver")]
pub fn streams() -> Option<Streams> {
    let driver = Library::Driver.open().ok()?;
    // SAFETY: that is its type in `cuda.c`, and no other driver has a function of that name.
    let tell = unsafe { driver.function::<unsafe extern "C" fn(*mut [u64; 3])>("fake_streams") }.ok()?;
    let mut told = [0; 3];
    // SAFETY: it writes three numbers.
    unsafe { tell(&raw mut told) };
    let [recorded, crossed, freed] = told;
    Some(Streams { recorded, crossed, freed })
}

fn compile(dir: &Path, sources: &[(&str, &str)]) -> io::Result<()> {
    if is_barred() {
        return Err(io::Error::other(format!("`{REAL}` is set, so nothing may stand for a real GPU")));
    }
    for (soname, text) in sources {
        let source = dir.join(soname).with_extension("c");
        std::fs::write(&source, text)?;
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(dir.join(soname)).arg(&source);
        let done = cc.arg(format!("-Wl,-soname,{soname}")).arg("-ldl").status()?;
        if !done.success() {
            return Err(io::Error::other(format!("{soname} cannot be compiled")));
        }
    }
    Ok(())
}
