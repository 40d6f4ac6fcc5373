//! What frozen teachers say of a job's samples, as work that may be shared out before its training: the estimate of a
//! probe, and the one rule by which it is.

use serde::{Deserialize, Serialize};

/// Bytes a second that a file makes on its way to the blob store, or from there.
const RATE: f64 = 5e7;
/// Seconds of work that make a unit: below that, what it takes to start a rank counts.
const UNIT: f64 = 10.0;
/// A unit is so many times the work that its rank begins with, at least.
const OPENINGS: f64 = 4.0;
/// Most units for each idle slot: a lost one costs little, and the last ones end at about the same time.
const EACH: usize = 4;
/// Most units of a step.
const MOST: usize = 128;

/// What teachers have not said yet, as far as the node knows that has looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Teaching {
    /// Samples, times views, that no cache of the node has.
    pub rows: u64,
    /// Seconds that all teachers together take for them, on one rank of that node.
    pub seconds: f64,
    /// Bytes of what they say of all samples and views, as it is kept.
    pub bytes: u64,
    /// Seconds that a rank takes to open the data and the networks, before each unit.
    #[serde(default)]
    pub opening: f64,
}

impl Teaching {
    /// Seconds by which training begins sooner if all of `idle` slots work for it first instead of the `gang` slots among
    /// them, on so many `nodes`, that will train: the time of the work on either, less what ranks begin each unit with, the
    /// way of the outputs to the blob store and to each node, and that of what must be `brought` to others before. Below 0
    /// where that is later.
    pub fn saved(&self, (gang, nodes): (usize, usize), idle: usize, brought: u64) -> f64 {
        let on = |slots: usize| self.seconds / slots.max(1) as f64;
        let opening = self.opening * (self.units(idle) as usize).div_ceil(idle.max(1)) as f64;
        let moved = brought as f64 + (1 + nodes) as f64 * self.bytes as f64;
        on(gang) - on(idle) - opening - moved / RATE
    }

    /// Into how many units it is cut for so many idle slots.
    pub fn units(&self, idle: usize) -> u32 {
        let idle = idle.clamp(1, MOST);
        let wanted = (self.seconds / UNIT.max(OPENINGS * self.opening)).ceil() as usize;
        let rows = usize::try_from(self.rows).unwrap_or(usize::MAX).max(1);
        wanted.clamp(idle, (EACH * idle).min(MOST)).min(rows) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_the_time_of_the_slots_that_would_be_idle_less_that_of_the_files() {
        let teaching = Teaching { rows: 1000, seconds: 120.0, ..Teaching::default() };
        assert_eq!(teaching.saved((1, 1), 3, 0), 80.0);
        assert_eq!(teaching.saved((2, 1), 3, 0), 20.0);
        assert_eq!(teaching.saved((3, 1), 3, 0), 0.0);
        // 500 MB go there and come back in 20 seconds, and to a second node in 10 more.
        let large = Teaching { bytes: 500_000_000, ..teaching };
        assert_eq!((large.saved((2, 1), 3, 0), large.saved((2, 2), 3, 0)), (0.0, -10.0));
        assert!(Teaching { bytes: 5_000_000_000, ..teaching }.saved((1, 1), 3, 0) < 0.0);
        // So does what is needed for a unit.
        assert_eq!(teaching.saved((2, 1), 3, 1_000_000_000), 0.0);
    }

    #[test]
    fn units_are_of_ten_seconds_one_to_four_for_each_slot_and_never_without_a_row() {
        let units = |rows, seconds, idle| Teaching { rows, seconds, ..Teaching::default() }.units(idle);
        assert_eq!(units(1000, 75.0, 3), 8);
        assert_eq!(units(1000, 0.1, 3), 3);
        assert_eq!(units(1000, 1e9, 3), 12);
        assert_eq!(units(2, 75.0, 3), 2);
        assert_eq!(units(0, 75.0, 3), 1);
        assert_eq!(units(1 << 40, 1e9, 5_000), 128);
        assert_eq!(units(1000, f64::NAN, 0), 1, "an odd estimate is one unit");
    }

    #[test]
    fn what_ranks_begin_with_makes_units_larger_and_counts_for_each() {
        let of = |opening| Teaching { rows: 1000, seconds: 120.0, bytes: 0, opening };
        // A tenth of the work is no reason for larger units: four on each slot, each with its opening.
        assert_eq!((of(1.0).units(3), of(1.0).saved((1, 1), 3, 0)), (12, 76.0));
        // 20 seconds of opening make units of 80, but none has less than one.
        assert_eq!((of(20.0).units(3), of(20.0).saved((1, 1), 3, 0)), (3, 60.0));
        assert!(of(100.0).saved((1, 1), 3, 0) < 0.0, "it would begin later");
        let older: Teaching = serde_json::from_str(r#"{"rows": 1, "seconds": 2.0, "bytes": 3}"#).unwrap();
        assert_eq!(older.opening, 0.0);
    }
}
