//! What a library calls a number that it has answered.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr::null,
};

use crate::{Library, Opened};

impl Library {
    /// Its name for an answer, as [`Opened::answer`]; the number where there is no such library.
    pub fn answer(self, code: c_int) -> String {
        self.open().map_or_else(|_| number(code), |opened| opened.answer(code))
    }
}

impl Opened {
    /// Its name for an answer, as in `CUDNN_STATUS_NOT_SUPPORTED`, also for one that is newer than whoever asks; the number where
    /// it does not tell.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn answer(&self, code: c_int) -> String {
        type Name = unsafe extern "C" fn(c_int) -> *const c_char;
        type Write = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let asked = match self.library() {
            Library::Driver => "cuGetErrorName",
            Library::Cublas => "cublasGetStatusName",
            Library::Cudnn => "cudnnGetErrorString",
            Library::Nvrtc => "nvrtcGetErrorString",
            // What this one tells are no names.
            Library::Nccl => return number(code),
        };
        let mut text = null();
        // SAFETY: the types are those of each library's documentation, with the C enums as ints, and any int may be asked about.
        // What comes back is a string that lives as long as the library, or null, or, of the driver, an error and nothing.
        unsafe {
            if self.library() == Library::Driver {
                let _ = self.function::<Write>(asked).map(|write| write(code, &mut text));
            } else if let Ok(name) = self.function::<Name>(asked) {
                text = name(code);
            }
            if text.is_null() { number(code) } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    }
}

fn number(code: c_int) -> String {
    format!("status {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_name_that_its_library_gives_it_or_is_a_number() {
        let dir = tempfile::tempdir().unwrap();
        crate::fake::build_computing(dir.path()).unwrap();
        let open = |library: Library| library.find(None, &[dir.path().into()], &[]).unwrap();
        assert_eq!(open(Library::Driver).answer(700), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(open(Library::Cudnn).answer(3999), "CUDNN_STATUS_FAKE_3999");
        for nameless in [Library::Nccl, Library::Cublas] {
            assert_eq!(open(nameless).answer(6), "status 6");
        }
    }
}
