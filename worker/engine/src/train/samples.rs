//! Samples as networks see them: decoded once, kept while memory lasts, transformed per view.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;
use tl_proto::spec::{AugmentSection, DataSection, Views};

use crate::{
    Error, Result,
    collective::Collective,
    data::{self, Dataset, Subset, augment::View, pixels},
    link::{Link, Notice},
    weights::Contract,
};

/// Bytes of decoded images that are kept in memory.
const KEEP_BYTES: usize = 1 << 30;

/// Bytes kept, and the squares by side and sample.
type Kept = (usize, BTreeMap<(usize, usize), Arc<Vec<u8>>>);

/// One part of a job's data.
pub struct Samples {
    /// Which samples there are.
    pub dataset: Box<dyn Dataset>,
    augment: AugmentSection,
    seed: u32,
    kept: Mutex<Kept>,
}

impl Samples {
    /// Opens `train` or `val`, has every rank decode its share, and leaves out what will not decode, up to the limit:
    /// the same samples on every rank.
    ///
    /// # Errors
    /// Data that is not there, or more bad samples than `skip_bad`, by name.
    pub fn open(
        spec: &DataSection,
        part: &str,
        seed: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Self> {
        let mut dataset = data::open(spec, part, seed)?;
        if let (Some(n), "train") = (spec.train_per_class, part) {
            dataset = Box::new(Subset::per_class(dataset, n as usize, seed));
        }
        let total = dataset.labels().len();
        let share = group.rank() * total / group.world()..(group.rank() + 1) * total / group.world();
        let bad: Vec<(usize, String)> =
            share.into_par_iter().filter_map(|i| dataset.load(i).err().map(|why| (i, why))).collect();
        let said = serde_json::to_vec(&bad).map_err(|e| Error::Internal(e.to_string()))?;
        let mut all: Vec<(usize, String)> = Vec::new();
        for bytes in group.all_gather(said)? {
            all.extend(serde_json::from_slice::<Vec<_>>(&bytes).map_err(|e| Error::Internal(e.to_string()))?);
        }
        if !all.is_empty() {
            let (first, why) = &all[0];
            let name = dataset.name(*first);
            if all.len() > spec.skip_bad as usize {
                return Err(Error::user(
                    format!("`{name}` cannot be decoded ({why}); {} such in `data.{part}`", all.len()),
                    format!("remove them, or set `data.skip_bad = {}`", all.len()),
                ));
            }
            if group.rank() == 0 {
                link.notice(
                    Notice::SamplesSkipped,
                    &format!("{} samples of `data.{part}` left out, first `{name}`: {why}", all.len()),
                );
            }
            let keep = (0..total).filter(|i| all.iter().all(|(b, _)| b != i)).collect();
            dataset = Box::new(Subset::new(dataset, keep));
        }
        let augment = if part == "train" { spec.augment.clone() } else { AugmentSection::default() };
        Ok(Self { dataset, augment, seed, kept: Mutex::default() })
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.dataset.labels().len()
    }

    /// How many views of each sample can be cached; none if every epoch has new ones.
    pub fn views(&self) -> Option<usize> {
        match self.augment.views {
            Views::Fixed(n) => Some(n as usize),
            Views::Fresh => None,
        }
    }

    /// The transform of a sample in an epoch. View 0 is the sample as it is.
    pub fn view(&self, index: usize, epoch: u64) -> View {
        let number = match self.augment.views {
            Views::Fixed(n) => epoch % u64::from(n),
            Views::Fresh => epoch + 1,
        };
        if number == 0 {
            View::PLAIN
        } else {
            View::draw(&self.augment, self.seed, &self.dataset.digest(index), number)
        }
    }

    /// The network's input for a sample under a transform: `[3, side, side]`.
    ///
    /// # Errors
    /// A file that has changed or gone since the start.
    pub fn input(&self, index: usize, view: View, contract: &Contract) -> Result<Vec<f32>> {
        let side = contract.side();
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().1.get(&(side, index)).cloned();
        let square = match known {
            Some(square) => square,
            None => {
                let image = self.dataset.load(index).map_err(|why| {
                    Error::user(
                        format!("`{}` cannot be decoded ({why})", self.dataset.name(index)),
                        "data must not change while a job runs",
                    )
                })?;
                let square = Arc::new(pixels::square(&image, contract.resize_short_side as usize, side));
                let mut kept = lock();
                if kept.0 + square.len() <= KEEP_BYTES {
                    kept.0 += square.len();
                    kept.1.insert((side, index), square.clone());
                }
                square
            }
        };
        let values = square.iter().map(|b| f32::from(*b)).collect();
        Ok(pixels::normalise(&view.apply(values, side), contract))
    }
}
