//! Why weights did not come from the hub: one sentence, one hint.

use std::time::Duration;

use tl_proto::failure::{Failure, FailureClass};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error("the hub at {endpoint} cannot be reached: {why}")]
    Away {
        /// Where it should be.
        endpoint: String,
        /// What was tried in vain.
        why: String,
        /// For how long it wants to be left alone, where it says so.
        after: Option<Duration>,
    },
    /// Nobody may be asked.
    #[error("the hub at {0} cannot be reached: `HF_HUB_OFFLINE` is set")]
    Offline(String),
    /// Its address is none.
    #[error("`HF_ENDPOINT` {0}; write `https://HOST`, and a token in `HF_TOKEN`")]
    Endpoint(&'static str),
    /// Whom to trust cannot be read.
    #[error("`{variable}` names `{path}`: {why}; name certificates that can be read, or set it to nothing")]
    Roots {
        /// What names it.
        variable: &'static str,
        /// Where they should be.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// It does not say what it has to strangers.
    #[error("the hub has no such repository, or wants a token that may read it")]
    Denied,
    /// It has the repository, but not that revision.
    #[error("the repository has no revision `{0}`")]
    NoRevision(String),
    /// It has the repository in that revision, but not that file.
    #[error("the repository has no `{0}`")]
    NoFile(String),
    /// What came is not what was announced.
    #[error("{0}")]
    Wrong(String),
    /// More than is read.
    #[error("`{file}` has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// What it has.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// The cache.
    #[error("the cache `{0}` refuses: {1}")]
    Disk(String, std::io::Error),
    /// Nobody wants it any more.
    #[error("it is no longer wanted")]
    Stopped,
    /// A mistake of ours.
    #[error("it ended as it never should: {0}")]
    Internal(String),
}

impl Error {
    /// Whether the hub has said nothing at all.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Offline(_))
    }

    /// The same for the history of a job.
    pub fn to_failure(&self, place: &str) -> Failure {
        let way = "give the node a way to it (`HTTPS_PROXY`, `HF_ENDPOINT`), or bring the files: `tlctl data push FOLDER`, \
                   and `weights = \"data:DIGEST\"`";
        let (class, hint) = match self {
            // Another attempt, maybe on another node, finds it back.
            Self::Away { .. } => (FailureClass::Crash, way),
            Self::Offline(_) => (FailureClass::User, way),
            Self::Endpoint(_) | Self::Roots { .. } => (FailureClass::User, ""),
            Self::Denied => (
                FailureClass::User,
                "check the name; for a repository that is not open to all, set `HF_TOKEN` where `tl-worker` is started",
            ),
            Self::NoRevision(_) | Self::NoFile(_) => (
                FailureClass::User,
                "look what is there, perhaps `pytorch_model.bin`, and write `hf://OWNER/REPO@REVISION#FILE`",
            ),
            Self::TooLarge { .. } => {
                (FailureClass::User, "name a repository or a file that is smaller: `hf://OWNER/REPO@REVISION#FILE`")
            }
            Self::Wrong(_) => (FailureClass::User, "try again; if it stays so, the hub's own file is damaged"),
            Self::Disk(..) => (FailureClass::Disk, "free some space, or set `HF_HOME` to a folder that has it"),
            Self::Stopped => (FailureClass::Stopped, ""),
            Self::Internal(_) => (FailureClass::Crash, "the log of `tl-worker` has more"),
        };
        Failure::new(class, format!("`{place}` cannot be fetched: {self}"), hint)
    }
}
