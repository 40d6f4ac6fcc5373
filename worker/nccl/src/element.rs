//! What can be summed and sent.

use std::ffi::c_int;

use cudarc::driver::DeviceRepr;

/// A number that NCCL knows.
pub trait Element: DeviceRepr + sealed::Sealed {
    /// NCCL's number for the type.
    #[doc(hidden)]
    const TYPE: c_int;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($ty:ty = $number:ident),* $(,)?) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const TYPE: c_int = cudarc::nccl::sys::ncclDataType_t::$number as c_int;
        }
    )*};
}

elements! { f32 = ncclFloat32, half::f16 = ncclFloat16, half::bf16 = ncclBfloat16 }
