//! Pairs: each sample goes with one of another kind, a sound with a picture, a picture with a text. Which with which is a
//! function of names, classes or places and of the number of the draw, so it is the same for any ranks.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Those of training samples.
    pub train: Samples,
    val: Option<Samples>,
}

/// The other halves of a job's samples.
pub(super) struct Pairs {
    /// Those of training samples.
    pub train: Samples,
    /// Those of validation samples, where pairs are what is validated, and for each sample where its halves are.
    pub val: Option<(Samples, Partners)>,
    of_train: Partners,
    /// What makes them pairs.
    pub by: PairedBy,
    rng: Philox,
}

/// Which halves each sample goes with: those of its list, one at least. Samples of a class share theirs.
pub(super) struct Partners {
    lists: Vec<Vec<usize>>,
    list: Vec<usize>,
}

impl Partners {
    /// Where the halves of a sample are.
    pub fn of(&self, sample: usize) -> &[usize] {
        &self.lists[self.list[sample]]
    }
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

    /// How many training and validation samples have another half, by their keys alone, and what is to be said of the others.
    ///
    /// # Errors
    /// No pair at all.
    pub fn counted(&self, train: &Samples, val: &Samples, by: PairedBy) -> Result<([usize; 2], Vec<String>)> {
        let mut said = Vec::new();
        let mut count = |own: &Samples, halves: &Samples| -> Result<usize> {
            let [here, _] = together(own, halves, by, &mut |text| said.push(text.to_owned()))?.kept;
            Ok(here.len())
        };
        let trained = count(train, &self.train)?;
        let judged = self.val.as_ref().map(|halves| count(val, halves)).transpose()?;
        Ok(([trained, judged.unwrap_or(val.count())], said))
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
        let halves = self.of_train.of(sample);
        match halves.len() {
            1 => halves[0],
            n => halves[self.rng.stream(draw, 0).below(n as u64) as usize],
        }
    }
}

/// Keys of samples and halves, and which of them have each other.
struct Together {
    keys: [Vec<String>; 2],
    kept: [Vec<usize>; 2],
}

fn together(samples: &Samples, halves: &Samples, by: PairedBy, tell: &mut impl FnMut(&str)) -> Result<Together> {
    let keys = [samples, halves].map(|of| (0..of.count()).map(|i| of.dataset.key(i)).collect::<Vec<_>>());
    let [ours, theirs] = &keys;
    let kept = |own: &[String], other: &[String]| -> Vec<usize> {
        let other: BTreeSet<&String> = other.iter().collect();
        (0..own.len()).filter(|i| other.contains(&own[*i])).collect()
    };
    let kept = [kept(ours, theirs), kept(theirs, ours)];
    if kept[0].is_empty() {
        let what = match by {
            PairedBy::Name => "names",
            PairedBy::Label => "classes",
            PairedBy::Order => "places",
        };
        let some = |keys: &[String]| keys.first().cloned().unwrap_or_default();
        return Err(Error::user(
            format!(
                "no sample of `data.{}` goes with one of `data.{}`: {what} such as `{}` and `{}`",
                samples.part,
                halves.part,
                some(ours),
                some(theirs)
            ),
            "see `data.pairs.by`: `name`, `label` or `order`",
        ));
    }
    for ((of, own), kept) in [samples, halves].into_iter().zip(&keys).zip(&kept) {
        let mut alone = (0..own.len()).filter(|i| kept.binary_search(i).is_err());
        if let Some(first) = alone.next() {
            let (n, name) = (1 + alone.count(), of.dataset.name(first));
            tell(&format!("{n} samples of `data.{}` have no other half, first `{name}`: they are left out", of.part));
        }
    }
    Ok(Together { keys, kept })
}

/// Samples and halves that have each other, and which go together.
fn matched(
    samples: Samples,
    halves: Samples,
    by: PairedBy,
    tell: &mut impl FnMut(&str),
) -> Result<(Samples, Samples, Partners)> {
    let Together { keys: [ours, theirs], kept: [here, there] } = together(&samples, &halves, by, tell)?;
    let (mut lists, mut known): (Vec<Vec<usize>>, BTreeMap<&String, usize>) = Default::default();
    for (at, i) in there.iter().enumerate() {
        let list = *known.entry(&theirs[*i]).or_insert_with(|| {
            lists.push(Vec::new());
            lists.len() - 1
        });
        lists[list].push(at);
    }
    let list = here.iter().filter_map(|i| known.get(&ours[*i]).copied()).collect();
    let of = Partners { lists, list };
    let only = |of: Samples, keep: Vec<usize>| if keep.len() == of.count() { Ok(of) } else { of.only(keep) };
    Ok((only(samples, here)?, only(halves, there)?, of))
}
