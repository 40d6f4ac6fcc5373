//! Failures as data: a class that decides about retries, one sentence, one hint.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::v1;

/// What kind of thing went wrong; retries and back-off depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// A node, or a rank on it, is gone.
    LostNode,
    /// A peer stopped answering inside a collective.
    LostPeer,
    /// Memory ran out; the same attempt would fail again.
    OutOfMemory,
    /// The job asks for something that cannot be done.
    User,
    /// The loss or a gradient is not finite.
    Nan,
    /// The disk is full or failing.
    Disk,
    /// The process ended in a way that nothing explains.
    Crash,
    /// The rank was told to stop.
    Stopped,
    /// A step came to less than its gate asks for; the same training would come to the same.
    Gate,
    /// The device of a slot cannot be used any more; another one may do.
    LostDevice,
}

impl FailureClass {
    /// All classes, in order.
    pub const ALL: [Self; 10] = [
        Self::LostNode,
        Self::LostPeer,
        Self::OutOfMemory,
        Self::User,
        Self::Nan,
        Self::Disk,
        Self::Crash,
        Self::Stopped,
        Self::Gate,
        Self::LostDevice,
    ];

    /// The name on the wire and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LostNode => "lost_node",
            Self::LostPeer => "lost_peer",
            Self::OutOfMemory => "out_of_memory",
            Self::User => "user",
            Self::Nan => "nan",
            Self::Disk => "disk",
            Self::Crash => "crash",
            Self::Stopped => "stopped",
            Self::Gate => "gate",
            Self::LostDevice => "lost_device",
        }
    }

    /// The class of a name; an unknown one is a crash, so that a newer agent does not confuse us.
    pub fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|c| c.as_str() == name).unwrap_or(Self::Crash)
    }

    /// How many times a phase may fail this way before the job fails.
    pub fn retries(self) -> u32 {
        match self {
            Self::LostNode | Self::LostPeer | Self::LostDevice | Self::Stopped => 20,
            Self::Crash => 3,
            Self::Disk => 2,
            Self::OutOfMemory | Self::User | Self::Nan | Self::Gate => 0,
        }
    }

    /// Milliseconds to wait before try number `failures` (from 1).
    pub fn backoff_ms(self, failures: u32) -> u64 {
        match self {
            // The usual cause is one dead process: whoever is left goes on at once.
            Self::LostNode | Self::LostPeer | Self::LostDevice | Self::Stopped => {
                if failures <= 5 {
                    0
                } else {
                    1_000 << (failures - 5).min(5)
                }
            }
            _ => 1_000 << failures.min(6),
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure, ready for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides about retries.
    pub class: FailureClass,
    /// One sentence.
    pub message: String,
    /// What to do next; may be empty.
    #[serde(default)]
    pub hint: String,
}

impl Failure {
    /// A failure of `class` with its sentence and hint.
    pub fn new(class: FailureClass, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: hint.into() }
    }

    /// A failure that only the user can mend.
    pub fn user(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(FailureClass::User, message, hint)
    }
}

impl From<Failure> for v1::Failure {
    fn from(f: Failure) -> Self {
        Self { class: f.class.as_str().into(), message: f.message, hint: f.hint }
    }
}

impl From<v1::Failure> for Failure {
    fn from(f: v1::Failure) -> Self {
        Self { class: FailureClass::from_name(&f.class), message: f.message, hint: f.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for class in FailureClass::ALL {
            assert_eq!(FailureClass::from_name(class.as_str()), class);
        }
    }

    #[test]
    fn what_only_the_user_can_mend_is_never_retried() {
        assert_eq!(FailureClass::User.retries(), 0);
        assert_eq!(FailureClass::Nan.retries(), 0);
        assert!(FailureClass::LostNode.retries() > FailureClass::Crash.retries());
    }

    #[test]
    fn a_lost_rank_is_replaced_at_once_but_not_for_ever() {
        assert_eq!(FailureClass::LostNode.backoff_ms(1), 0);
        assert!(FailureClass::LostNode.backoff_ms(8) > FailureClass::LostNode.backoff_ms(7));
        assert_eq!((FailureClass::LostDevice.backoff_ms(1), FailureClass::LostDevice.retries()), (0, 20));
    }
}
