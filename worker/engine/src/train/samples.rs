//! Samples as networks see them: decoded once, kept while memory lasts, transformed per view, ahead of time where the
//! caller says what comes next.

mod judged;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::Tensor;
use rayon::prelude::*;
use tl_proto::spec::{AugmentSection, DataSection, PairedBy, Rotations, Views};

use super::{ahead::Ahead, kinds::SOUND};
use crate::{
    Error, Result,
    collective::{Collective, partition::partition},
    data::{
        self, Dataset, Subset,
        audio::Audio,
        augment::View,
        drawing::Strokes,
        pixels::{self, Filter, Square},
        tokens::Text,
        turned::Turned,
    },
    gpu::Place,
    link::{Link, Notice},
    weights::Contract,
};

/// Bytes of decoded images that are kept in memory.
const KEEP_BYTES: usize = 1 << 30;

/// Bytes kept, and the squares by filter, short side, side, how sound is heard, and sample: a teacher may see more of an
/// image than its student.
type Kept = (usize, BTreeMap<(Filter, usize, usize, Option<String>, usize), Arc<Square>>);

/// One part of a job's data.
pub struct Samples {
    source: Arc<Source>,
    ahead: Ahead<Wanted, Tensor>,
    /// What it is called below `data.`; those of a task, with `tasks.` in front.
    pub part: Cow<'static, str>,
    pub(super) augment: AugmentSection,
    seed: u32,
    /// Whether `held_out` can divide what lies at one place into training and validation samples.
    pub(super) divides: bool,
    /// Where each was before some were left out, if any were.
    places: Option<Arc<[usize]>>,
}

/// What is asked for together: samples, their views, and for which network.
#[derive(Clone, PartialEq)]
struct Wanted {
    views: Vec<(usize, View)>,
    contract: Contract,
}

/// Where pixels come from.
pub struct Source {
    /// Which samples there are.
    pub dataset: Box<dyn Dataset>,
    kept: Mutex<Kept>,
}

impl std::ops::Deref for Samples {
    type Target = Source;

    fn deref(&self) -> &Source {
        &self.source
    }
}

impl Samples {
    /// Opens `train` or `val`; nothing is decoded yet.
    ///
    /// # Errors
    /// Data that is not there.
    pub fn open(spec: &DataSection, part: &'static str, seed: u32) -> Result<Self> {
        let mut dataset = data::open(spec, part, seed)?;
        let mut augment = AugmentSection::default();
        if part == "train" {
            augment = spec.augment.clone();
            if let Some(n) = spec.train_per_class {
                dataset = Box::new(Subset::per_class(dataset, n as usize, seed));
                if let Some(class) = data::empty_class(&*dataset) {
                    return Err(Error::user(
                        format!("`data.train_per_class = {n}` leaves class `{class}` without samples"),
                        "raise it",
                    ));
                }
            }
        }
        let turns = spec.episodes.as_ref().map_or(Rotations::None, |e| e.rotations);
        if turns == Rotations::All || (turns == Rotations::Train && part == "train") {
            dataset = Box::new(Turned::new(dataset)?);
        }
        let (source, ahead) = (Source::new(dataset), Ahead::default());
        let divides = data::divides(&spec.format);
        Ok(Self { source, ahead, part: part.into(), augment, seed, divides, places: None })
    }

    /// Opens samples of another domain that are learned from without labels; `spec` is that domain's section.
    ///
    /// # Errors
    /// Data that is not there.
    pub fn open_bare(spec: &DataSection, seed: u32) -> Result<Self> {
        let source = Source::new(data::open_bare(spec, seed)?);
        let (augment, part) = (spec.augment.clone(), Cow::Borrowed("target.train"));
        let divides = data::divides(&spec.format);
        Ok(Self { source, ahead: Ahead::default(), part, augment, seed, divides, places: None })
    }

    /// Opens halves of pairs, `train` or `val`, with the transforms of training for the former.
    ///
    /// # Errors
    /// Data that is not there.
    pub fn open_paired(spec: &DataSection, part: &'static str, by: PairedBy, seed: u32) -> Result<Self> {
        let source = Source::new(data::open_paired(spec, part, by, seed)?);
        let augment = if part == "train" { spec.augment.clone() } else { AugmentSection::default() };
        let divides = data::divides(&spec.format);
        Ok(Self { source, ahead: Ahead::default(), part: part.into(), augment, seed, divides, places: None })
    }

    /// Only the samples in `keep`, in that order.
    ///
    /// # Errors
    /// Samples that somebody else has in hand.
    pub fn only(self, keep: Vec<usize>) -> Result<Self> {
        let places = Some(keep.iter().map(|i| self.place(*i)).collect());
        let chosen = self.changed(|dataset| Subset::new(dataset, keep))?;
        Ok(Self { places, ..chosen })
    }

    /// Where a sample was among those that were opened: its index, before any were left out.
    pub fn place(&self, index: usize) -> usize {
        self.places.as_ref().map_or(index, |places| places[index])
    }

    /// The same from other samples in place of its own.
    fn changed(self, change: impl FnOnce(Box<dyn Dataset>) -> Subset) -> Result<Self> {
        let Some(source) = Arc::into_inner(self.source) else {
            return Err(Error::Internal("samples were asked for before they were chosen".into()));
        };
        // Indices may move, so what is kept under them goes.
        Ok(Self { source: Source::new(Box::new(change(source.dataset))), ..self })
    }

    /// Only the samples that decode for a network of this contract.
    ///
    /// # Errors
    /// See [`Samples::only`].
    pub fn that_decode(self, contract: &Contract) -> Result<Self> {
        let good: Vec<usize> =
            (0..self.count()).into_par_iter().filter(|i| self.decodes(*i, contract).is_ok()).collect();
        if good.len() == self.count() { Ok(self) } else { self.only(good) }
    }

    /// The same samples as they are, without transforms.
    pub fn plain(&self) -> Self {
        let (source, augment) = (self.source.clone(), AugmentSection::default());
        let (part, places) = (self.part.clone(), self.places.clone());
        Self { source, ahead: Ahead::default(), part, augment, seed: self.seed, divides: self.divides, places }
    }

    /// The same samples under the name of another part, in errors.
    pub fn called(self, part: impl Into<Cow<'static, str>>) -> Self {
        Self { part: part.into(), ..self }
    }

    /// Where the job names them.
    pub fn key(&self) -> String {
        let (part, section) = (&self.part, if self.part.starts_with("tasks.") { "" } else { "data." });
        format!("{section}{part}")
    }

    /// Has every rank decode its share, for the network that will see it, and leaves out what will not decode, up to
    /// `limit`: the same samples on every rank.
    ///
    /// # Errors
    /// More bad samples than `limit`, by name; a class that has no others; a lost peer.
    pub fn leave_out_bad(
        self,
        contract: &Contract,
        limit: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Self> {
        self.fits(contract)?;
        let share = partition(self.count(), group.world())[group.rank()].clone();
        let bad = self.bad(share, contract);
        let internal = |e: serde_json::Error| Error::Internal(e.to_string());
        let mut all: Vec<(usize, String)> = Vec::new();
        for bytes in group.all_gather(serde_json::to_vec(&bad).map_err(internal)?)? {
            all.extend(serde_json::from_slice::<Vec<_>>(&bytes).map_err(internal)?);
        }
        let part = self.key();
        let (kept, said) = self.without(&all, limit, (part.as_str(), "data.skip_bad = "))?;
        if let Some(text) = said.filter(|_| group.rank() == 0) {
            link.notice(Notice::SamplesSkipped, &text);
        }
        Ok(kept)
    }

    /// Those in a range that will not decode for a network of this contract, each with the reason.
    pub fn bad(&self, range: Range<usize>, contract: &Contract) -> Vec<(usize, String)> {
        range.into_par_iter().filter_map(|i| self.decodes(i, contract).err().map(|why| (i, why))).collect()
    }

    /// All but those that are `bad`, up to `limit`, and what is to be said of these. An error names the `part`, and by `key`,
    /// which stands in front of a number, what allows more.
    ///
    /// # Errors
    /// More bad samples than `limit`, by name; a class that has no others.
    pub fn without(
        self,
        bad: &[(usize, String)],
        limit: u32,
        (part, key): (&str, &str),
    ) -> Result<(Self, Option<String>)> {
        let Some((first, why)) = bad.first() else { return Ok((self, None)) };
        let (name, n) = (self.dataset.name(*first), bad.len());
        if n > limit as usize {
            return Err(Error::user(
                format!("`{name}` cannot be decoded ({why}); {n} such in `{part}`"),
                format!("remove them, or set `{key}{n}`"),
            ));
        }
        let had = data::counts(&*self.dataset);
        let keep: Vec<usize> = (0..self.count()).filter(|i| bad.iter().all(|(b, _)| b != i)).collect();
        if keep.is_empty() {
            return Err(Error::user(
                format!("none of the samples in `{part}` can be decoded, first `{name}` ({why})"),
                "give a folder with images",
            ));
        }
        let kept = self.only(keep)?;
        let gone = had.into_iter().zip(data::counts(&*kept.dataset)).position(|(had, has)| had > 0 && has == 0);
        if let Some(class) = gone.map(|class| &kept.dataset.classes()[class]) {
            return Err(Error::user(
                format!("none of the samples of class `{class}` in `{part}` can be decoded"),
                "mend them; or remove them (of a `val` that is a share, others of the class take their place), or the class",
            ));
        }
        let said = format!("{n} samples of `{part}` left out, first `{name}`: {why}");
        Ok((kept, Some(said)))
    }

    fn decodes(&self, index: usize, contract: &Contract) -> Result<(), String> {
        match contract {
            Contract { text: Some(text), .. } => self.ids(index, text).map(|_| ()),
            Contract { strokes: Some(strokes), .. } => self.rows(index, strokes).map(|_| ()),
            _ => self.square(index, contract).map(|_| ()),
        }
    }

    pub(super) fn ids(&self, index: usize, text: &Text) -> Result<Vec<f32>, String> {
        text.ids(self.dataset.text(index).ok_or("it is no text")?)
    }

    pub(super) fn rows(&self, index: usize, strokes: &Strokes) -> Result<Vec<f32>, String> {
        strokes.rows(self.dataset.drawing(index)?)
    }

    /// What there is to say of files that lay among the samples and are none.
    pub fn passed_over(&self) -> Option<String> {
        Some(format!("`{}`: {}", self.key(), self.dataset.passed_over()?))
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

    /// The transform of a sample at its turn: the epoch, or the number of the draw where a sample may be drawn again.
    /// View 0 is the sample as it is.
    pub fn view(&self, index: usize, turn: u64) -> View {
        let number = match self.augment.views {
            Views::Fixed(n) => turn % u64::from(n),
            Views::Fresh => turn + 1,
        };
        if number == 0 {
            View::PLAIN
        } else {
            let view = View::draw(&self.augment, self.seed, &self.dataset.digest(index), number);
            // A sound may come earlier or later, and keeps its pitch.
            if self.kind() == SOUND { view.level() } else { view }
        }
    }

    /// The network's inputs for samples under transforms, one after the other: `[n, side, side, 3]`.
    ///
    /// # Errors
    /// A file that has changed or gone since the start.
    pub fn inputs(&self, views: &[(usize, View)], contract: &Contract) -> Result<Tensor> {
        let wanted = Wanted { views: views.to_vec(), contract: contract.clone() };
        self.ahead.take(&wanted).unwrap_or_else(|| {
            let mut out = vec![0.0; views.len() * pixels::values(contract)];
            let each = out.par_chunks_mut(pixels::values(contract)).zip(views);
            each.try_for_each(|(out, (index, view))| self.source.input(*index, view, contract, out))?;
            pixels::batch(out, views.len(), contract.side())
        })
    }

    /// A batch as the network takes it: [`Samples::inputs`], ids `[n, t]` of texts, or framed rows `[n, 1 + t, 3]` of
    /// drawings, with room for the longest of them, or for the longest that the network takes if `whole`.
    ///
    /// # Errors
    /// A file that has changed or gone since the start.
    pub fn batch(&self, views: &[(usize, View)], contract: &Contract, whole: bool) -> Result<Tensor> {
        let all = |read: &(dyn Fn(usize) -> Result<Vec<f32>, String> + Sync)| {
            let one = |(index, _): &(usize, View)| {
                let gone =
                    |why: String| Error::user(format!("`{}` cannot be read ({why})", self.dataset.name(*index)), "");
                read(*index).map_err(gone)
            };
            views.par_iter().map(one).collect::<Result<Vec<_>>>()
        };
        match contract {
            Contract { text: Some(text), .. } => text.batch(&all(&|index| self.ids(index, text))?, whole),
            Contract { strokes: Some(strokes), .. } => strokes.batch(&all(&|index| self.rows(index, strokes))?, whole),
            _ => self.inputs(views, contract),
        }
    }

    /// Prepares what [`Samples::inputs`] will be asked for next on a thread of its own, and sends the first of it up where
    /// the network computes at `place`; it gives the same in any case. What was announced long ago and never asked for is
    /// forgotten.
    pub fn expect(&self, batches: Vec<Vec<(usize, View)>>, contract: &Contract, place: &Place) {
        if !contract.has_pixels() {
            return;
        }
        let (place, announcement) = (place.clone(), place.announce());
        let wanted = batches.into_iter().map(|views| Wanted { views, contract: contract.clone() });
        let source = self.source.clone();
        self.ahead.expect(wanted.collect(), move |wanted| {
            let size = pixels::values(&wanted.contract);
            let mut out = vec![0.0; wanted.views.len() * size];
            for (out, (index, view)) in out.chunks_exact_mut(size).zip(&wanted.views) {
                source.input(*index, view, &wanted.contract, out)?;
            }
            let batch = pixels::batch(out, wanted.views.len(), wanted.contract.side())?;
            place.expect(&batch, announcement);
            Ok(batch)
        });
    }
}

impl Source {
    fn new(dataset: Box<dyn Dataset>) -> Arc<Self> {
        Arc::new(Self { dataset, kept: Mutex::default() })
    }

    fn input(&self, index: usize, view: &View, contract: &Contract, out: &mut [f32]) -> Result<()> {
        let square = self.square(index, contract).map_err(|why| {
            Error::user(
                format!("`{}` cannot be decoded ({why})", self.dataset.name(index)),
                "data must not change while a job runs",
            )
        })?;
        pixels::input(&square, view, contract, out);
        Ok(())
    }

    /// The decoded sample, cut to the network's square; kept while memory lasts.
    fn square(&self, index: usize, contract: &Contract) -> Result<Arc<Square>, String> {
        let (filter, short, side) = (contract.filter(), contract.resize_short_side as usize, contract.side());
        let key = (filter, short, side, contract.audio.as_ref().map(Audio::describe), index);
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(square) = lock().1.get(&key) {
            return Ok(square.clone());
        }
        let square = Arc::new(match &contract.audio {
            Some(audio) => Square::Grey(audio.picture(&self.dataset.clip(index)?, side)?),
            None => Square::Bytes(pixels::square(&self.dataset.load(index)?, filter, short, side)),
        });
        let mut kept = lock();
        if kept.0 + square.bytes() <= KEEP_BYTES {
            kept.0 += square.bytes();
            kept.1.insert(key, square.clone());
        }
        Ok(square)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collective::Solo, link::Deaf, nn::host};

    fn data(format: &str, place: &str) -> DataSection {
        DataSection {
            format: format.into(),
            train: place.into(),
            val: place.into(),
            batch: 4,
            ..DataSection::default()
        }
    }

    fn contract(resize_short_side: u32) -> Contract {
        Contract { resize_short_side, ..Contract::named("unit", 16, None).unwrap() }
    }

    fn numbers(samples: &Samples, views: &[(usize, View)], short: u32) -> Result<Vec<f32>> {
        Ok(host(&samples.inputs(views, &contract(short))?)?.to_vec())
    }

    #[test]
    fn a_teacher_with_another_resize_sees_its_own_crop() {
        let open = || Samples::open(&data("generated", "source"), "val", 1).unwrap();
        let seen = |samples: &Samples, short| numbers(samples, &[(0, View::PLAIN)], short).unwrap();
        let shared = open();
        let student = seen(&shared, 16);
        assert_ne!(seen(&shared, 24), student);
        assert_eq!(seen(&shared, 24), seen(&open(), 24));
    }

    #[test]
    fn what_was_announced_is_the_same_and_its_error_waits_until_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/0.png", "a/1.png", "b/0.png", "b/1.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_fn(20, 20, |x, y| image::Rgb([x as u8, y as u8, name.len() as u8]))
                .save(path)
                .unwrap();
        }
        let augment = AugmentSection { flip: true, rotate: 0.1, views: Views::Fresh, ..AugmentSection::default() };
        let spec = DataSection { augment, ..data("image_folder", &dir.path().display().to_string()) };
        let (announced, plain) = (Samples::open(&spec, "train", 1).unwrap(), Samples::open(&spec, "train", 1).unwrap());
        for epoch in 0..20 {
            let batch = |from: usize| (from..from + 2).map(|i| (i, plain.view(i, epoch))).collect::<Vec<_>>();
            announced.expect(vec![batch(0), batch(2)], &contract(18), &Place::Host);
            for views in [batch(0), batch(2)] {
                let wanted = numbers(&plain, &views, 18).unwrap();
                assert_eq!(numbers(&announced, &views, 18).unwrap(), wanted);
            }
        }
        let (good, gone) = (vec![(0, View::PLAIN)], vec![(3, View::PLAIN)]);
        std::fs::remove_file(dir.path().join("b/1.png")).unwrap();
        announced.expect(vec![gone.clone(), good.clone()], &contract(16), &Place::Host);
        numbers(&announced, &good, 16).unwrap();
        assert!(numbers(&announced, &gone, 16).unwrap_err().to_string().contains("b/1.png"));
    }

    #[test]
    fn a_class_that_loses_all_its_samples_fails_the_job_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/0.png", "a/1.png", "b/0.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(20, 20).save(path).unwrap();
        }
        let spec = data("image_folder", &dir.path().display().to_string());
        let bad = |name: &str| std::fs::write(dir.path().join(name), "no image").unwrap();
        let left = |limit| {
            let samples = Samples::open(&spec, "train", 1)?;
            Ok::<_, Error>(samples.leave_out_bad(&contract(16), limit, &mut Solo, &mut Deaf)?.count())
        };
        bad("a/0.png");
        assert_eq!(left(1).unwrap(), 2);
        let samples = Samples::open(&spec, "train", 1).unwrap().that_decode(&contract(16)).unwrap();
        assert_eq!([0, 1].map(|i| samples.place(i)), [1, 2], "they were behind it");
        assert_eq!(samples.only(vec![1]).unwrap().plain().place(0), 2);
        bad("b/0.png");
        let error = left(9).unwrap_err().to_failure();
        assert!(error.message.contains("class `b` in `data.train`"), "{error}");
        assert!(error.hint.contains("others of the class take their place"), "{}", error.hint);
        let none = DataSection { train_per_class: Some(0), ..spec.clone() };
        let error = Samples::open(&none, "train", 1).err().unwrap().to_string();
        assert!(error.contains("leaves class `a` without samples"), "{error}");
    }
}
