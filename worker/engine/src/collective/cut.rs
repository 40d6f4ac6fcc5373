//! How a flat gradient is cut into buckets, and which of them may be added up.
//!
//! Backward makes a gradient from the end of the network to its beginning, and buckets go in that order: one after the other,
//! whatever is ready first, since all ranks have to begin the same sums in the same order. What lies behind the gradient,
//! the sums of batch-norms, is whole only when backward is over: it goes last.

use std::{collections::BTreeMap, ops::Range};

use crate::{Error, Result};

/// One gradient's buckets.
pub(super) struct Cut {
    len: usize,
    /// The buckets that have not gone, the next one at the end, and how many numbers each still waits for.
    left: Vec<(Range<usize>, usize)>,
    /// The runs that are final: where each begins, and where it ends.
    ready: BTreeMap<usize, usize>,
}

impl Cut {
    /// Buckets of `size` numbers, which begin at multiples of it; the last one of what is left. Those of the numbers from
    /// `gradient` on are cut by themselves.
    pub fn new(len: usize, gradient: usize, size: usize) -> Self {
        let (size, gradient) = (size.max(1), gradient.min(len));
        let cut = |part: Range<usize>| {
            let end = part.end;
            part.step_by(size).map(move |from| from..end.min(from + size))
        };
        let left = cut(gradient..len).chain(cut(0..gradient)).map(|bucket| (bucket.clone(), bucket.len())).collect();
        Self { len, left, ready: BTreeMap::new() }
    }

    /// What has not gone, in the order in which it will.
    pub fn left(&self) -> Vec<Range<usize>> {
        self.left.iter().rev().map(|(bucket, _)| bucket.clone()).collect()
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
        for (bucket, missing) in &mut self.left {
            *missing -= run.end.min(bucket.end).saturating_sub(run.start.max(bucket.start));
        }
        self.ready.insert(run.start, run.end);
        let mut go = Vec::new();
        while let Some((bucket, _)) = self.left.pop_if(|(_, missing)| *missing == 0) {
            go.push(bucket);
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
            len in 0usize..200, gradient in 0usize..300, size in 1usize..50,
            cuts in proptest::collection::vec(0usize..200, 0..8), seed in 0u32..1000
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let runs: Vec<Range<usize>> = cuts.windows(2).map(|w| w[0]..w[1]).collect();
            let order = Philox::new(seed, "cut").permutation(runs.len(), 0);
            let (mut cut, mut there, mut gone) = (Cut::new(len, gradient, size), vec![false; len], Vec::new());
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
            // From the end of either part to its beginning, first the one and then the other.
            let first = gradient.min(len);
            let order = (0..first).rev().chain((first..len).rev());
            assert!(gone.iter().cloned().flat_map(Iterator::rev).eq(order));
            assert!(gone.iter().all(|b| b.len() <= size && (b.end <= first || b.start >= first)));
        }
    }

    #[test]
    fn buckets_begin_at_multiples_of_their_size_and_what_lies_behind_the_gradient_goes_last() {
        let left = |len, gradient| Cut::new(len, gradient, 4).left();
        assert_eq!(left(10, 10), [8..10, 4..8, 0..4]);
        assert_eq!(left(8, 8), [4..8, 0..4]);
        assert_eq!(left(3, 3).first(), Some(&(0..3)));
        assert!(left(0, 0).is_empty());
        assert_eq!(left(10, 5), [4..5, 0..4, 9..10, 5..9]);
        assert_eq!(left(10, 4), [0..4, 8..10, 4..8]);
        assert_eq!(left(6, 9), [4..6, 0..4]);
        assert_eq!(left(5, 0), [4..5, 0..4]);
    }

    #[test]
    fn what_is_final_or_not_there_is_refused() {
        let mut cut = Cut::new(10, 10, 4);
        assert!(cut.ready(4..7).unwrap().is_empty());
        for run in [6..8, 3..5, 4..7, 0..10, 5..6, 9..11, 11..12] {
            assert!(cut.is_open(&run).is_err() && cut.ready(run).is_err());
        }
        assert_eq!(cut.ready(7..10).unwrap(), [8..10, 4..8]);
        assert_eq!(cut.left().first(), Some(&(0..4)));
    }
}
