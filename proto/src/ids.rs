//! Identifiers: prefixed ULIDs, so that an id says what it names and sorts by age.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &str = $prefix;

            /// Makes the id from its 128 random and time bits.
            pub fn from_bits(bits: u128) -> Self {
                Self(format!("{}_{}", $prefix, ulid::Ulid::from(bits).to_string().to_lowercase()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                let valid = text
                    .strip_prefix(concat!($prefix, "_"))
                    .is_some_and(|rest| rest.len() == 26 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
                if valid { Ok(Self(text)) } else { Err(BadId { wanted: $prefix, got: text.chars().take(40).collect() }) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Text that is not an id of the wanted kind.
#[derive(Debug, thiserror::Error)]
#[error("`{got}` is not an id of the form `{wanted}_…`")]
pub struct BadId {
    wanted: &'static str,
    got: String,
}

id!(
    /// A submitted job.
    JobId, "job"
);
id!(
    /// A machine with an agent; kept in the agent's data folder.
    NodeId, "node"
);

/// A phase of a job: `STEP/KIND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PhaseId(pub String);

impl PhaseId {
    /// The phase of `kind` in pipeline step `step`.
    pub fn new(step: &str, kind: &str) -> Self {
        Self(format!("{step}/{kind}"))
    }

    /// The pipeline step.
    pub fn step(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl fmt::Display for PhaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_refuses_other_kinds() {
        let id = JobId::from_bits(42);
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert!(id.to_string().parse::<NodeId>().is_err());
        assert!("job_../../etc/passwd".parse::<JobId>().is_err());
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        assert!(JobId::from_bits(1 << 90) > JobId::from_bits(1 << 80));
    }
}
