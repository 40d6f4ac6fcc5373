//! Few-shot episodes: which classes a task is about, which samples it shows and which it asks for. Episode `n` of a
//! purpose is a function of the seed and of `n` alone, whoever draws it.

use tl_proto::spec::EpisodeShape;

use super::Dataset;
use crate::{
    Error, Result,
    num::rng::{Philox, Stream},
};

/// The episodes of one part of the data.
pub struct Episodes {
    /// Samples of each class.
    members: Vec<Vec<usize>>,
    /// How large they are.
    pub shape: EpisodeShape,
    rng: Philox,
}

/// One task. A class's number in it is the order in which it was drawn, and so is random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Samples with labels, those of a class together: `shot` of class 0, then of class 1.
    pub support: Vec<usize>,
    /// Samples without, in the same order: `query` of each class.
    pub query: Vec<usize>,
}

impl Episodes {
    /// Episodes of `samples` for a purpose; `part` is what the samples are called.
    ///
    /// # Errors
    /// Fewer classes than an episode has; a class, by name, that has fewer samples.
    pub fn new(samples: &dyn Dataset, part: &str, shape: EpisodeShape, seed: u32, purpose: &str) -> Result<Self> {
        let classes = samples.classes();
        let mut members = vec![Vec::new(); classes.len()];
        samples.labels().iter().enumerate().for_each(|(i, label)| members[*label].push(i));
        let (way, each) = (shape.way, shape.shot + shape.query);
        if classes.len() < way {
            return Err(Error::user(
                format!("`data.{part}` has {} classes, and an episode wants {way}", classes.len()),
                "lower `way` in `[data.episodes]` (`train_way` for what is trained on), or give more classes",
            ));
        }
        let few: Vec<usize> = (0..members.len()).filter(|c| members[*c].len() < each).collect();
        if let Some(first) = few.first() {
            let (class, has) = (&classes[*first], members[*first].len());
            let more = if few.len() > 1 { format!(" ({} such classes)", few.len()) } else { String::new() };
            return Err(Error::user(
                format!(
                    "class `{class}` of `data.{part}` has {has} samples, and an episode wants {} to show and {} to ask \
                     for{more}",
                    shape.shot, shape.query
                ),
                "lower `shot` or `query` in `[data.episodes]`, or give the class more samples",
            ));
        }
        Ok(Self { members, shape, rng: Philox::new(seed, purpose) })
    }

    /// Episode `number`.
    pub fn draw(&self, number: u64) -> Episode {
        let EpisodeShape { way, shot, query } = self.shape;
        let all: Vec<usize> = (0..self.members.len()).collect();
        let classes = some_of(&all, way, &mut self.rng.stream(number, 0));
        let mut episode = Episode { support: Vec::new(), query: Vec::new() };
        for (slot, class) in classes.into_iter().enumerate() {
            let drawn = some_of(&self.members[class], shot + query, &mut self.rng.stream(number, 1 + slot as u32));
            episode.support.extend(&drawn[..shot]);
            episode.query.extend(&drawn[shot..]);
        }
        episode
    }
}

/// The first `n` of all after a shuffle.
fn some_of(all: &[usize], n: usize, stream: &mut Stream) -> Vec<usize> {
    let mut all = all.to_vec();
    for i in 0..n {
        let left = (all.len() - i) as u64;
        all.swap(i, i + stream.below(left) as usize);
    }
    all.truncate(n);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Named;

    const SHAPE: EpisodeShape = EpisodeShape { way: 3, shot: 2, query: 4 };

    fn episodes(set: &Named, seed: u32, purpose: &str) -> Episodes {
        Episodes::new(set, "train", SHAPE, seed, purpose).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn an_episode_has_whole_classes_and_no_sample_twice(
            counts in proptest::collection::vec(6usize..12, 3..9), seed: u32, number: u64,
        ) {
            let set = Named::sized(&counts);
            let episode = episodes(&set, seed, "p").draw(number);
            let class = |i: &usize| set.labels()[*i];
            let mut seen: Vec<usize> = episode.support.iter().chain(&episode.query).copied().collect();
            let classes: Vec<usize> = (0..3).map(|slot| class(&episode.support[2 * slot])).collect();
            let slots = episode.support.chunks_exact(2).zip(episode.query.chunks_exact(4)).zip(&classes);
            for ((support, query), own) in slots {
                assert!(support.iter().chain(query).all(|i| class(i) == *own));
            }
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 18);
            let different: std::collections::BTreeSet<usize> = classes.into_iter().collect();
            assert_eq!(different.len(), 3);
            assert_eq!(episodes(&set, seed, "p").draw(number), episode);
        }
    }

    #[test]
    fn every_class_takes_every_place_and_every_sample_either_part() {
        let set = Named::sized(&[6, 7, 8, 9, 6]);
        let all = episodes(&set, 3, "p");
        // Counts of class by place, and of samples that were shown and asked for.
        let (mut places, mut shown, mut asked) = ([[0usize; 3]; 5], vec![0usize; 36], vec![0usize; 36]);
        for number in 0..3000 {
            let episode = all.draw(number);
            (0..3).for_each(|slot| places[set.labels()[episode.support[2 * slot]]][slot] += 1);
            episode.support.iter().for_each(|i| shown[*i] += 1);
            episode.query.iter().for_each(|i| asked[*i] += 1);
        }
        // 600 each, with a standard deviation of 22: sorted labels would put class 4 into the first place never.
        assert!(places.iter().flatten().all(|n| n.abs_diff(600) < 110), "{places:?}");
        assert!(shown.iter().chain(&asked).all(|n| *n > 200), "{shown:?} {asked:?}");
    }

    #[test]
    fn episodes_differ_by_number_seed_and_purpose() {
        let set = Named::sized(&[9; 8]);
        let one = episodes(&set, 3, "p").draw(5);
        for other in [episodes(&set, 3, "p").draw(6), episodes(&set, 4, "p").draw(5), episodes(&set, 3, "q").draw(5)] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn too_few_classes_or_samples_are_refused_by_name() {
        let refused = |counts: &[usize]| {
            let set = Named::sized(counts);
            Episodes::new(&set, "val", SHAPE, 1, "p").err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(refused(&[9, 9]).contains("`data.val` has 2 classes, and an episode wants 3"));
        let error = refused(&[9, 9, 5, 4]);
        assert!(error.contains("class `c2` of `data.val` has 5 samples, and an episode wants 2 to show and 4 to ask"));
        assert!(error.contains("2 such classes"), "{error}");
        assert_eq!(refused(&[6, 6, 6]), "");
    }
}
