//! Pairs: each sample goes with one of another kind, a sound with a picture, a picture with a text. Which with which is a
//! function of names, classes or places and of the number of the draw, so it is the same for any ranks.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::spec::{DataSection, JobSpec, Missing, PairedBy, PairsSection};

use super::{leakage, samples::Samples};
use crate::{
    Error, Result,
    collective::Collective,
    data::Dataset,
    eval::retrieval::Pairing,
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
    /// How many training samples there are.
    samples: usize,
    /// Whether samples that lack their other half, and halves that lack their sample, are learned from all the same.
    masks: bool,
    /// Halves of the kind.
    alone: Vec<usize>,
    /// What makes them pairs.
    pub by: PairedBy,
    rng: Philox,
}

/// Which halves each sample goes with: those of its list; samples of a class share theirs. None, where half pairs are kept.
pub(super) struct Partners {
    lists: Vec<Vec<usize>>,
    list: Vec<usize>,
}

impl Partners {
    /// Of samples and halves by their keys.
    fn new<'k>(samples: impl Iterator<Item = &'k String>, halves: impl Iterator<Item = &'k String>) -> Self {
        // The first list is that of samples that go with nothing.
        let (mut lists, mut known): (Vec<Vec<usize>>, BTreeMap<&String, usize>) = (vec![Vec::new()], BTreeMap::new());
        for (at, key) in halves.enumerate() {
            let list = *known.entry(key).or_insert_with(|| {
                lists.push(Vec::new());
                lists.len() - 1
            });
            lists[list].push(at);
        }
        let list = samples.map(|key| known.get(key).copied().unwrap_or(0)).collect();
        Self { lists, list }
    }

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

    /// How many training and validation samples are drawn and judged, by their keys alone, and what is to be said of those
    /// that lack another half, and of those that are both.
    ///
    /// # Errors
    /// No pair at all.
    pub fn counted(&self, train: &Samples, val: &Samples, section: &PairsSection) -> Result<([usize; 2], Vec<String>)> {
        let mut said = Vec::new();
        // How many are drawn, and which samples are among them.
        let mut count = |own: &Samples, halves: &Samples, missing: Missing| -> Result<(usize, Vec<usize>)> {
            let tell = &mut |_: Notice, text: &str| said.push(text.to_owned());
            let [here, there] = together([own, halves], section.by, missing, tell)?.kept;
            if missing.leaves_out() {
                return Ok((here.len(), here));
            }
            // What is masked is drawn too, from either side.
            Ok((own.count() + halves.count() - there.len(), (0..own.count()).collect()))
        };
        let (drawn, trained) = count(train, &self.train, section.missing)?;
        let (seen, judged) = match &self.val {
            Some(halves) => count(val, halves, Missing::LeaveOut)?,
            None => (val.count(), (0..val.count()).collect()),
        };
        said.extend(leakage::among([train, val], [&trained, &judged]));
        Ok(([drawn, seen], said))
    }

    /// Leaves out what has no other half, by keys alone: validation samples, and training samples unless the job wants masked
    /// what they lack.
    ///
    /// # Errors
    /// No pair at all.
    pub fn with_halves(
        self,
        [train, val]: [Samples; 2],
        section: &PairsSection,
        mut tell: impl FnMut(Notice, &str),
    ) -> Result<([Samples; 2], Self)> {
        let by = section.by;
        let mut learned = [train, self.train];
        if section.missing.leaves_out() {
            learned = whole(learned, by, &mut tell)?;
        }
        let [train, halves] = learned;
        let (val, judged) = match self.val {
            Some(halves) => {
                let [val, halves] = whole([val, halves], by, &mut tell)?;
                (val, Some(halves))
            }
            None => (val, None),
        };
        Ok(([train, val], Self { train: halves, val: judged }))
    }

    /// Leaves out what has no other half, on both sides: training and validation samples, and what goes with them. Where the
    /// job wants it masked, it stays among what is learned from.
    ///
    /// # Errors
    /// No pair at all.
    pub fn matched(
        self,
        [train, val]: [Samples; 2],
        seed: u32,
        section: &PairsSection,
        mut tell: impl FnMut(Notice, &str),
    ) -> Result<(Samples, Samples, Pairs)> {
        let (by, masks) = (section.by, !section.missing.leaves_out());
        let (train, halves, of_train, alone) = match masks {
            false => {
                let (train, halves, of_train) = left_out(train, self.train, by, &mut tell)?;
                (train, halves, of_train, Vec::new())
            }
            true => {
                let (of_train, alone) = all_kept([&train, &self.train], by, &mut tell)?;
                (train, self.train, of_train, alone)
            }
        };
        let (val, judged) = match self.val {
            Some(halves) => {
                let (val, halves, of_val) = left_out(val, halves, by, &mut tell)?;
                (val, Some((halves, of_val)))
            }
            None => (val, None),
        };
        let (samples, rng) = (train.count(), Philox::new(seed, "pairs"));
        Ok((train, val, Pairs { train: halves, val: judged, of_train, samples, masks, alone, by, rng }))
    }
}

/// Tells people of samples that lack their other half.
pub(super) fn notice<'a>(group: &dyn Collective, link: &'a mut dyn Link) -> impl FnMut(Notice, &str) + use<'a> {
    let speaks = group.rank() == 0;
    move |notice, text| {
        if speaks {
            link.notice(notice, text);
        }
    }
}

impl Pairs {
    /// How many there are to be drawn: the training samples, then the halves that go with none of them, where those are kept.
    pub fn entries(&self) -> usize {
        self.samples + self.alone.len()
    }

    /// Whether a half may be missing.
    pub fn masks(&self) -> bool {
        self.masks
    }

    /// The sample that is drawn, and the half that goes with it in this draw.
    pub fn drawn(&self, entry: usize, draw: u64) -> [Option<usize>; 2] {
        if let Some(at) = entry.checked_sub(self.samples) {
            return [None, self.alone.get(at).copied()];
        }
        let halves = self.of_train.of(entry);
        let half = match halves.len() {
            0 => None,
            1 => Some(halves[0]),
            n => Some(halves[self.rng.stream(draw, 0).below(n as u64) as usize]),
        };
        [Some(entry), half]
    }

    /// Whether both halves of it are there.
    pub fn is_whole(&self, entry: usize) -> bool {
        entry < self.samples && !self.of_train.of(entry).is_empty()
    }

    /// What is learned from, where a half may be missing.
    pub fn pairing(&self) -> Option<Pairing> {
        let whole = (0..self.samples).filter(|entry| self.is_whole(*entry)).count();
        self.masks.then_some(Pairing { whole, alone: [self.samples - whole, self.alone.len()] })
    }
}

/// Keys of samples and halves, and which of them have each other.
struct Together {
    keys: [Vec<String>; 2],
    kept: [Vec<usize>; 2],
}

fn together(
    [samples, halves]: [&Samples; 2],
    by: PairedBy,
    missing: Missing,
    tell: &mut impl FnMut(Notice, &str),
) -> Result<Together> {
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
            let (notice, fate) = match missing {
                Missing::LeaveOut => (Notice::SamplesSkipped, "they are left out"),
                Missing::Mask => (Notice::HalvesMasked, "what they lack is masked"),
            };
            tell(notice, &format!("{n} samples of `data.{}` have no other half, first `{name}`: {fate}", of.part));
        }
    }
    Ok(Together { keys, kept })
}

/// Samples and halves that have each other, and which go together.
fn left_out(
    samples: Samples,
    halves: Samples,
    by: PairedBy,
    tell: &mut impl FnMut(Notice, &str),
) -> Result<(Samples, Samples, Partners)> {
    let Together { keys: [ours, theirs], kept: [here, there] } =
        together([&samples, &halves], by, Missing::LeaveOut, tell)?;
    let of = Partners::new(here.iter().map(|i| &ours[*i]), there.iter().map(|i| &theirs[*i]));
    let only = |of: Samples, keep: Vec<usize>| if keep.len() == of.count() { Ok(of) } else { of.only(keep) };
    Ok((only(samples, here)?, only(halves, there)?, of))
}

/// Samples and halves that have each other; the others are told of.
///
/// # Errors
/// No pair at all.
pub(crate) fn whole(
    [samples, halves]: [Samples; 2],
    by: PairedBy,
    tell: &mut impl FnMut(Notice, &str),
) -> Result<[Samples; 2]> {
    left_out(samples, halves, by, tell).map(|(samples, halves, _)| [samples, halves])
}

/// Which of all samples and halves go together, and the halves that go with no sample.
fn all_kept(both: [&Samples; 2], by: PairedBy, tell: &mut impl FnMut(Notice, &str)) -> Result<(Partners, Vec<usize>)> {
    let Together { keys: [ours, theirs], kept: [_, there] } = together(both, by, Missing::Mask, tell)?;
    let alone = (0..theirs.len()).filter(|i| there.binary_search(i).is_err()).collect();
    Ok((Partners::new(ours.iter(), theirs.iter()), alone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(samples: &[&str], halves: &[&str], alone: &[usize]) -> Pairs {
        let keys = |of: &[&str]| of.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
        let (ours, theirs) = (keys(samples), keys(halves));
        let data = serde_json::json!({ "format": "generated", "train": "source", "val": "source", "batch": 2 });
        let train = Samples::open_paired(&serde_json::from_value(data).unwrap(), "train", PairedBy::Name, 1).unwrap();
        let of_train = Partners::new(ours.iter(), theirs.iter());
        let (samples, alone, rng) = (ours.len(), alone.to_vec(), Philox::new(1, "pairs"));
        Pairs { train, val: None, of_train, samples, masks: true, alone, by: PairedBy::Name, rng }
    }

    #[test]
    fn what_is_drawn_may_lack_a_half_on_either_side() {
        let pairs = pairs(&["a", "b", "c"], &["c", "d", "a", "a", "e"], &[1, 4]);
        assert_eq!(pairs.entries(), 5);
        let drawn = |entry| (0..40).map(|draw| pairs.drawn(entry, draw)).collect::<BTreeSet<_>>();
        assert_eq!(drawn(0), BTreeSet::from([[Some(0), Some(2)], [Some(0), Some(3)]]));
        assert_eq!(drawn(1), BTreeSet::from([[Some(1), None]]));
        assert_eq!(drawn(2), BTreeSet::from([[Some(2), Some(0)]]));
        assert_eq!((drawn(3), drawn(4)), (BTreeSet::from([[None, Some(1)]]), BTreeSet::from([[None, Some(4)]])));
        assert_eq!((0..5).filter(|entry| pairs.is_whole(*entry)).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(pairs.pairing(), Some(Pairing { whole: 2, alone: [1, 2] }));
    }
}
