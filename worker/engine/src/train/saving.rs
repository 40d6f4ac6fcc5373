//! What the feature cache is worth: which outputs of frozen prefixes are kept, how large they are, and the forward work
//! that they save. The work of units is measured on the node that looks at the job.

use std::{collections::BTreeSet, time::Instant};

use serde::{Deserialize, Serialize};
use tl_proto::spec::{DataSection, EpisodeShape, JobSpec};

use super::{
    domain::Domain,
    encode,
    net::Net,
    pairs::Halves,
    samples::Samples,
    tasks::{self, Task},
};
use crate::{
    Result,
    data::{
        drawing::{self, Strokes},
        pixels,
        tokens::Text,
    },
    modifier,
    nn::{Array, Layer, Packs, Pass, Store, Tape},
    objective::Objective,
    weights::Contract,
};

/// What the cache is worth in a stage, before anything is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saving {
    /// Bytes of the features in front of the stage's first trained unit; 0 where none are kept.
    pub bytes: u64,
    /// Samples that run through the stage's frozen prefix without the cache: every one in every epoch.
    pub passes: u64,
    /// Samples, times views, that run through a prefix in this stage to fill the cache.
    pub encoded: u64,
    /// Part of the forward work of the stage that is saved; below 0 where filling the cache costs more than it saves here.
    pub share: f64,
    /// The same in seconds of one rank on the node that looked.
    pub seconds: f64,
    /// Seconds of all forward work of the stage without the cache.
    pub of_seconds: f64,
}

impl Saving {
    /// What two caches are worth together.
    pub fn with(self, other: Self) -> Self {
        let (seconds, of_seconds) = (self.seconds + other.seconds, self.of_seconds + other.of_seconds);
        Self {
            bytes: self.bytes + other.bytes,
            passes: self.passes + other.passes,
            encoded: self.encoded + other.encoded,
            share: if of_seconds > 0.0 { seconds / of_seconds } else { 0.0 },
            seconds,
            of_seconds,
        }
    }
}

/// What is known of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its first trained unit.
    pub cut: usize,
    /// Its epochs.
    pub epochs: u32,
}

/// What is run through a network.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Training samples.
    pub train: usize,
    /// How many of them an epoch sees: each once, or those of its episodes.
    pub drawn: usize,
    /// Fixed views of each whose features can be kept; 0 where every epoch sees new ones.
    pub views: usize,
    /// Validation samples.
    pub val: usize,
    /// Samples of another domain that are learned from.
    pub other: usize,
    /// How many of them an epoch sees.
    pub beside: usize,
    /// Samples of another domain that are judged: those that are learned from, as they are, and those with labels.
    pub judged: usize,
    /// Samples of further tasks that are learned from.
    pub aside: usize,
}

impl Load {
    /// What a job runs through a network: what the plan says and what the run does come from here.
    pub(super) fn of(train: &Samples, val: &Samples, domain: Option<&Domain>, spec: &JobSpec) -> Self {
        let kept = train.views().filter(|_| !modifier::mixes(&spec.modifiers));
        let other = domain.map_or(0, |d| d.train.count());
        let labelled = domain.and_then(|d| d.val.as_ref()).map_or(0, Samples::count);
        let (train, val) = (train.count(), val.count());
        let looks = (Objective::find(&spec.job.kind).looks)(&spec.objective);
        let beside = if domain.is_some() && looks { train } else { 0 };
        let episodes = spec.data.as_ref().and_then(|d| d.episodes.as_ref());
        let of_episode = |shape: EpisodeShape| shape.support() + shape.queries();
        let drawn = episodes.map_or(train, |e| e.per_epoch as usize * of_episode(e.trained()));
        Self { train, drawn, views: kept.unwrap_or(0), val, other, beside, judged: other + labelled, aside: 0 }
    }

    /// What runs through a second network: the other halves, one for each sample that an epoch draws.
    pub(super) fn of_halves(halves: &Halves, drawn: usize) -> Self {
        let (train, val) = (&halves.train, halves.parts().nth(1).map_or(0, Samples::count));
        let (views, train) = (train.views().unwrap_or(0), train.count());
        Self { train, drawn, views, val, other: 0, beside: 0, judged: 0, aside: 0 }
    }

    /// With further tasks that have samples of their own.
    pub(super) fn with_tasks(mut self, data: &DataSection, tasks: &[Task]) -> Self {
        for own in tasks.iter().filter_map(|task| task.own.as_ref()) {
            self.aside += own.train.count();
            self.beside += own.per_epoch(self.train, data.batch as usize);
            self.judged += own.val.count();
        }
        self
    }

    /// The same of tasks that are opened only.
    pub(super) fn with_opened(mut self, data: &DataSection, tasks: &[tasks::Opened]) -> Self {
        for task in tasks.iter().filter(|task| task.own.is_some()) {
            let [train, val] = task.counts([0, 0]);
            self.aside += train;
            self.beside += self.train * task.own_batch() / data.batch.max(1) as usize;
            self.judged += val;
        }
        self
    }

    /// Features of one cut.
    pub(super) fn rows(&self) -> u64 {
        // Of fixed views, what is judged of the samples that are learned from is one.
        let plain = if self.views > 0 { self.other } else { 0 };
        ((self.train + self.other + self.aside) * self.views + self.val + self.judged - plain) as u64
    }

    /// Samples that pass the network in an epoch: in training, and when it is judged.
    fn passes(&self) -> (u64, u64) {
        ((self.drawn + self.beside) as u64, (self.val + self.judged) as u64)
    }
}

/// Cuts that are encoded together with the first of `cuts`, ascending: those of later stages whose prefix will not have
/// changed by then.
pub(super) fn together(cuts: &[usize]) -> Vec<usize> {
    let mut lowest = usize::MAX;
    let kept = cuts.iter().copied().filter(|cut| {
        let keep = *cut <= lowest && *cut > 0;
        lowest = lowest.min(*cut);
        keep
    });
    let mut kept: Vec<usize> = kept.collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// The savings of stages, in order. `seconds[c]` is what one sample takes in units `0..c`, `width[c]` the numbers of one
/// sample in front of unit `c`.
pub fn savings(stages: &[Span], load: Load, seconds: &[f64], width: &[usize]) -> Vec<Saving> {
    let whole = seconds.last().copied().unwrap_or_default();
    let bytes = |cut: usize| 4 * width[cut] as u64 * load.rows();
    let mut here: BTreeSet<usize> = BTreeSet::new();
    let one = |i: usize| {
        let Span { cut, epochs } = stages[i];
        let (trained, judged) = load.passes();
        let each = trained + judged;
        let passes = u64::from(epochs) * each;
        let of_seconds = passes as f64 * whole;
        let mut saving = Saving { passes, of_seconds, ..Saving::default() };
        let mut cost = 0.0;
        if cut > 0 && !here.contains(&cut) {
            let cuts: Vec<usize> = stages[i..].iter().map(|s| s.cut).collect();
            let fits = |cut: &usize| bytes(*cut) <= encode::BUDGET as u64;
            here = together(&cuts).into_iter().filter(fits).collect();
            if let Some(deepest) = here.last() {
                saving.encoded = load.rows();
                cost = load.rows() as f64 * seconds[*deepest];
            }
        }
        if here.contains(&cut) {
            saving.bytes = bytes(cut);
            // Training samples of which every epoch sees a new view run through the prefix all the same.
            let kept = if load.views > 0 { each } else { judged };
            saving.seconds = (u64::from(epochs) * kept) as f64 * seconds[cut];
        }
        saving.seconds -= cost;
        saving.share = if of_seconds > 0.0 { saving.seconds / of_seconds } else { 0.0 };
        here.retain(|c| *c <= cut);
        saving
    };
    (0..stages.len()).map(one).collect()
}

/// The savings of one network in its stages, measured here, and the unit in front of which something is kept.
///
/// # Errors
/// See [`measure`].
pub(super) fn looked(
    net: &Net,
    store: &Store,
    (samples, load): (&Samples, Load),
    stages: &[Span],
) -> Result<Vec<(Saving, Option<String>)>> {
    let (seconds, width) = measure(net, store, samples)?;
    let all = savings(stages, load, &seconds, &width).into_iter().zip(stages);
    // Behind the last unit, where all of the network is frozen.
    let unit = |cut: usize| net.network.units.get(cut).map_or("end", |unit| unit.name.as_str()).to_owned();
    Ok(all.map(|(saving, stage)| (saving, (saving.bytes > 0).then(|| unit(stage.cut)))).collect())
}

/// Samples of the measured pass.
const SAMPLES: usize = 2;

/// Texts or drawings, spread over all, that are looked at for their length.
const LOOKED_AT: usize = 256;

/// What `length` says of samples, on average and rounded up; `most` if it says nothing of any.
fn average(samples: &Samples, most: usize, length: impl Fn(usize) -> Option<usize>) -> usize {
    let every = samples.count().div_ceil(LOOKED_AT).max(1);
    let lengths = (0..samples.count()).step_by(every).filter_map(length);
    let (n, all) = lengths.fold((0, 0), |(n, all), length| (n + 1, all + length));
    if n > 0 { all.div_ceil(n) } else { most }
}

/// Tokens of a text of `samples`, on average and rounded up; the most that there may be if none can be read.
fn tokens(text: &Text, samples: &Samples) -> usize {
    average(samples, text.max_length, |i| Some(samples.ids(i, text).ok()?.len()))
}

/// The same for points of a drawing.
fn points(strokes: &Strokes, samples: &Samples) -> usize {
    average(samples, strokes.points, |i| Some(samples.rows(i, strokes).ok()?.len() / drawing::WIDTH))
}

/// Seconds that one sample takes in units `0..c`, and the numbers of one sample in front of unit `c`, for every `c`. Texts and
/// drawings are as long as those of `samples` are on average: what they are padded with takes room, and no time.
///
/// # Errors
/// An input that is too small for the network.
pub fn measure(net: &Net, store: &Store, samples: &Samples) -> Result<(Vec<f64>, Vec<usize>)> {
    let side = net.contract.side();
    let blank = match &net.contract {
        Contract { text: Some(text), .. } => text.batch(&vec![vec![0.0; tokens(text, samples)]; SAMPLES], true)?,
        Contract { strokes: Some(strokes), .. } => {
            let rows = vec![0.0; drawing::WIDTH * points(strokes, samples)];
            strokes.batch(&vec![rows; SAMPLES], true)?
        }
        contract => pixels::batch(vec![0.0; SAMPLES * pixels::values(contract)], SAMPLES, side)?,
    };
    let (mut seconds, mut width) = (Vec::new(), Vec::new());
    let packs = Packs::default();
    let pass = Pass::again(store, &packs);
    // The first pass only warms up.
    for _ in 0..2 {
        let (mut x, mut total) = (Array::at(blank.clone(), &store.place)?, 0.0);
        (seconds, width) = (vec![0.0], vec![x.count() / SAMPLES]);
        for unit in &net.network.units {
            let started = Instant::now();
            x = unit.layer.forward(&x, &pass, &mut Tape::default())?;
            store.place.wait()?;
            total += started.elapsed().as_secs_f64() / SAMPLES as f64;
            seconds.push(total);
            width.push(x.count() / SAMPLES);
        }
    }
    Ok((seconds, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of 1, 2 and 5 seconds a sample, and of so many numbers in front of each.
    const SECONDS: [f64; 4] = [0.0, 1.0, 3.0, 8.0];
    const WIDTH: [usize; 4] = [30, 20, 10, 2];

    fn stage(cut: usize, epochs: u32) -> Span {
        Span { cut, epochs }
    }

    #[test]
    fn a_head_on_frozen_units_saves_all_epochs_but_the_one_that_fills_the_cache() {
        let load = Load { train: 10, drawn: 10, views: 1, val: 4, other: 0, beside: 0, judged: 0, aside: 0 };
        // Without: 5 epochs of 14 samples, 8 s each. The first two units (3 s) run 14 times instead of 70.
        let s = savings(&[stage(2, 5)], load, &SECONDS, &WIDTH)[0];
        assert_eq!((s.passes, s.encoded, s.bytes), (70, 14, 4 * 10 * 14));
        assert_eq!((s.of_seconds, s.seconds, s.share), (560.0, 168.0, 0.3));
        // Four views are four times the training samples to encode, and of each epoch still one: 70 · 3 − 44 · 3.
        let s = savings(&[stage(2, 5)], Load { views: 4, ..load }, &SECONDS, &WIDTH)[0];
        assert_eq!((s.encoded, s.bytes, s.seconds), (44, 4 * 10 * 44, 78.0));
        // One epoch of them costs more than it saves: 14 · 3 − 44 · 3.
        assert_eq!(savings(&[stage(2, 1)], Load { views: 4, ..load }, &SECONDS, &WIDTH)[0].seconds, -90.0);
        // Views that are new in each epoch leave the validation samples: 5 · 4 · 3 − 4 · 3.
        let s = savings(&[stage(2, 5)], Load { views: 0, ..load }, &SECONDS, &WIDTH)[0];
        assert_eq!((s.encoded, s.bytes, s.seconds), (4, 160, 48.0));
    }

    #[test]
    fn stages_that_go_down_share_one_pass_and_a_trained_unit_ends_what_was_kept() {
        let load = Load { train: 10, drawn: 10, views: 1, val: 0, other: 0, beside: 0, judged: 0, aside: 0 };
        let stages = [stage(2, 2), stage(1, 3), stage(0, 4), stage(1, 1)];
        let all = savings(&stages, load, &SECONDS, &WIDTH);
        // The one pass goes to the deepest cut and leaves both on the way: 20 · 3 − 10 · 3, then 30 · 1.
        let figures: Vec<_> = all.iter().map(|s| (s.encoded, s.bytes, s.seconds)).collect();
        assert_eq!(figures, [(10, 400, 30.0), (0, 800, 30.0), (0, 0, 0.0), (10, 800, 0.0)]);
        assert_eq!((all[2].share, all[2].of_seconds), (0.0, 320.0));
        assert_eq!(together(&[3, 5, 2, 0, 1]), [2, 3], "what changes before a stage comes is no use to it");
    }

    #[test]
    fn texts_are_measured_as_long_as_they_are_and_kept_in_frames_for_the_longest() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..600).map(|i| format!("{}\t{}\n", i % 2, "word ".repeat(1 + i % 4))).collect();
        std::fs::write(dir.path().join("train.tsv"), lines).unwrap();
        let job = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\n\
             model = {{ backbone = \"transformer_small\", input = 100 }}\n\
             data = {{ format = \"text\", train = \"{0}\", val = \"{0}\", batch = 4 }}\n",
            dir.path().join("train.tsv").display()
        );
        let spec = JobSpec::from_toml(&job, &[]).unwrap();
        let samples = Samples::open(spec.data.as_ref().unwrap(), "train", 1).unwrap();
        let classes = ["0", "1"].map(str::to_owned);
        let net = Net::build_for(spec.model.as_ref().unwrap(), &classes, &spec, &[].into(), &*samples.dataset).unwrap();
        // One to four words: two and a half.
        assert_eq!(tokens(net.contract.text.as_ref().unwrap(), &samples), 3);
        let (_, width) = measure(&net, &net.network.initial, &samples).unwrap();
        assert!(width[0] >= 100 && width[1] > 100 && width[1] % 101 == 0, "{width:?}");
    }

    #[test]
    fn another_domain_counts_in_training_and_where_it_is_judged() {
        // Ten samples beside ten of sixteen, the sixteen judged as they are, and three with labels.
        let load = Load { train: 10, drawn: 10, views: 1, val: 4, other: 16, beside: 10, judged: 19, aside: 0 };
        let s = savings(&[stage(2, 5)], load, &SECONDS, &WIDTH)[0];
        // The view that is judged is the one that is learned from.
        assert_eq!((s.passes, s.encoded), (5 * (20 + 23), 10 + 16 + 4 + 3));
        let s = savings(&[stage(2, 5)], Load { views: 0, ..load }, &SECONDS, &WIDTH)[0];
        assert_eq!((s.encoded, s.seconds), (23, (5.0 * 23.0 - 23.0) * 3.0));
    }

    #[test]
    fn two_networks_save_what_both_do_of_what_both_take() {
        let load = Load { train: 10, drawn: 10, views: 1, val: 4, other: 0, beside: 0, judged: 0, aside: 0 };
        let [frozen, trained] = [2, 0].map(|cut| savings(&[stage(cut, 5)], load, &SECONDS, &WIDTH)[0]);
        let both = trained.with(frozen);
        assert_eq!((both.passes, both.encoded, both.bytes), (140, 14, 4 * 10 * 14));
        // A second one that is trained halves the share of 0.3.
        assert_eq!((both.of_seconds, both.seconds, both.share), (1120.0, 168.0, 0.15));
        assert_eq!(Saving::default().with(Saving::default()), Saving::default());
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_saves_nothing() {
        let load = Load { train: 1 << 20, drawn: 1 << 20, views: 1, val: 0, other: 0, beside: 0, judged: 0, aside: 0 };
        let s = savings(&[stage(1, 2)], load, &SECONDS, &[1, 2048, 1, 1])[0];
        assert_eq!((s.bytes, s.encoded, s.seconds), (0, 0, 0.0));
    }
}
