//! Which samples go through a prefix, in which company, and what their outputs are called in the cache.
//!
//! On the host a sample comes to the same bits in any company: layers are row-stable. On a GPU they are not: libraries choose
//! by the shape of a whole pass, and sequences get as much room as the longest one takes. There a sample always goes with the
//! same others, whoever computes it and whatever is known already, and its outputs are named after them too.

use std::collections::BTreeMap;

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
    /// How many go together, where that matters.
    company: Option<usize>,
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
        // Whole samples, so that a run of them that begins between two companies has the same ones.
        Self { rows, keys, company: company(views, place).map(|samples| samples * views.max(1)) }
    }

    /// What the outputs of each content are called: those of the first sample that has it count for all.
    pub fn names(&self) -> BTreeMap<Key, Key> {
        let Some(company) = self.company else { return self.keys.iter().map(|key| (*key, *key)).collect() };
        let mut names = BTreeMap::new();
        for together in self.keys.chunks(company) {
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
        let Some(company) = self.company else { return missing.chunks(CHUNK).map(<[usize]>::to_vec).collect() };
        let together = missing.chunk_by(|a, b| a / company == b / company);
        let whole = |first: usize| (first..self.keys.len().min(first + company)).collect();
        together.map(|some| whole(some[0] / company * company)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(keys: &[u8], company: Option<usize>) -> Wanted {
        let rows = (0..keys.len()).map(|index| (index, View::PLAIN)).collect();
        Wanted { rows, keys: keys.iter().map(|key| [*key; 32]).collect(), company }
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
