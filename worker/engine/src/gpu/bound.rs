//! NVIDIA's libraries as cudarc calls them. It asks the system's loader for each by names of its own: what it gets has to be
//! what was found, or versions would be told, and bits promised, of a library that computes nothing.
//!
//! It takes what they answer for a Rust `enum` of the answers that CUDA 13.0 and cuDNN 9.21 have. A newer library that answers
//! with a new one makes that undefined behaviour before anybody here sees it. That cannot be mended without bindings of our own
//! in place of cudarc's, on which its memory, streams and launches are built. What can be is: of an answer nothing is made but
//! comparisons with known ones and a number, and its name is asked of the library ([`Library::answer`]); cuDNN's lists of
//! algorithms, which it writes into our memory, are read as numbers.

use std::ffi::c_void;

use cudarc::{
    cublas, cudnn,
    driver::{self, CudaContext},
    nvrtc,
};
use nvlib::Library;

use super::Fault;

/// The address that cudarc's bindings of a library have for a function.
macro_rules! called {
    ($bindings:ident, $name:literal) => {{
        #[expect(unsafe_code, reason = "asks for an address")]
        // SAFETY: nobody calls it. What the library runs when it is loaded is its own to answer for, as in `nvlib`.
        let found = unsafe { $bindings::sys::culib().get::<*const c_void>($name.as_bytes()) };
        found.ok().map(|found| ($name, *found))
    }};
}

/// Opens a library for calls through cudarc.
///
/// # Errors
/// It is not there, or cudarc would call another one.
pub(in crate::gpu) fn open(library: Library) -> Result<(), Fault> {
    let opened = library.open()?;
    // The bindings panic where they find none.
    let called = std::panic::catch_unwind(|| match library {
        Library::Driver => called!(driver, "cuInit"),
        Library::Cublas => called!(cublas, "cublasCreate_v2"),
        Library::Cudnn => called!(cudnn, "cudnnCreate"),
        Library::Nvrtc => called!(nvrtc, "nvrtcCreateProgram"),
        // Nobody calls it through cudarc.
        Library::Nccl => None,
    });
    match called.unwrap_or_default() {
        Some((name, address)) => Ok(opened.expect(name, address)?),
        None => {
            let path = opened.path().display();
            Err(Fault::Refused { library, answer: format!("to no call: the system's loader does not know `{path}`") })
        }
    }
}

/// Makes a context that of this thread, for what cannot say that it has failed. An error that the bindings have noted, which
/// they tell once and instead of doing so, stays noted for whoever can.
pub(in crate::gpu) fn bind(context: &CudaContext) {
    if let Err(noted) = context.bind_to_thread() {
        let _ = context.bind_to_thread();
        context.record_err::<()>(Err(noted));
    }
}
