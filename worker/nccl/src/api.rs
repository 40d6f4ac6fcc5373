//! The functions of the library, looked up once.

use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_void},
    path::Path,
    sync::OnceLock,
};

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use nvlib::{Library, Opened};

use crate::{Code, NcclError, Result, Standing, UniqueId, Version};

pub(crate) type Stream = *mut c_void;
/// What takes a communicator and nothing else.
pub(crate) type OnComm = unsafe extern "C" fn(ncclComm_t) -> c_int;

/// What has the library block in its calls, whatever a communicator is made with.
const BLOCKING: &str = "NCCL_COMM_BLOCKING";

/// NCCL, as this machine has it.
pub struct Nccl {
    library: &'static Opened,
    version: Version,
    /// What the environment says to [`BLOCKING`], if the library may block because of that.
    pub(crate) blocking: Option<String>,
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    pub(crate) init: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int,
    pub(crate) async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    pub(crate) count: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    pub(crate) group_start: unsafe extern "C" fn() -> c_int,
    pub(crate) group_end: unsafe extern "C" fn() -> c_int,
    pub(crate) finalize: OnComm,
    pub(crate) destroy: OnComm,
    pub(crate) abort: OnComm,
    pub(crate) split:
        Option<unsafe extern "C" fn(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t) -> c_int>,
    pub(crate) shrink:
        Option<unsafe extern "C" fn(ncclComm_t, *mut c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t, c_int) -> c_int>,
    pub(crate) all_reduce: Reduction,
    pub(crate) reduce_scatter: Reduction,
    pub(crate) all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, ncclComm_t, Stream) -> c_int,
    pub(crate) broadcast: Reduction,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: Option<unsafe extern "C" fn(ncclComm_t) -> *const c_char>,
}

/// Source, target, count, type, operation (of a broadcast: root), communicator, stream.
pub(crate) type Reduction =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, Stream) -> c_int;

impl Nccl {
    /// The library of this machine, opened by the first call that finds it.
    ///
    /// # Errors
    /// There is none, or it is too old.
    pub fn open() -> Result<&'static Self> {
        static NCCL: OnceLock<Nccl> = OnceLock::new();
        if let Some(nccl) = NCCL.get() {
            return Ok(nccl);
        }
        let nccl = Self::load(Library::Nccl.open()?)?;
        Ok(NCCL.get_or_init(|| nccl))
    }

    #[expect(unsafe_code, reason = "functions of the library")]
    fn load(library: &'static Opened) -> Result<Self> {
        // SAFETY: every type below is the one of NCCL's documentation: statuses, types and operations are C enums that fit
        // an int, streams pointers.
        let version = unsafe {
            let ask: unsafe extern "C" fn(*mut c_int) -> c_int = library.function("ncclGetVersion")?;
            let mut number = 0;
            let _ = ask(&mut number);
            Version::from_number(number)
        };
        if version.standing() == Standing::Refused {
            return Err(NcclError::TooOld { found: version, path: library.path().display().to_string() });
        }
        // SAFETY: as above.
        unsafe {
            Ok(Self {
                library,
                version,
                // The library, once it is at work, changes the environment itself.
                blocking: blocks(std::env::var_os(BLOCKING).as_deref()),
                unique_id: library.function("ncclGetUniqueId")?,
                init: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                count: library.function("ncclCommCount")?,
                group_start: library.function("ncclGroupStart")?,
                group_end: library.function("ncclGroupEnd")?,
                finalize: library.function("ncclCommFinalize")?,
                destroy: library.function("ncclCommDestroy")?,
                abort: library.function("ncclCommAbort")?,
                split: library.function("ncclCommSplit").ok(),
                shrink: library.function("ncclCommShrink").ok(),
                all_reduce: library.function("ncclAllReduce")?,
                reduce_scatter: library.function("ncclReduceScatter")?,
                all_gather: library.function("ncclAllGather")?,
                broadcast: library.function("ncclBroadcast")?,
                error_string: library.function("ncclGetErrorString")?,
                last_error: library.function("ncclGetLastError").ok(),
            })
        }
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    /// The name of a new group of ranks.
    ///
    /// # Errors
    /// The library finds no network to meet on.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = ncclUniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: writes one id.
        let code = Code(unsafe { (self.unique_id)(&mut id) });
        if code != Code::SUCCESS {
            return Err(self.refused("ncclGetUniqueId", code, std::ptr::null_mut()));
        }
        Ok(UniqueId::from(id.internal.map(|c| c as u8)))
    }

    /// The error for a call that was refused. `comm` is a live communicator, or null.
    pub(crate) fn refused(&self, function: &'static str, code: Code, comm: ncclComm_t) -> NcclError {
        let detail = self.words(code, comm);
        if code == Code::REMOTE { NcclError::PeerLost { detail } } else { NcclError::Call { function, code, detail } }
    }

    /// What the library says about an answer. `comm` is a live communicator, or null.
    #[expect(unsafe_code, reason = "calls the library")]
    pub(crate) fn words(&self, code: Code, comm: ncclComm_t) -> String {
        let text = |pointer: *const c_char| {
            if pointer.is_null() {
                return String::new();
            }
            // SAFETY: a string of the library's, which ends with a zero and lives longer than this call.
            unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned()
        };
        // SAFETY: any number may be asked about.
        let general = text(unsafe { (self.error_string)(code.0) });
        // SAFETY: the caller vouches for the communicator; null is allowed.
        let last = self.last_error.map(|ask| text(unsafe { ask(comm) })).unwrap_or_default();
        match (general.is_empty(), last.is_empty()) {
            (_, true) => general,
            (true, false) => last,
            (false, false) => format!("{general} ({last})"),
        }
    }
}

/// What the value of [`BLOCKING`] is, if the library may take it for a yes: it reads numbers in more ways than one.
fn blocks(value: Option<&OsStr>) -> Option<String> {
    let value = value?.to_string_lossy();
    (!matches!(value.trim(), "" | "0")).then(|| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_0_may_have_the_library_block() {
        let told = |value: &str| blocks(Some(OsStr::new(value)));
        assert_eq!((blocks(None), told(""), told("0"), told(" 0 ")), (None, None, None, None));
        for value in ["1", " 1", "01", "0x1"] {
            assert_eq!(told(value).as_deref(), Some(value));
        }
    }
}
