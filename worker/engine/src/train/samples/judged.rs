//! Samples that are judged: of some of the classes that are learned, in any order.

use super::Samples;
use crate::{
    Error, Result,
    data::{self, Subset, classes},
};

impl Samples {
    /// The same samples, with the classes of those that are learned from: their own are some of these, in any order. One
    /// that is not cannot be judged.
    ///
    /// # Errors
    /// A class, by name, that is not learned; see [`Samples::only`].
    pub fn of_classes(self, learned: &Self) -> Result<Self> {
        let (own, known) = (self.dataset.classes(), learned.dataset.classes());
        if own == known {
            return Ok(self);
        }
        let numbers = classes::numbers(own, known).map_err(|odd| {
            let (short, here, there) = (classes::short(odd), self.key(), learned.key());
            let what = format!("only what is learned can be judged: `{there}` has");
            Error::user(
                format!("class {short} is in `{here}` but not in `{there}`"),
                classes::unknown_hint(odd, known, &what),
            )
        })?;
        let known = known.to_vec();
        self.changed(|dataset| Subset::renumbered(dataset, known, &numbers))
    }

    /// What there is to say of classes that have no samples here, if there are some.
    pub fn absent(&self) -> Option<String> {
        let (all, counts) = (self.dataset.classes(), data::counts(&*self.dataset));
        let absent: Vec<&String> = all.iter().zip(counts).filter(|(_, n)| *n == 0).map(|(class, _)| class).collect();
        (!absent.is_empty()).then(|| {
            let (n, of, part, named) = (absent.len(), all.len(), self.key(), classes::listed(&absent));
            format!("{n} of {of} classes have no samples in `{part}`, and count nothing in means over classes: {named}")
        })
    }
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::{AugmentSection, DataSection};

    use super::{
        super::{Ahead, Source},
        *,
    };
    use crate::{collective::Solo, data::testing::Named, link::Deaf, weights::Contract};

    fn named(part: &'static str, classes: &[&str], labels: &[usize]) -> Samples {
        let source = Source::new(Box::new(Named::new(classes, labels)));
        Samples {
            source,
            ahead: Ahead::default(),
            part: part.into(),
            augment: AugmentSection::default(),
            seed: 1,
            divides: false,
            places: None,
        }
    }

    #[test]
    fn what_is_judged_has_the_classes_that_are_learned_by_their_names() {
        let train = named("train", &["0", "1", "2", "10"], &[0, 1, 2, 3]);
        let val = named("val", &["10", "0", "2"], &[0, 0, 1]).of_classes(&train).unwrap();
        assert_eq!(val.dataset.classes(), train.dataset.classes());
        assert_eq!((val.dataset.labels(), val.dataset.name(1)), (&[3, 3, 0][..], "#1".to_owned()));
        let absent = val.absent().unwrap();
        assert!(absent.starts_with("2 of 4 classes have no samples in `data.val`"), "{absent}");
        assert!(absent.ends_with(": `1`, `2`") && train.absent().is_none(), "{absent}");
        let error = named("val", &["1", "x"], &[0, 1]).of_classes(&train).err().unwrap();
        assert_eq!(error.to_string(), "class `x` is in `data.val` but not in `data.train`");
        assert!(error.to_failure().hint.ends_with("`data.train` has `0`, `1`, `2`, `10`"));
    }

    #[test]
    fn a_class_that_had_no_samples_has_not_lost_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a")).unwrap();
        std::fs::create_dir_all(dir.path().join("b")).unwrap();
        image::RgbImage::new(20, 20).save(dir.path().join("a/0.png")).unwrap();
        std::fs::write(dir.path().join("a/1.png"), "no image").unwrap();
        let place = dir.path().display().to_string();
        let (train, val) = (place.clone(), place);
        let spec = DataSection { format: "image_folder".into(), train, val, batch: 2, ..DataSection::default() };
        let contract = Contract::named("unit", 16, None).unwrap();
        let val = Samples::open(&spec, "val", 1).unwrap();
        let left = val.leave_out_bad(&contract, 1, &mut Solo, &mut Deaf).unwrap();
        assert_eq!((left.count(), left.dataset.classes().len()), (1, 2));
        let error = Samples::open(&spec, "train", 1).err().unwrap().to_string();
        assert!(error.contains("class `b` of"), "{error}");
    }
}
