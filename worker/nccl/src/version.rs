//! Versions of the library, and what is known of them.

use std::{fmt, ops::RangeInclusive};

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 2 in 2.28.3.
    pub major: u32,
    /// 28 in 2.28.3.
    pub minor: u32,
    /// 3 in 2.28.3.
    pub patch: u32,
}

/// The oldest library that is used: the first one with non-blocking communicators.
pub const OLDEST: Version = Version::new(2, 14, 0);
/// The first one that splits a communicator.
pub const SPLIT: Version = Version::new(2, 18, 1);
/// The first one that makes a smaller communicator of one that has lost ranks.
pub const SHRINK: Version = Version::new(2, 27, 3);

/// What is known to be wrong with some, in a sentence.
const WARNED: [(RangeInclusive<Version>, &str); 1] = [(
    Version::new(2, 28, 3)..=Version::new(2, 28, 8),
    "it is reported to crash when a process makes a new communicator after an aborted one",
)];

/// Those that this crate has been run with, on GPUs. None so far.
const TESTED: [RangeInclusive<Version>; 0] = [];

/// What to think of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Run with on GPUs.
    Tested,
    /// Nothing is known.
    Untested,
    /// It works, with a reservation.
    Warned(&'static str),
    /// It is not used.
    Refused,
}

impl Version {
    /// A version by its parts.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// From the number that the library gives: 2.28.3 is 22803; before 2.9, 2.8.4 was 2804.
    pub fn from_number(number: i32) -> Self {
        let n = u32::try_from(number).unwrap_or(0);
        if n < 10_000 {
            Self::new(n / 1000, n % 1000 / 100, n % 100)
        } else {
            Self::new(n / 10_000, n % 10_000 / 100, n % 100)
        }
    }

    /// What to think of it.
    pub fn standing(self) -> Standing {
        if self < OLDEST {
            return Standing::Refused;
        }
        if let Some((_, why)) = WARNED.iter().find(|(range, _)| range.contains(&self)) {
            return Standing::Warned(why);
        }
        if TESTED.iter().any(|range| range.contains(&self)) { Standing::Tested } else { Standing::Untested }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_ages_are_read() {
        for (number, text) in [(22803, "2.28.3"), (2804, "2.8.4"), (21400, "2.14.0"), (23007, "2.30.7"), (-1, "0.0.0")]
        {
            assert_eq!(Version::from_number(number).to_string(), text);
        }
    }

    #[test]
    fn the_table_refuses_the_old_and_warns_of_the_faulty() {
        let standing = |number| Version::from_number(number).standing();
        assert_eq!((standing(2804), standing(21304)), (Standing::Refused, Standing::Refused));
        assert_eq!((standing(21400), standing(22802), standing(22809)), [(); 3].map(|()| Standing::Untested).into());
        for number in 22803..=22808 {
            assert!(matches!(standing(number), Standing::Warned(why) if why.contains("aborted")), "{number}");
        }
    }
}
