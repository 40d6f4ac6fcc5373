//! cuBLAS, set up so that its bits depend on the GPU and the version alone.

use std::{ffi::c_void, sync::Arc};

use cudarc::{
    cublas::{
        result::{self, CublasError},
        sys,
    },
    driver::{CudaSlice, CudaStream, DevicePtrMut},
};
use nvlib::Library;

use super::{Fault, bound, device::free};

/// Bytes of scratch memory. Which algorithm is taken depends on it, so it is no option.
const WORKSPACE: usize = 32 << 20;

/// A handle on one stream, with scratch memory of its own. Not cudarc's, which panics if it cannot be destroyed.
pub(in crate::gpu) struct Blas {
    handle: sys::cublasHandle_t,
    stream: Arc<CudaStream>,
    /// Freed after the handle is gone.
    workspace: CudaSlice<u8>,
}

#[expect(unsafe_code, reason = "a handle may be used from any one thread at a time")]
// SAFETY: so says cuBLAS's documentation on thread safety; the device keeps it behind a lock.
unsafe impl Send for Blas {}

impl Drop for Blas {
    #[expect(unsafe_code, reason = "calls cuBLAS")]
    fn drop(&mut self) {
        bound::bind(self.stream.context());
        // SAFETY: made by `create_handle`, and destroyed once. That it cannot be is no reason to stop.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Blas {
    #[expect(unsafe_code, reason = "calls cuBLAS")]
    pub(in crate::gpu) fn open(stream: &Arc<CudaStream>) -> Result<Self, Fault> {
        bound::open(Library::Cublas)?;
        let workspace = stream.alloc_zeros::<u8>(WORKSPACE)?;
        stream.context().bind_to_thread()?;
        let handle = result::create_handle().map_err(|e| Fault::from(e).at_start(free(stream)))?;
        let mut opened = Self { handle, stream: stream.clone(), workspace };
        // f32 stays f32 unless a product asks for TF32, and parts of sums are never added in bf16.
        let exact = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: stream and memory live as long as the handle. Setting the stream takes the memory away, so it comes first.
        unsafe {
            result::set_stream(opened.handle, stream.cu_stream().cast())?;
            let (at, _used) = opened.workspace.device_ptr_mut(stream);
            sys::cublasSetWorkspace_v2(opened.handle, at as *mut c_void, WORKSPACE).result()?;
            sys::cublasSetMathMode(opened.handle, exact).result()?;
        }
        Ok(opened)
    }

    /// What cuBLAS knows it by.
    pub(in crate::gpu) fn handle(&self) -> sys::cublasHandle_t {
        self.handle
    }
}

/// What a product was refused for while so many bytes are free: cuBLAS loads a kernel when a product first wants it, and where
/// few are free and nothing is wrong with the product, that is why, whatever it says.
pub(in crate::gpu) fn refused(error: CublasError, free: Option<usize>) -> Fault {
    use sys::cublasStatus_t::{CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};
    let product = [CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED].contains(&error.0);
    Fault::from(error).at_start(free.filter(|_| !product))
}
