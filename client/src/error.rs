//! What can go wrong for a client: one sentence, one hint, one exit code.

use tl_proto::spec::SpecError;
use tonic::{Code, Status};

/// A failure of a client's call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job, the model or the command line is wrong; nothing was started.
    #[error("{message}")]
    Input {
        /// One sentence.
        message: String,
        /// What to do next; may be empty.
        hint: String,
    },
    /// The coordinator cannot be reached.
    #[error("the coordinator at {address} cannot be reached: {cause}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        cause: String,
    },
    /// The coordinator says no.
    #[error("{message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// One sentence.
        message: String,
        /// What to do next; may be empty.
        hint: String,
    },
    /// A file of this machine.
    #[error("`{path}`: {cause}")]
    File {
        /// Its path.
        path: String,
        /// What happened.
        cause: std::io::Error,
    },
    /// A file that came over the network is not what it should be.
    #[error("`{0}` arrived damaged; try again")]
    Damaged(String),
    /// A process of a local cluster.
    #[error("{0}")]
    Local(String),
}

impl Error {
    /// Something that only the user can mend.
    pub fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input { message: message.into(), hint: hint.into() }
    }

    /// A failure at a file.
    pub fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |cause| Self::File { path, cause }
    }

    /// A call to `address` that has failed.
    pub(crate) fn call(address: &str, status: &Status) -> Self {
        let hint = status.metadata().get_bin("tl-hint-bin").and_then(|v| v.to_bytes().ok());
        let hint = hint.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let message = status.message().to_owned();
        // What answers so is a server of pages that knows no such page, and says so in a page or without.
        let no_page = match status.code() {
            Code::Unimplemented => message.starts_with("grpc-status header missing"),
            Code::Internal => message.contains("invalid compression flag"),
            _ => false,
        };
        match status.code() {
            _ if no_page => Self::input(
                format!("`{address}` answers, and does not speak gRPC"),
                "is it the port of the dashboard? `tlctl` needs the other one, which is 7070 unless `--listen` says otherwise",
            ),
            // A broken connection is `Unknown` or `Unavailable`, depending on when it broke.
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                Self::Unreachable { address: address.into(), cause: message }
            }
            Code::InvalidArgument => Self::Input { message, hint },
            code => Self::Refused { code, message, hint },
        }
    }

    /// What to do next; may be empty.
    pub fn hint(&self) -> &str {
        match self {
            Self::Input { hint, .. } | Self::Refused { hint, .. } => hint,
            Self::Unreachable { .. } => {
                "start one with `tl-coordinator` or `tlctl local up`, or name it with `--coordinator` or `TL_COORDINATOR`"
            }
            Self::File { .. } | Self::Damaged(_) | Self::Local(_) => "",
        }
    }

    /// The exit code of a command that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::File { .. } => 2,
            Self::Unreachable { .. } => 4,
            Self::Refused { .. } => 5,
            Self::Damaged(_) | Self::Local(_) => 1,
        }
    }
}

impl From<SpecError> for Error {
    fn from(e: SpecError) -> Self {
        Self::Input { message: e.to_string(), hint: e.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_knows_no_such_call_is_not_the_dashboard() {
        let error = |code: Code, text: &str| Error::call("c:7080", &Status::new(code, text));
        assert!(matches!(error(Code::Unimplemented, ""), Error::Refused { .. }));
        assert!(matches!(error(Code::Internal, "it broke"), Error::Refused { .. }));
        for (code, text) in [
            (Code::Unimplemented, "grpc-status header missing, mapped from HTTP status code 404"),
            (
                Code::Internal,
                "protocol error: received message with invalid compression flag: 123 (valid flags are 0 and 1)",
            ),
        ] {
            let page = error(code, text);
            assert!(
                matches!(&page, Error::Input { message, hint } if message.contains("c:7080") && hint.contains("7070"))
            );
        }
    }
}
