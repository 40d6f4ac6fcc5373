//! Which rank owns which grains.

use std::ops::Range;

/// Contiguous runs of `grains`, one per rank: loads differ by at most one, earlier ranks take the larger ones.
pub fn partition(grains: usize, world: usize) -> Vec<Range<usize>> {
    let (each, extra) = (grains / world, grains % world);
    let mut next = 0;
    (0..world)
        .map(|r| {
            let from = next;
            next += each + usize::from(r < extra);
            from..next
        })
        .collect()
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
                let loads = parts.iter().map(Range::len);
                assert!(loads.clone().max().unwrap() - loads.min().unwrap() <= 1);
            }
        }
    }
}
