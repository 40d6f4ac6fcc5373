//! Why weights did not come from the hub: one sentence, one hint.

use tl_proto::failure::{Failure, FailureClass};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers, or nobody may be asked.
    #[error("the hub at {endpoint} cannot be reached: {why}")]
    Away {
        /// Where it should be.
        endpoint: String,
        /// What was tried in vain.
        why: String,
    },
    /// It does not say what it has to strangers.
    #[error("the hub has no such repository, or wants a token that may read it")]
    Denied,
    /// It has the repository, but not that.
    #[error("the repository has no {0}")]
    Missing(String),
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
}

impl Error {
    /// Whether another try may help.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// The same for the history of a job.
    pub fn to_failure(&self, place: &str) -> Failure {
        let (class, hint) = match self {
            Self::Away { .. } => (
                FailureClass::User,
                "give the node a way to it (`HTTPS_PROXY`, `HF_ENDPOINT`), or bring the files: `tlctl data push FOLDER`, \
                 and `weights = \"data:DIGEST\"`",
            ),
            Self::Denied => (
                FailureClass::User,
                "check the name; for a repository that is not open to all, set `HF_TOKEN` where `tl-worker` is started",
            ),
            Self::Missing(_) => (FailureClass::User, "look what is there, and write `hf://OWNER/REPO@REVISION#FILE`"),
            Self::TooLarge { .. } => (FailureClass::User, ""),
            Self::Wrong(_) => (FailureClass::User, "try again; if it stays so, the hub's own file is damaged"),
            Self::Disk(..) => (FailureClass::Disk, "free some space, or set `HF_HOME` to a folder that has it"),
            Self::Stopped => (FailureClass::Stopped, ""),
        };
        Failure::new(class, format!("`{place}` cannot be fetched: {self}"), hint)
    }
}
