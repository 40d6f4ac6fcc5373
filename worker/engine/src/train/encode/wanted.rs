//! Which samples go through a prefix, in which company, and what their outputs are called in the cache.
//!
//! On the host a sample comes to the same bits in any company: layers are row-stable. On a GPU they are not: libraries choose
//! by the shape of a whole pass, and sequences get as much room as the longest one takes. There a sample always goes with the
//! same others, whoever computes it and whatever is known already, and its outputs are named after them too. One that is left
//! out, because it will not decode, is missing in its own company, and moves nobody from one to another: who knows of a part of
//! the samples alone has the same companies.

use std::{collections::BTreeMap, ops::Range};

use super::Samples;
use crate::{
    cache::{self, Key},
    data::augment::View,
    gpu::Place,
};

/// Samples of one pass on the host.
const CHUNK: usize = 8;
/// Samples and views of one pass on a GPU, or all views of one sample. Part of the result.
const COMPANY: usize = 32;

/// Every sample in every view of it that is kept, one after the other.
pub struct Wanted {
    pub rows: Vec<(usize, View)>,
    /// Their contents.
    pub keys: Vec<Key>,
    /// Rows that go together, where that matters: all of them, in order.
    companies: Option<Vec<Range<usize>>>,
}

/// How many samples of so many views go together, where that matters.
pub fn company(views: usize, place: &Place) -> Option<usize> {
    let matters = match place {
        Place::Host => false,
        #[cfg(feature = "cuda")]
        Place::Gpu(_) => true,
    };
    matters.then(|| (COMPANY / views.max(1)).max(1))
}

impl Wanted {
    pub fn of(samples: &Samples, place: &Place) -> Self {
        let views = samples.views().unwrap_or(1);
        let row = |at: usize| (at / views, samples.view(at / views, (at % views) as u64));
        let rows: Vec<_> = (0..samples.count() * views).map(row).collect();
        let key = |(index, view): &(usize, View)| cache::key(&samples.dataset.digest(*index), &view.describe());
        let keys = rows.iter().map(key).collect();
        let places = (0..samples.count()).map(|index| samples.place(index));
        Self { rows, keys, companies: company(views, place).map(|most| companies(places, most, views)) }
    }

    /// What the outputs of each content are called: those of the first sample that has it count for all.
    pub fn names(&self) -> BTreeMap<Key, Key> {
        let Some(companies) = &self.companies else { return self.keys.iter().map(|key| (*key, *key)).collect() };
        let mut names = BTreeMap::new();
        for company in companies {
            let together = &self.keys[company.clone()];
            let all = blake3::hash(together.as_flattened());
            for (at, key) in together.iter().enumerate() {
                let name = || *blake3::hash(&[&all.as_bytes()[..], &at.to_le_bytes()].concat()).as_bytes();
                names.entry(*key).or_insert_with(name);
            }
        }
        names
    }

    /// Rows that go through the prefix together, so that what `missing` (ascending) names is computed.
    pub fn passes(&self, missing: &[usize]) -> Vec<Vec<usize>> {
        let Some(companies) = &self.companies else { return missing.chunks(CHUNK).map(<[usize]>::to_vec).collect() };
        let misses = |company: &&Range<usize>| {
            let next = missing.partition_point(|j| *j < company.start);
            missing.get(next).is_some_and(|j| *j < company.end)
        };
        companies.iter().filter(misses).map(|company| company.clone().collect()).collect()
    }
}

/// Rows that go together, of samples with so many views that were at these places, of which at most so many go together.
fn companies(places: impl Iterator<Item = usize>, most: usize, views: usize) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut last = None;
    for (index, place) in places.enumerate() {
        // Whole samples, by where they were among all.
        let number = place / most;
        let rows = index * views..(index + 1) * views;
        match all.last_mut().filter(|_| last == Some(number)) {
            Some(company) => company.end = rows.end,
            None => all.push(rows),
        }
        last = Some(number);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(keys: &[u8], company: Option<usize>) -> Wanted {
        let rows = (0..keys.len()).map(|index| (index, View::PLAIN)).collect();
        let companies = company.map(|most| companies(0..keys.len(), most, 1));
        Wanted { rows, keys: keys.iter().map(|key| [*key; 32]).collect(), companies }
    }

    #[test]
    fn who_is_left_out_is_missing_in_its_own_company_alone() {
        assert_eq!(companies(0..7, 3, 2), [0..6, 6..12, 12..14]);
        // The third and the eighth are left out, and of all seven to twelve nobody else knows.
        let (all, part) = (vec![0, 1, 3, 4, 5, 6, 8, 9], vec![6, 8, 9]);
        assert_eq!(companies(all.into_iter(), 3, 1), [0..2, 2..5, 5..7, 7..8]);
        assert_eq!(companies(part.into_iter(), 3, 1), [0..2, 2..3]);
        let keys: Vec<u8> = (1..=8).collect();
        let of = |keys: &[u8], places: Vec<usize>| {
            Wanted { companies: Some(companies(places.into_iter(), 3, 1)), ..wanted(keys, None) }.names()
        };
        let (whole, less) = (of(&keys, (0..8).collect()), of(&[1, 3, 4, 5, 6, 7, 8], vec![0, 2, 3, 4, 5, 6, 7]));
        let same: Vec<u8> = less.iter().filter(|(key, name)| whole[*key] == **name).map(|(key, _)| key[0]).collect();
        assert_eq!(same, [4, 5, 6, 7, 8]);
        let unit = of(&[7, 8], vec![6, 7]);
        assert!(unit.iter().all(|(key, name)| whole[key] == *name), "a part has the companies of the whole");
    }

    #[test]
    fn on_a_gpu_a_sample_goes_with_the_same_others_whoever_computes_it_and_whatever_is_known() {
        let all = wanted(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], Some(4));
        let cold: Vec<Vec<usize>> = vec![(0..4).collect(), (4..8).collect(), (8..11).collect()];
        assert_eq!(all.passes(&(0..11).collect::<Vec<usize>>()), cold);
        // A warm cache, and ranks whose shares begin within a company.
        for missing in [&[1][..], &[0, 3, 9], &[3, 4], &[10], &[2, 5, 8], &[]] {
            let passes = all.passes(missing);
            assert!(passes.iter().all(|pass| cold.contains(pass)), "{missing:?} {passes:?}");
            assert!(missing.iter().all(|j| passes.iter().filter(|pass| pass.contains(j)).count() == 1), "{missing:?}");
            assert!(passes.iter().all(|pass| pass.iter().any(|j| missing.contains(j))), "{missing:?} {passes:?}");
        }
    }

    #[test]
    fn on_the_host_only_what_is_missing_is_computed() {
        let all = wanted(&[7; 30], None);
        let missing: Vec<usize> = (0..30).step_by(2).collect();
        assert_eq!(all.passes(&missing), [&missing[..8], &missing[8..]]);
    }

    #[test]
    fn on_a_gpu_outputs_are_named_after_the_company_too() {
        let names = |keys: &[u8], company| wanted(keys, company).names();
        let (few, more) = (names(&[1, 2, 3, 4, 5], Some(2)), names(&[1, 2, 3, 4, 5, 6], Some(2)));
        assert_eq!(few.values().collect::<std::collections::BTreeSet<_>>().len(), 5, "each has a name of its own");
        let same: Vec<u8> = few.iter().filter(|(key, name)| more[*key] == **name).map(|(key, _)| key[0]).collect();
        assert_eq!(same, [1, 2, 3, 4], "the fifth has another neighbour");
        let moved = names(&[2, 1], Some(2));
        assert!(moved.iter().all(|(key, name)| few[key] != *name), "places matter too");
        // What is there twice is what comes first.
        assert_eq!(names(&[1, 2, 1, 3], Some(2))[&[1; 32]], few[&[1; 32]]);
        assert!(names(&[1, 2, 3], None).iter().all(|(key, name)| key == name));
    }
}
