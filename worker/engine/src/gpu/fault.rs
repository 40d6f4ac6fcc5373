//! What can go wrong on a GPU.

use std::ffi::c_int;

use cudarc::{
    cublas::{result::CublasError, sys::cublasStatus_t},
    cudnn::{result::CudnnError, sys::cudnnStatus_t},
    driver::{DriverError, sys::CUresult},
};
use nvlib::{Elsewhere, Library, Missing};
use tl_proto::spec::Precision;

use crate::{Error, Full};

/// Bytes of a GPU's memory that a library takes for itself when it is begun with, at most.
const STARTS: usize = 256 << 20;

/// A failure of the device side.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A library is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A library is there twice, and calls would go to the other one.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    /// There is no room for another array.
    #[error("the memory of the GPU is full")]
    Memory,
    /// The driver refuses.
    #[error("the driver answers {0}")]
    Driver(String),
    /// A library is there and lacks what is asked of it, or refuses it.
    #[error("{library} answers {answer}")]
    Refused {
        /// Which one.
        library: Library,
        /// What it says.
        answer: String,
    },
    /// cuDNN has no algorithm that gives the same bits each time.
    #[error("cuDNN has no algorithm that gives the same bits each time for the {0}")]
    NoAlgorithm(String),
    /// An array of more numbers than cuDNN finds its way among.
    #[error("images or weights of {0} are more numbers than cuDNN counts to")]
    TooMany(String),
    /// The compiler refuses a file of kernels.
    #[error("NVRTC cannot compile `{file}` for compute capability {capability}: {log}")]
    Compiler {
        /// The file.
        file: &'static str,
        /// As in `sm_90`.
        capability: String,
        /// What it says.
        log: String,
    },
    /// The GPU is too old for a precision.
    #[error("a GPU of compute capability {capability} does not multiply {precision}")]
    TooOld {
        /// As in `7.5`.
        capability: String,
        /// What was to be multiplied.
        precision: Precision,
    },
    /// An array of another stream than that of the device that was to use it; a bug of ours.
    #[error("an array of another GPU, or of another stream on this one, was to be used here")]
    Foreign,
    /// Arrays that do not fit each other; a bug of ours.
    #[error("{0}")]
    Shape(String),
}

impl Fault {
    pub(in crate::gpu) fn shape(message: impl Into<String>) -> Self {
        Self::Shape(message.into())
    }

    /// What a library makes of it that it finds no memory on the GPU differs with its version, but for that word.
    fn answered(library: Library, answer: String) -> Self {
        match answer.contains("ALLOC") && !answer.contains("HOST") {
            true => Self::Memory,
            false => Self::Refused { library, answer },
        }
    }

    /// Of a library that cannot be begun with, while so many bytes are free: where they are few, that is why, whatever it says.
    pub(in crate::gpu) fn at_start(self, free: Option<usize>) -> Self {
        match self {
            Self::Refused { .. } if free.is_some_and(|free| free < STARTS) => Self::Memory,
            other => other,
        }
    }
}

// What an answer is called, its library is asked. It may be newer than the bindings: then no name of theirs is its own, and
// nothing is made of it but comparisons and a number. (`bound` says more.)

impl From<DriverError> for Fault {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::Memory,
            code => Self::Driver(Library::Driver.answer(code as c_int)),
        }
    }
}

impl From<CublasError> for Fault {
    fn from(error: CublasError) -> Self {
        match error.0 {
            cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Self::Memory,
            code => Self::answered(Library::Cublas, Library::Cublas.answer(code as c_int)),
        }
    }
}

impl From<CudnnError> for Fault {
    fn from(error: CudnnError) -> Self {
        match error.0 {
            cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED => Self::Memory,
            code => Self::answered(Library::Cudnn, Library::Cudnn.answer(code as c_int)),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing(missing) => {
                let hint = match missing.library {
                    Library::Driver => "install NVIDIA's driver".to_owned(),
                    other => format!("install {other}, or name the folder that it is in with `NVLIB_PATH`"),
                };
                Self::user(missing.to_string(), hint)
            }
            Fault::Memory => Self::GpuMemory(Full::Grain),
            Fault::Elsewhere(_) => {
                let hint = "name the folder of the second with `NVLIB_PATH`, or hide that one from the system's loader";
                Self::user(fault.to_string(), hint)
            }
            Fault::NoAlgorithm(_) => {
                Self::user(fault.to_string(), "set `cluster.device = \"cpu\"`, or take another `model.backbone`")
            }
            Fault::TooMany(_) => {
                Self::user(fault.to_string(), "raise `data.grains`, lower `data.batch` or `model.input`")
            }
            Fault::Compiler { .. } => Self::user(fault.to_string(), "install an NVRTC that knows this GPU"),
            Fault::TooOld { .. } => {
                let hint =
                    "leave `precision` at \"f32\", train on one of 8.0 or newer, or set `cluster.device = \"cpu\"`";
                Self::user(fault.to_string(), hint)
            }
            Fault::Driver(_) | Fault::Refused { .. } | Fault::Foreign | Fault::Shape(_) => {
                Self::Internal(fault.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_does_not_begin_on_a_full_gpu_has_no_memory() {
        let refused = |free| Fault::answered(Library::Cublas, "CUBLAS_STATUS_NOT_INITIALIZED".into()).at_start(free);
        assert!(matches!(refused(Some(1 << 20)), Fault::Memory));
        for free in [Some(1 << 30), None] {
            assert!(matches!(refused(free), Fault::Refused { library: Library::Cublas, .. }), "{free:?}");
        }
        assert!(matches!(Fault::shape("other").at_start(Some(0)), Fault::Shape(_)));
    }
}
