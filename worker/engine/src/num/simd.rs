//! The machine's vector width, found at run time: no `-C target-cpu` is needed.
//!
//! [`Level::V3`] and [`Level::V4`] give the same bits: a product-sum is one fused multiply-add per element in both, and
//! plain loops are never re-associated by the compiler.

use std::sync::OnceLock;

/// How wide vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every machine of this architecture has.
    Base,
    /// AVX2 and FMA: eight numbers.
    V3,
    /// AVX-512: sixteen numbers.
    V4,
}

/// The widest level of this machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let v3 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if v3
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                return Level::V4;
            }
            if v3 {
                return Level::V3;
            }
        }
        Level::Base
    })
}

/// Defines functions whose plain loops are compiled once per [`Level`] and chosen at run time.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls code for the features that the machine was found to have")]
        #[allow(clippy::too_many_arguments, reason = "numbers of one loop")]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")]
            fn v4($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn v3($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            match $crate::num::simd::level() {
                // SAFETY: `level` has found these features.
                #[cfg(target_arch = "x86_64")]
                $crate::num::simd::Level::V4 => unsafe { v4($($arg),*) },
                // SAFETY: `level` has found these features.
                #[cfg(target_arch = "x86_64")]
                $crate::num::simd::Level::V3 => unsafe { v3($($arg),*) },
                _ => body($($arg),*),
            }
        }
    )*};
}
pub(crate) use vectorised;
