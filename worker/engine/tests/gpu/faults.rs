//! What a user is told of what can go wrong.

use cudarc::{
    cublas::{result::CublasError, sys::cublasStatus_t},
    cudnn::{result::CudnnError, sys::cudnnStatus_t},
    driver::{DriverError, sys::CUresult},
};
use nvlib::{Elsewhere, Library, Missing};
use tl_engine::{Error, gpu::Fault};
use tl_proto::failure::FailureClass;

use crate::device;

#[test]
fn what_is_missing_is_named_with_what_to_do_about_it() {
    for library in Library::ALL {
        let missing = Missing { library, looked_in: vec!["/nowhere".into()], reasons: Vec::new() };
        let Error::User { message, hint } = Error::from(Fault::from(missing)) else { panic!("a user can mend it") };
        assert!(message.starts_with(library.name()) && message.ends_with("/nowhere"), "{message}");
        assert!(hint.starts_with("install "), "{hint}");
    }
}

#[test]
fn a_library_that_is_there_twice_is_told_with_both_files() {
    let (opened, called) = ("/one/libcublas.so.12".into(), "/two/libcublas.so".into());
    let fault = Fault::from(Elsewhere { library: Library::Cublas, opened, called });
    let Error::User { message, hint } = Error::from(fault) else { panic!("a user can mend it") };
    assert!(message.starts_with("cuBLAS ") && hint.contains("`NVLIB_PATH`"), "{message} {hint}");
    assert!(["`/one/libcublas.so.12`", "`/two/libcublas.so`"].iter().all(|path| message.contains(path)), "{message}");
}

#[test]
fn full_memory_is_no_bug() {
    for full in [
        Fault::from(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)),
        CublasError(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED).into(),
        CudnnError(cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED).into(),
    ] {
        let failure = Error::from(full).to_failure();
        assert_eq!(failure.class, FailureClass::OutOfMemory);
        assert!(failure.hint.contains("`data.grains`") && failure.hint.contains("`data.batch`"), "{}", failure.hint);
        assert!(failure.hint.contains("`cluster.device = \"cpu\"`"), "{}", failure.hint);
    }
    // What it is called the driver says.
    let Some(_) = device() else { return };
    let lost = Fault::from(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    assert!(matches!(Error::from(lost), Error::Internal(text) if text.contains("ILLEGAL_ADDRESS")));
}

#[test]
fn who_has_no_algorithm_is_told_what_does_without() {
    let failure = Error::from(Fault::NoAlgorithm("Weights of an image".into())).to_failure();
    assert_eq!(failure.class, FailureClass::User, "no other try comes to more");
    assert!(failure.message.ends_with("the same bits each time for the Weights of an image"), "{failure}");
    assert!(failure.hint.contains("`cluster.device = \"cpu\"`"), "{}", failure.hint);
}
