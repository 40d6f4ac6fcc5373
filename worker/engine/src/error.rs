//! What can go wrong in training, typed by what should happen next.

use tl_proto::failure::{Failure, FailureClass};

/// A failure of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job asks for something that cannot be done; only the user can mend it.
    #[error("{message}")]
    User {
        /// One sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
    /// A peer is gone or silent.
    #[error("rank {peer} was lost: {cause}")]
    LostPeer {
        /// Its rank.
        peer: usize,
        /// What was observed.
        cause: String,
    },
    /// The way between the ranks has failed, and no peer is known to be gone.
    #[error("the ranks lost each other: {0}")]
    LostGroup(String),
    /// The loss or a gradient is not finite.
    #[error("{0}")]
    NotFinite(String),
    /// The disk refused.
    #[error("failed to {what}: {source}")]
    Disk {
        /// What was being done.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A GPU that a slot names cannot be used.
    #[error("GPU {number} cannot be used: {cause}")]
    Gpu {
        /// Its number on the node.
        number: u32,
        /// What was observed.
        cause: String,
    },
    /// There is no room for another array on the GPU; there would be none the next time either.
    #[error("the memory of the GPU is full")]
    GpuMemory,
    /// The run was asked to stop.
    #[error("the rank was asked to stop")]
    Stopped,
    /// A tensor operation failed; a bug of ours.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Anything else that should not happen.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that only the user can mend.
    pub fn user(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: hint.into() }
    }

    /// A failure of the disk while doing `what`.
    pub fn disk(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Disk { what, source }
    }

    /// The same of a network that the job names in that section: a hint that names keys of `[model]` names its keys.
    pub(crate) fn of_section(mut self, section: &str) -> Self {
        if let Self::User { hint, .. } = &mut self {
            for key in ["adapter", "backbone", "head", "input", "weights"] {
                *hint = hint.replace(&format!("`model.{key}"), &format!("`{section}.{key}"));
            }
        }
        self
    }

    /// What the coordinator is told.
    pub fn to_failure(&self) -> Failure {
        let (class, hint) = match self {
            Self::User { hint, .. } => (FailureClass::User, hint.clone()),
            Self::LostPeer { .. } | Self::LostGroup(_) => (FailureClass::LostPeer, String::new()),
            Self::NotFinite(_) => (FailureClass::Nan, "lower the learning rate, or set `optimizer.clip_norm`".into()),
            Self::Disk { .. } => (FailureClass::Disk, "free some space on the node".into()),
            Self::Gpu { .. } => (
                FailureClass::Crash,
                "`tl-worker doctor` on its node says more; `cluster.device = \"cpu\"` does without".into(),
            ),
            Self::GpuMemory => (
                FailureClass::OutOfMemory,
                "raise `data.grains`, lower `data.batch` or `model.input`, or use GPUs with more memory".into(),
            ),
            Self::Stopped => (FailureClass::Stopped, String::new()),
            Self::Tensor(_) | Self::Internal(_) => (FailureClass::Crash, "`tlctl logs` has the details".into()),
        };
        Failure::new(class, self.to_string(), hint)
    }
}
