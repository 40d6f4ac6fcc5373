//! cuBLAS, set up so that its bits depend on the GPU and the version alone.

use std::{ffi::c_void, sync::Arc};

use cudarc::{
    cublas::{CudaBlas, sys},
    driver::{CudaSlice, CudaStream, DevicePtrMut},
};
use nvlib::Library;

use super::Fault;

/// Bytes of scratch memory. Which algorithm is taken depends on it, so it is no option.
const WORKSPACE: usize = 32 << 20;

/// A handle on one stream, with scratch memory of its own.
pub(in crate::gpu) struct Blas {
    handle: CudaBlas,
    /// Freed after the handle is gone.
    _workspace: CudaSlice<u8>,
}

impl Blas {
    #[expect(unsafe_code, reason = "calls cuBLAS")]
    pub(in crate::gpu) fn open(stream: &Arc<CudaStream>) -> Result<Self, Fault> {
        Library::Cublas.open()?;
        let handle = CudaBlas::new(stream.clone())?;
        let mut workspace = stream.alloc_zeros::<u8>(WORKSPACE)?;
        {
            let (at, _used) = workspace.device_ptr_mut(stream);
            // f32 stays f32 (no TF32), and parts of sums are never added in bf16.
            let exact = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            // SAFETY: the memory lives as long as the handle; setting the stream, which takes it away, was before.
            unsafe {
                sys::cublasSetWorkspace_v2(*handle.handle(), at as *mut c_void, WORKSPACE).result()?;
                sys::cublasSetMathMode(*handle.handle(), exact).result()?;
            }
        }
        Ok(Self { handle, _workspace: workspace })
    }

    /// What cuBLAS knows it by.
    pub(in crate::gpu) fn handle(&self) -> sys::cublasHandle_t {
        *self.handle.handle()
    }
}
