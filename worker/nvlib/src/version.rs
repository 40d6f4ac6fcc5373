//! Which version a library is.

use std::ffi::c_int;

use crate::{Library, Opened};

impl Opened {
    /// Its version, as the library itself tells it; nothing if it does not.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn version(&self) -> Option<String> {
        type Numbers = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
        // SAFETY: the types are those of each library's documentation; none needs a GPU or keeps the pointers.
        unsafe {
            match self.library() {
                Library::Driver => {
                    let mut n = 0;
                    let ask: Number = self.function("cuDriverGetVersion").ok()?;
                    (ask(&mut n) == 0).then(|| format!("for CUDA {}.{}", n / 1000, n % 1000 / 10))
                }
                Library::Nccl => {
                    let mut n = 0;
                    let ask: Number = self.function("ncclGetVersion").ok()?;
                    if ask(&mut n) != 0 {
                        return None;
                    }
                    // Before 2.9 the parts were a digit narrower.
                    let unit = if n < 10_000 { 1_000 } else { 10_000 };
                    Some(format!("{}.{}.{}", n / unit, n % unit / 100, n % 100))
                }
                Library::Cublas => {
                    let ask: unsafe extern "C" fn(c_int, *mut c_int) -> c_int =
                        self.function("cublasGetProperty").ok()?;
                    let part = |which| {
                        let mut n = 0;
                        (ask(which, &mut n) == 0).then_some(n)
                    };
                    Some(format!("{}.{}.{}", part(0)?, part(1)?, part(2)?))
                }
                Library::Cudnn => {
                    let ask: unsafe extern "C" fn() -> usize = self.function("cudnnGetVersion").ok()?;
                    let n = ask();
                    Some(format!("{}.{}.{}", n / 10_000, n % 10_000 / 100, n % 100))
                }
                Library::Nvrtc => {
                    let (mut major, mut minor) = (0, 0);
                    let ask: Numbers = self.function("nvrtcVersion").ok()?;
                    (ask(&mut major, &mut minor) == 0).then(|| format!("{major}.{minor}"))
                }
            }
        }
    }
}
