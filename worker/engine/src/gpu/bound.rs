//! NVIDIA's libraries as cudarc calls them. It asks the system's loader for each by names of its own: what it gets has to be
//! what was found, or versions would be told, and bits promised, of a library that computes nothing.

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
