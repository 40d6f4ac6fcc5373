//! Pairs: each sample goes with one of another kind, a sound with a picture, a picture with a text. Which with which is a
//! function of names, classes or places and of the number of the draw, so it is the same for any ranks.

use std::collections::BTreeMap;

use tl_proto::spec::{DataSection, JobSpec, PairedBy};

use super::samples::Samples;
use crate::{
    Error, Result,
    collective::Collective,
    data::Dataset,
    link::{Link, Notice},
    modifier,
    num::rng::Philox,
    weights::Contract,
};

/// The other halves of a job's samples, before each has found its own.
pub(super) struct Halves {
    train: Samples,
    val: Option<Samples>,
}

/// The other halves of a job's samples.
pub(super) struct Pairs {
    /// Those of training samples.
    pub train: Samples,
    /// Those of validation samples, where pairs are what is validated, and for each sample where its halves are.
    pub val: Option<(Samples, Vec<Vec<usize>>)>,
    /// For each training sample, where its halves are; one at least.
    of_train: Vec<Vec<usize>>,
    /// What makes them pairs.
    pub by: PairedBy,
    rng: Philox,
}

impl Halves {
    /// Opens the pairs of a job's data, if it has some; those of validation samples if `judged`.
    ///
    /// # Errors
    /// Data that is not there, modifiers that mix samples.
    pub fn open(spec: &JobSpec, data: &DataSection, judged: bool) -> Result<Option<Self>> {
        let (Some(section), Some(pairs)) = (data.of_pairs(), &data.pairs) else { return Ok(None) };
        if modifier::mixes(&spec.modifiers) {
            return Err(Error::user("a modifier mixes samples, and a pair goes with no other", "remove it"));
        }
        let open = |part| Samples::open_paired(&section, part, pairs.by, spec.job.seed);
        let val = judged.then(|| Ok::<_, Error>(open("val")?.called("pairs.val"))).transpose()?;
        Ok(Some(Self { train: open("train")?.called("pairs.train"), val }))
    }

    /// Those that training samples go with.
    pub fn learned(&self) -> &dyn Dataset {
        &*self.train.dataset
    }

    /// All of them.
    pub fn parts(&self) -> impl Iterator<Item = &Samples> {
        std::iter::once(&self.train).chain(&self.val)
    }

    /// The same without samples that will not decode, up to `limit` in each part.
    ///
    /// # Errors
    /// See [`Samples::leave_out_bad`].
    pub fn leave_out_bad(
        self,
        contract: &Contract,
        limit: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Self> {
        let train = self.train.leave_out_bad(contract, limit, group, link)?;
        let val = self.val.map(|val| val.leave_out_bad(contract, limit, group, link)).transpose()?;
        Ok(Self { train, val })
    }

    /// Leaves out what has no other half, on both sides: training and validation samples, and what goes with them.
    ///
    /// # Errors
    /// No pair at all.
    pub fn matched(
        self,
        [train, val]: [Samples; 2],
        seed: u32,
        by: PairedBy,
        mut tell: impl FnMut(&str),
    ) -> Result<(Samples, Samples, Pairs)> {
        let (train, halves, of_train) = matched(train, self.train, by, &mut tell)?;
        let (val, judged) = match self.val {
            Some(halves) => {
                let (val, halves, of_val) = matched(val, halves, by, &mut tell)?;
                (val, Some((halves, of_val)))
            }
            None => (val, None),
        };
        let rng = Philox::new(seed, "pairs");
        Ok((train, val, Pairs { train: halves, val: judged, of_train, by, rng }))
    }
}

/// Tells people of samples that are left out.
pub(super) fn notice<'a>(group: &dyn Collective, link: &'a mut dyn Link) -> impl FnMut(&str) + use<'a> {
    let speaks = group.rank() == 0;
    move |text| {
        if speaks {
            link.notice(Notice::SamplesSkipped, text);
        }
    }
}

impl Pairs {
    /// The half that goes with a training sample in one draw of it.
    pub fn partner(&self, sample: usize, draw: u64) -> usize {
        let halves = &self.of_train[sample];
        match halves.len() {
            1 => halves[0],
            n => halves[self.rng.stream(draw, 0).below(n as u64) as usize],
        }
    }
}

/// Samples and halves that have each other, and for each sample where its halves are.
fn matched(
    samples: Samples,
    halves: Samples,
    by: PairedBy,
    tell: &mut impl FnMut(&str),
) -> Result<(Samples, Samples, Vec<Vec<usize>>)> {
    let keys = |of: &Samples| (0..of.count()).map(|i| of.dataset.key(i)).collect::<Vec<_>>();
    let (ours, theirs) = (keys(&samples), keys(&halves));
    let kept = |own: &[String], other: &[String]| -> Vec<usize> {
        let other: std::collections::BTreeSet<&String> = other.iter().collect();
        (0..own.len()).filter(|i| other.contains(&own[*i])).collect()
    };
    let (here, there) = (kept(&ours, &theirs), kept(&theirs, &ours));
    if here.is_empty() {
        let what = match by {
            PairedBy::Name => "names",
            PairedBy::Label => "classes",
            PairedBy::Order => "places",
        };
        return Err(Error::user(
            format!(
                "no sample of `data.{}` goes with one of `data.{}`: {what} such as `{}` and `{}`",
                samples.part, halves.part, ours[0], theirs[0]
            ),
            "see `data.pairs.by`: `name`, `label` or `order`",
        ));
    }
    for (of, own, kept) in [(&samples, &ours, &here), (&halves, &theirs, &there)] {
        let mut alone = (0..own.len()).filter(|i| kept.binary_search(i).is_err());
        if let Some(first) = alone.next() {
            let (n, name) = (1 + alone.count(), of.dataset.name(first));
            tell(&format!("{n} samples of `data.{}` have no other half, first `{name}`: they are left out", of.part));
        }
    }
    let mut places: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
    there.iter().enumerate().for_each(|(at, i)| places.entry(&theirs[*i]).or_default().push(at));
    let of = here.iter().map(|i| places.get(&ours[*i]).cloned().unwrap_or_default()).collect();
    let only = |of: Samples, keep: Vec<usize>| if keep.len() == of.count() { Ok(of) } else { of.only(keep) };
    Ok((only(samples, here)?, only(halves, there)?, of))
}
