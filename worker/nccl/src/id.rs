//! The name under which ranks meet.

use std::fmt;

/// What one rank makes and tells the others, over a channel that they have already, before they connect. Good for one
/// communicator.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId([u8; Self::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;

    /// To be sent.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for UniqueId {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for UniqueId {
    type Error = crate::NcclError;

    fn try_from(bytes: &[u8]) -> crate::Result<Self> {
        let wrong =
            |_| crate::NcclError::Argument(format!("a unique id has {} bytes, not {}", Self::BYTES, bytes.len()));
        bytes.try_into().map(Self).map_err(wrong)
    }
}

/// Whoever knows it can join: it is not for logs.
impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_other_lengths_are_refused() {
        let bytes: [u8; UniqueId::BYTES] = std::array::from_fn(|i| (i * 37) as u8);
        let id = UniqueId::try_from(&bytes[..]).unwrap();
        assert_eq!((id.as_bytes(), &id), (&bytes, &UniqueId::from(bytes)));
        for len in [0, 127] {
            assert!(UniqueId::try_from(&bytes[..len]).unwrap_err().to_string().contains(&len.to_string()));
        }
        assert_eq!(format!("{id:?}"), "UniqueId(..)");
    }
}
