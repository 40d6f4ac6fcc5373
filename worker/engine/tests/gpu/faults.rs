//! What a user is told of what can go wrong.

use cudarc::driver::{DriverError, sys::CUresult};
use nvlib::{Library, Missing};
use tl_engine::{Error, gpu::Fault};

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
fn full_memory_is_no_bug() {
    let full = Fault::from(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert!(matches!(Error::from(full), Error::User { hint, .. } if hint.contains("grains")));
    let lost = Fault::from(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    assert!(matches!(Error::from(lost), Error::Internal(text) if text.contains("ILLEGAL_ADDRESS")));
}
