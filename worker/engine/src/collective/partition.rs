//! Which rank owns which grains, or samples, or whatever is divided.

use std::ops::Range;

/// Contiguous runs of `items`, one per rank: loads differ by at most one, earlier ranks take the larger ones.
pub fn partition(items: usize, world: usize) -> Vec<Range<usize>> {
    by_weight(items, &vec![1; world])
}

/// Contiguous runs of `items`, one per rank, so that the largest load over weight is as small as it can be. A rank of
/// little weight may own nothing.
pub fn by_weight(items: usize, weights: &[u32]) -> Vec<Range<usize>> {
    let total: u64 = weights.iter().map(|w| u64::from((*w).max(1))).sum::<u64>().max(1);
    let weight = |r: usize| u64::from(weights[r].max(1));
    // Everyone's share rounded down; what is left goes where it weighs least, one at a time.
    let mut loads: Vec<u64> = (0..weights.len()).map(|r| items as u64 * weight(r) / total).collect();
    for _ in loads.iter().sum::<u64>()..items as u64 {
        let lightest = (0..loads.len()).min_by(|a, b| {
            // (load + 1) / weight, compared without dividing.
            ((loads[*a] + 1) * weight(*b)).cmp(&((loads[*b] + 1) * weight(*a)))
        });
        if let Some(r) = lightest {
            loads[r] += 1;
        }
    }
    let mut next = 0;
    let runs = loads.into_iter().map(|load| {
        let from = next;
        next += load as usize;
        from..next
    });
    runs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_tile_the_grains_and_loads_differ_by_one() {
        for grains in 0..20 {
            for world in 1..12 {
                let parts = partition(grains, world);
                assert_eq!(parts.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..grains).collect::<Vec<_>>());
                let loads: Vec<usize> = parts.iter().map(Range::len).collect();
                assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
                assert!(loads.is_sorted_by(|a, b| a >= b), "earlier ranks take the larger ones: {loads:?}");
            }
        }
    }

    proptest::proptest! {
        /// No other division has a smaller time, where the time of a rank is its load over its weight.
        #[test]
        fn unequal_ranks_finish_as_early_as_they_can(items in 0usize..60, weights in proptest::collection::vec(1u32..20, 1..6)) {
            let parts = by_weight(items, &weights);
            assert_eq!(parts.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..items).collect::<Vec<_>>());
            let time = |load: usize, r: usize| load as f64 / f64::from(weights[r]);
            let slowest = (0..weights.len()).map(|r| time(parts[r].len(), r)).fold(0.0, f64::max);
            // With any less time, the ranks together could not do it.
            let able: usize = weights.iter().map(|w| ((slowest - 1e-9) * f64::from(*w)).floor().max(0.0) as usize).sum();
            assert!(items == 0 || able < items, "{parts:?} by {weights:?}");
        }
    }
}
