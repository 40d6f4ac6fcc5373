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
    /// Ranks that have met over TCP have not met over NCCL.
    #[error("the ranks reach each other over TCP and not over NCCL: {0}")]
    Unmet(String),
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
    /// There is no room for another array on the GPU. Others may use it too.
    #[error("the memory of the GPU is full")]
    GpuMemory(Full),
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

/// What the memory of a GPU was full of, which decides about what makes it less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// One grain at a time.
    Grain,
    /// All grains of a rank at a time.
    Grains,
    /// Samples at a time whose number no job sets: those that are judged, or run through a frozen prefix once.
    Samples,
}

impl Full {
    fn hint(self) -> String {
        let less = match self {
            Self::Grain => "raise `data.grains`, lower `data.batch` or `model.input`",
            Self::Grains => "lower `data.batch` or `model.input`, raise `cluster.ranks`",
            Self::Samples => "lower `model.input`, take a smaller `model.backbone`",
        };
        format!("{less}, use GPUs with more memory, or set `cluster.device = \"cpu\"`")
    }
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

    /// Whether the memory of a GPU was full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::GpuMemory(_))
    }

    /// The same, where the memory of a GPU was full, with what it was full of.
    pub(crate) fn full_of(self, what: Full) -> Self {
        if self.is_full() { Self::GpuMemory(what) } else { self }
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
            Self::Unmet(_) => (
                FailureClass::Crash,
                "name the network between the nodes with `NCCL_SOCKET_IFNAME` where workers start, or set \
                 `cluster.reduction = \"ordered\"`"
                    .into(),
            ),
            Self::GpuMemory(full) => (FailureClass::OutOfMemory, full.hint()),
            Self::Stopped => (FailureClass::Stopped, String::new()),
            Self::Tensor(_) | Self::Internal(_) => (FailureClass::Crash, "`tlctl logs` has the details".into()),
        };
        Failure::new(class, self.to_string(), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_is_told_what_makes_less_of_what_has_filled_it() {
        let told = |what| Error::GpuMemory(Full::Grain).full_of(what).to_failure();
        let all = [Full::Grain, Full::Grains, Full::Samples].map(told);
        assert!(all.iter().all(|failure| failure.class == FailureClass::OutOfMemory));
        assert!(all.iter().all(|failure| failure.hint.ends_with("or set `cluster.device = \"cpu\"`")), "{all:?}");
        let says = |word: &str| all.iter().map(|failure| failure.hint.contains(word)).collect::<Vec<_>>();
        assert_eq!(says("`data.grains`"), [true, false, false], "they are all there at once, or are none");
        assert_eq!(says("`data.batch`"), [true, true, false], "what is judged has a batch of its own");
        assert!(matches!(Error::Stopped.full_of(Full::Grains), Error::Stopped));
    }
}
