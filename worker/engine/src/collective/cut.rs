//! How a flat gradient is cut into buckets, and which of them may be added up.
//!
//! Backward makes a gradient from the end of the network to its beginning, and buckets go in that order: one after the other,
//! whatever is ready first, since all ranks have to begin the same sums in the same order.

use std::{collections::BTreeMap, ops::Range};

use crate::{Error, Result};

/// One gradient's buckets.
pub(super) struct Cut {
    len: usize,
    size: usize,
    /// How many numbers each bucket that has not gone still waits for.
    missing: Vec<usize>,
    /// The runs that are final: where each begins, and where it ends.
    ready: BTreeMap<usize, usize>,
}

impl Cut {
    /// Buckets of `size` numbers, which begin at multiples of it; the last one of what is left.
    pub fn new(len: usize, size: usize) -> Self {
        let size = size.max(1);
        let missing = (0..len).step_by(size).map(|from| size.min(len - from)).collect();
        Self { len, size, missing, ready: BTreeMap::new() }
    }

    fn bucket(&self, at: usize) -> Range<usize> {
        at * self.size..((at + 1) * self.size).min(self.len)
    }

    /// What has not gone, in the order in which it will.
    pub fn left(&self) -> Vec<Range<usize>> {
        (0..self.missing.len()).rev().map(|at| self.bucket(at)).collect()
    }

    /// Refuses a run of numbers of which there is not each, or some are final.
    ///
    /// # Errors
    /// It is such a one.
    pub fn is_open(&self, run: &Range<usize>) -> Result<()> {
        let bad = |what: &str| Err(Error::Internal(format!("numbers {run:?} of a gradient of {} {what}", self.len)));
        if run.start > run.end || run.end > self.len {
            return bad("are not there");
        }
        // Runs do not overlap: the last one that begins before the end of this one reaches farthest.
        let reached = self.ready.range(..run.end).next_back().map_or(0, |(_, end)| *end);
        if !run.is_empty() && reached > run.start {
            return bad("are final already");
        }
        Ok(())
    }

    /// What may go now that these numbers are final too, in order.
    ///
    /// # Errors
    /// As [`Self::is_open`].
    pub fn ready(&mut self, run: Range<usize>) -> Result<Vec<Range<usize>>> {
        self.is_open(&run)?;
        if run.is_empty() {
            return Ok(Vec::new());
        }
        for at in run.start / self.size..=(run.end - 1) / self.size {
            let bucket = self.bucket(at);
            if let Some(missing) = self.missing.get_mut(at) {
                *missing -= run.end.min(bucket.end) - run.start.max(bucket.start);
            }
        }
        self.ready.insert(run.start, run.end);
        let mut go = Vec::new();
        while self.missing.last() == Some(&0) {
            self.missing.pop();
            go.push(self.bucket(self.missing.len()));
        }
        Ok(go)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::rng::Philox;

    proptest::proptest! {
        /// However the gradient comes in.
        #[test]
        fn each_bucket_goes_once_when_it_is_whole_and_the_last_one_first(
            len in 0usize..200, size in 1usize..50, cuts in proptest::collection::vec(0usize..200, 0..8), seed in 0u32..1000
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let runs: Vec<Range<usize>> = cuts.windows(2).map(|w| w[0]..w[1]).collect();
            let order = Philox::new(seed, "cut").permutation(runs.len(), 0);
            let (mut cut, mut there, mut gone) = (Cut::new(len, size), vec![false; len], Vec::new());
            let all = cut.left();
            for at in order {
                let run = runs[at].clone();
                cut.is_open(&run).unwrap();
                there[run.clone()].fill(true);
                let go = cut.ready(run.clone()).unwrap();
                assert!(go.iter().all(|bucket| there[bucket.clone()].iter().all(|t| *t)), "before it is whole");
                gone.extend(go);
                // All that could have gone has.
                assert!(cut.left().first().is_none_or(|next| there[next.clone()].contains(&false)));
                assert!(run.is_empty() || cut.ready(run).is_err(), "twice");
            }
            assert_eq!(gone, all);
            assert!(cut.left().is_empty());
            assert_eq!(gone.into_iter().rev().flatten().collect::<Vec<_>>(), (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn buckets_begin_at_multiples_of_their_size() {
        assert_eq!(Cut::new(10, 4).left(), [8..10, 4..8, 0..4]);
        assert_eq!(Cut::new(8, 4).left(), [4..8, 0..4]);
        assert_eq!(Cut::new(3, 4).left().first(), Some(&(0..3)));
        assert!(Cut::new(0, 4).left().is_empty());
    }

    #[test]
    fn what_is_final_or_not_there_is_refused() {
        let mut cut = Cut::new(10, 4);
        assert!(cut.ready(4..7).unwrap().is_empty());
        for run in [6..8, 3..5, 4..7, 0..10, 5..6, 9..11, 11..12] {
            assert!(cut.is_open(&run).is_err() && cut.ready(run).is_err());
        }
        assert_eq!(cut.ready(7..10).unwrap(), [8..10, 4..8]);
        assert_eq!(cut.left().first(), Some(&(0..4)));
    }
}
