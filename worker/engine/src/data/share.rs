//! Samples that nobody has divided: a share of each class is for validation, and the others are trained on.

use super::{Dataset, Subset};

/// The samples of a part where a `share` of each class is for validation, at least one and never all; a class of one sample,
/// or of samples that are all the same, trains. Which they are goes by what is in them, and so not by their names, by the
/// seed, or by who looks: networks of one pipeline never judge what another has learned from. Samples of a class that are the
/// same are of one part.
pub(super) fn part(inner: Box<dyn Dataset>, share: f64, validates: bool) -> Subset {
    let mut classes: Vec<Vec<([u8; 32], usize)>> = vec![Vec::new(); inner.classes().len()];
    for (i, label) in inner.labels().iter().enumerate() {
        if let Some(own) = classes.get_mut(*label) {
            own.push((*blake3::hash(&inner.digest(i)).as_bytes(), i));
        }
    }
    let mut keep = Vec::new();
    for own in &mut classes {
        own.sort_unstable();
        let n = (share * own.len() as f64).round() as usize;
        let n = n.clamp(usize::from(own.len() > 1), own.len().saturating_sub(1));
        // Up to the last key all validate, and those with the highest one train.
        let highest = own.last().map(|(key, _)| *key);
        let last = own[..n].last().map(|(key, _)| *key);
        let below = || own.iter().rev().map(|(key, _)| *key).find(|key| Some(*key) < highest);
        let last = if last < highest { last } else { below() };
        let is_kept = |key: &[u8; 32]| last.is_some_and(|last| *key <= last) == validates;
        keep.extend(own.iter().filter(|(key, _)| is_kept(key)).map(|(_, i)| *i));
    }
    keep.sort_unstable();
    Subset::new(inner, keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{counts, testing::Named};

    fn names(set: &Subset) -> Vec<String> {
        (0..set.labels().len()).map(|i| set.name(i)).collect()
    }

    #[test]
    fn each_class_gives_its_share_and_no_sample_is_in_both_parts() {
        let set = || Box::new(Named::sized(&[50, 10, 2, 1]));
        let [val, train] = [true, false].map(|validates| part(set(), 0.2, validates));
        assert_eq!((counts(&val), counts(&train)), (vec![10, 2, 1, 0], vec![40, 8, 1, 1]));
        let mut all = [names(&val), names(&train)].concat();
        all.sort();
        all.dedup();
        assert_eq!((all.len(), val.classes().len()), (63, 4));
        assert_eq!(counts(&part(set(), 0.99, false)), [1, 1, 1, 1], "something is left to learn from");
        // Not the first of each: that may be one film after the other.
        assert_ne!(names(&val)[..10], (0..10).map(|i| format!("#{i}")).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn a_class_is_never_in_validation_as_a_whole() {
        // Contents begin again after 256: the first is there three times, the others twice.
        let labels: Vec<usize> = (0..513).map(|i| usize::from(i % 256 > 0)).collect();
        let set = |labels: &[usize]| Box::new(Named::new(&["same", "other"], labels));
        let [val, train] = [true, false].map(|validates| counts(&part(set(&labels), 0.2, validates)));
        assert_eq!((val[0], train[0]), (0, 3));
        let labels: Vec<usize> = (0..513).map(|i| usize::from(i % 256 > 1)).collect();
        let [val, train] = [true, false].map(|validates| counts(&part(set(&labels), 0.9, validates)));
        assert!(val[0] > 0 && train[0] > 0 && val[0] + train[0] == 5, "{val:?} {train:?}");
    }

    #[test]
    fn samples_that_are_the_same_are_of_one_part() {
        // Numbers of samples are what is in them, and begin again after 256.
        let set = || Box::new(Named::sized(&[512]));
        let [val, train] = [true, false].map(|validates| part(set(), 0.25, validates));
        let contents = |set: &Subset| (0..set.labels().len()).map(|i| set.digest(i)).collect::<Vec<_>>();
        let known = contents(&train);
        assert!(contents(&val).iter().all(|digest| !known.contains(digest)));
        assert_eq!(counts(&val), [128]);
    }
}
