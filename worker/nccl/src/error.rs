//! What can go wrong.

use std::{ffi::c_int, fmt, time::Duration};

use crate::version::{OLDEST, Version};

/// A result of this crate.
pub type Result<T, E = NcclError> = std::result::Result<T, E>;

/// An answer of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub c_int);

impl Code {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// A peer has gone, or the network to it.
    pub const REMOTE: Self = Self(6);
    /// Not done yet.
    pub const IN_PROGRESS: Self = Self(7);

    /// As NCCL's documentation calls it; of a newer library's, only the number is known.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "ncclSuccess",
            1 => "ncclUnhandledCudaError",
            2 => "ncclSystemError",
            3 => "ncclInternalError",
            4 => "ncclInvalidArgument",
            5 => "ncclInvalidUsage",
            6 => "ncclRemoteError",
            7 => "ncclInProgress",
            8 => "ncclTimeout",
            _ => "an answer without a name",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// The library is not there.
    #[error(transparent)]
    Missing(#[from] nvlib::Missing),
    /// The library lacks a function that it should have.
    #[error(transparent)]
    NoSymbol(#[from] nvlib::NoSymbol),
    /// The library is older than non-blocking communicators.
    #[error("NCCL {found} (`{path}`) is too old: {OLDEST} or newer is needed")]
    TooOld {
        /// What there is.
        found: Version,
        /// The file.
        path: String,
    },
    /// The environment has the library wait in its calls, whatever a communicator is made with.
    #[error(
        "`NCCL_COMM_BLOCKING` is `{value}`, and NCCL may wait for a lost rank without end: leave it out, or set it to 0"
    )]
    Blocking {
        /// What it is.
        value: String,
    },
    /// The library is older than a function that was asked for.
    #[error("NCCL {found} has no {function}: that came with {since}")]
    Unsupported {
        /// What was asked for.
        function: &'static str,
        /// Where it came.
        since: Version,
        /// What there is.
        found: Version,
    },
    /// A rank or the way to it is gone: make a new communicator without it.
    #[error("a rank is lost: {detail}")]
    PeerLost {
        /// In the library's words.
        detail: String,
    },
    /// The communicator has failed by itself.
    #[error("the communicator has failed with {code}: {detail}")]
    Async {
        /// The answer.
        code: Code,
        /// In the library's words.
        detail: String,
    },
    /// It took too long; the communicator is of no use any more.
    #[error("{what} was not done within {} ms", after.as_millis())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// Somebody has aborted the communicator.
    #[error("the communicator was aborted")]
    Aborted,
    /// A call was refused.
    #[error("{function} answers {code}: {detail}")]
    Call {
        /// The function.
        function: &'static str,
        /// The answer.
        code: Code,
        /// In the library's words.
        detail: String,
    },
    /// Arguments that no call could be made with.
    #[error("{0}")]
    Argument(String),
    /// The driver refuses.
    #[error("{what}: {detail}")]
    Cuda {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        detail: String,
    },
    /// The system has no thread to give.
    #[error("no thread to watch the communicator: {0}")]
    Thread(String),
}

impl NcclError {
    /// For `map_err` on what the driver answers.
    pub(crate) fn cuda(what: &'static str) -> impl FnOnce(cudarc::driver::DriverError) -> Self {
        move |e| Self::Cuda { what, detail: nvlib::Library::Driver.answer(e.0 as c_int) }
    }

    /// What an error that a communicator reports by itself means.
    pub(crate) fn reported(code: Code, detail: String) -> Self {
        if code == Code::REMOTE { Self::PeerLost { detail } } else { Self::Async { code, detail } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_peer_is_told_from_other_failures_and_unknown_answers_are_no_accident() {
        assert!(matches!(NcclError::reported(Code(6), "x".into()), NcclError::PeerLost { .. }));
        let other = NcclError::reported(Code(99), "newer".into());
        assert_eq!(other.to_string(), "the communicator has failed with an answer without a name (99): newer");
    }
}
