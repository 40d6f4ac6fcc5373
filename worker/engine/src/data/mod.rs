//! Samples: where they come from, how they become pixels, and in which order they are seen. A new format is a file here
//! and a line in [`FORMATS`].

pub mod audio;
mod audio_folder;
pub mod augment;
mod bare;
mod caught;
pub mod classes;
mod columns;
pub mod drawing;
pub mod episodes;
mod files;
mod generated;
mod gzip;
mod idx;
pub mod image_folder;
pub mod inverted;
mod left_out;
mod lines;
mod list;
pub mod pixels;
mod resize;
pub mod sampler;
mod share;
mod stray;
pub mod strokes;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod texture;
pub mod tokens;
mod tree;
pub mod turned;

use std::path::Path;

use tl_proto::{
    catalog::Entry,
    spec::{DataSection, PairedBy, Params},
};

use crate::{Error, Result};

/// An image as decoded: interleaved bytes, three channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` bytes.
    pub bytes: Vec<u8>,
}

/// A list of labelled samples, in an order that is the same on every machine.
pub trait Dataset: Send + Sync {
    /// Names of the classes.
    fn classes(&self) -> &[String];

    /// Class of each sample.
    fn labels(&self) -> &[usize];

    /// Name of a sample, for people.
    fn name(&self, index: usize) -> String;

    /// Digest of a sample's content.
    fn digest(&self, index: usize) -> [u8; 32];

    /// Decodes a sample.
    ///
    /// # Errors
    /// Says in words why it cannot be decoded.
    fn load(&self, index: usize) -> Result<Image, String>;

    /// A sample that is text.
    fn text(&self, _index: usize) -> Option<&str> {
        None
    }

    /// If samples are sound: what is said of how they are heard.
    fn heard(&self) -> Option<&Params> {
        None
    }

    /// Decodes a sample that is sound.
    ///
    /// # Errors
    /// Says in words why it cannot be decoded.
    fn clip(&self, _index: usize) -> Result<audio::Clip, String> {
        Err("it is no sound".into())
    }

    /// If samples are drawings: what is said of how they are read.
    fn drawn(&self) -> Option<&Params> {
        None
    }

    /// A sample that is a drawing.
    ///
    /// # Errors
    /// Says in words why it is none.
    fn drawing(&self, _index: usize) -> Result<&drawing::Drawing, String> {
        Err("it is no drawing".into())
    }

    /// What it has in common with the sample of another kind that it goes with: its name without an ending. Empty where
    /// there is nothing of the kind.
    fn key(&self, index: usize) -> String {
        stem(&self.name(index)).to_owned()
    }

    /// Its place in the list that people see.
    fn place(&self, index: usize) -> usize {
        index
    }

    /// What is to be said of files that lay among the samples and are none.
    fn passed_over(&self) -> Option<&str> {
        None
    }
}

/// A name without its number among those of the same thing (`#2`), and without its ending.
pub(super) fn stem(name: &str) -> &str {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let name = name.rsplit_once('#').filter(|(_, n)| digits(n)).map_or(name, |(name, _)| name);
    // A number is none.
    let ending = |text: &str| {
        (1..=5).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric())
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
    };
    name.rsplit_once('.').filter(|(name, end)| !name.is_empty() && ending(end)).map_or(name, |(name, _)| name)
}

/// Opens the samples at a place; the part is `train` or `val`.
type OpenFn = fn(place: &str, part: &str, params: &Params, seed: u32) -> Result<Box<dyn Dataset>>;

/// A format that can be opened by name.
pub struct Format {
    /// What the catalog says.
    pub entry: fn() -> Entry,
    /// Opens it.
    pub open: OpenFn,
    /// Opens samples whose labels are not looked at and need not be there.
    pub bare: OpenFn,
}

/// Every format.
pub const FORMATS: &[Format] =
    &[image_folder::FORMAT, audio_folder::FORMAT, idx::FORMAT, generated::FORMAT, text::FORMAT, strokes::FORMAT];

/// Opens one part of a job's data. What is judged, which is any part but `train`, may be of one class, or of classes that have
/// no samples there.
///
/// # Errors
/// Data that is not there, or that nothing can be learned from.
pub fn open(data: &DataSection, part: &str, seed: u32) -> Result<Box<dyn Dataset>> {
    let format = format(data)?;
    let place = if part == "train" { &data.train } else { &data.val };
    let mut opened: Box<dyn Dataset> = match data.val_share {
        None => (format.open)(place, part, &data.params, seed)?,
        // Both parts are of the training samples.
        Some(share) => {
            let all = (format.open)(&data.train, "train", &data.params, seed)?;
            Box::new(share::part(all, share, part != "train"))
        }
    };
    let (rules, key) = match part {
        "train" => (&data.train_classes, "data.train_classes"),
        // A share of what trains is of the same classes.
        _ if data.val_share.is_some() && data.val_classes.is_empty() => (&data.train_classes, "data.train_classes"),
        _ => (&data.val_classes, "data.val_classes"),
    };
    if !rules.is_empty() {
        opened = classes::choose(opened, rules, key)?;
    }
    let (classes, none) = (opened.classes(), opened.labels().is_empty());
    if classes.is_empty() {
        return Err(Error::user(format!("`{place}` has no samples"), "check the path"));
    }
    if classes.len() < 2 && part == "train" {
        return Err(Error::user(
            format!("`{place}` has only one class, {}", classes::short(&classes[0])),
            "put the samples of each class into a folder of its own",
        ));
    }
    if let Some(class) = empty_class(&*opened).filter(|_| none || part == "train") {
        let held_out = data.params.contains_key("held_out");
        let what = if held_out { format!(" for {part}, by `held_out`") } else { String::new() };
        let passed = passed_over(&*opened);
        return Err(Error::user(
            format!("class `{class}` of `{place}` has no samples{what}{passed}"),
            if held_out {
                "have `params.held_out` match some of its files and not all of them"
            } else {
                "add samples, or remove the empty folder"
            },
        ));
    }
    Ok(opened)
}

/// Opens the training samples of a domain, without their labels. A share that is for validation is not among them.
///
/// # Errors
/// Data that is not there.
pub fn open_bare(data: &DataSection, seed: u32) -> Result<Box<dyn Dataset>> {
    let format = format(data)?;
    let opened: Box<dyn Dataset> = match data.val_share {
        None => (format.bare)(&data.train, "train", &data.params, seed)?,
        // Which samples are judged goes by their classes, too.
        Some(share) => {
            let all = (format.open)(&data.train, "train", &data.params, seed)?;
            Box::new(share::part(all, share, false))
        }
    };
    if opened.labels().is_empty() {
        let passed = passed_over(&*opened);
        return Err(Error::user(format!("`{}` has no samples{passed}", data.train), "check `data.target.train`"));
    }
    Ok(Box::new(bare::Bare::new(opened)))
}

/// Opens samples that are halves of pairs; the part is `train` or `val`.
///
/// # Errors
/// Data that is not there, or that has no classes where they make the pairs.
pub fn open_paired(data: &DataSection, part: &str, by: PairedBy, seed: u32) -> Result<Box<dyn Dataset>> {
    let format = format(data)?;
    let place = if part == "train" { &data.train } else { &data.val };
    let opened = match by {
        PairedBy::Label => open(data, part, seed)?,
        PairedBy::Name | PairedBy::Order => (format.bare)(place, part, &data.params, seed)?,
    };
    if opened.labels().is_empty() {
        return Err(Error::user(format!("`{place}` has no samples{}", passed_over(&*opened)), "check the path"));
    }
    if let Some(odd) = (0..opened.labels().len()).find(|i| by == PairedBy::Name && opened.key(*i).is_empty()) {
        return Err(Error::user(
            format!("{} of `{place}` does not say what it goes with", opened.name(odd)),
            "write `NAME<TAB>text`, or name columns by `params.label` and `params.text` and what parts them by \
             `params.separator`; give drawings a `key_id`; or set `data.pairs.by = \"order\"`",
        ));
    }
    Ok(Box::new(bare::Bare::paired(opened, by)))
}

/// What an error adds where there are no samples, but other files.
fn passed_over(dataset: &dyn Dataset) -> String {
    dataset.passed_over().map(|files| format!(" ({files})")).unwrap_or_default()
}

fn format(data: &DataSection) -> Result<&'static Format> {
    let found = FORMATS.iter().find(|f| (f.entry)().name == data.format);
    found.ok_or_else(|| Error::user(format!("there is no data format `{}`", data.format), "see `tlctl catalog`"))
}

/// Whether a format can divide what lies at one place into training and validation samples, by `held_out`.
pub fn divides(format: &str) -> bool {
    let takes = |entry: &Entry| entry.name == format && entry.params.iter().any(|p| p.name == "held_out");
    FORMATS.iter().any(|f| takes(&(f.entry)()))
}

/// How many samples each class has.
pub fn counts(dataset: &dyn Dataset) -> Vec<usize> {
    let mut counts = vec![0usize; dataset.classes().len()];
    for label in dataset.labels() {
        if let Some(count) = counts.get_mut(*label) {
            *count += 1;
        }
    }
    counts
}

/// The first class without samples: nothing could be learned of it.
pub fn empty_class(dataset: &dyn Dataset) -> Option<&str> {
    let empty = counts(dataset).iter().position(|count| *count == 0)?;
    Some(&dataset.classes()[empty])
}

/// A dataset restricted to some of its samples.
pub struct Subset {
    inner: Box<dyn Dataset>,
    keep: Vec<usize>,
    classes: Vec<String>,
    labels: Vec<usize>,
}

impl Subset {
    /// Only the samples in `keep`, in that order.
    pub fn new(inner: Box<dyn Dataset>, keep: Vec<usize>) -> Self {
        let labels = keep.iter().map(|i| inner.labels()[*i]).collect();
        let classes = inner.classes().to_vec();
        Self { inner, keep, classes, labels }
    }

    /// Only the samples of some classes, which are then all that there are; ascending numbers of classes.
    fn of_classes(inner: Box<dyn Dataset>, chosen: &[usize]) -> Self {
        let number = |label: &usize| chosen.binary_search(label).ok();
        let kept = inner.labels().iter().enumerate().filter_map(|(i, label)| Some((i, number(label)?)));
        let (keep, labels) = kept.unzip();
        let classes = chosen.iter().map(|c| inner.classes()[*c].clone()).collect();
        Self { inner, keep, classes, labels }
    }

    /// All samples, as some of other `classes`: `numbers` says which of them each of their own is.
    pub fn renumbered(inner: Box<dyn Dataset>, classes: Vec<String>, numbers: &[usize]) -> Self {
        let labels: Vec<usize> = inner.labels().iter().map(|label| numbers[*label]).collect();
        Self { keep: (0..labels.len()).collect(), inner, classes, labels }
    }

    /// The first `n` samples of each class after a shuffle by `seed`.
    pub fn per_class(inner: Box<dyn Dataset>, n: usize, seed: u32) -> Self {
        let order = crate::num::rng::Philox::new(seed, "subset").permutation(inner.labels().len(), 0);
        let mut counts = vec![0; inner.classes().len()];
        let mut keep: Vec<usize> = order
            .into_iter()
            .filter(|i| {
                let count = &mut counts[inner.labels()[*i]];
                *count += 1;
                *count <= n
            })
            .collect();
        keep.sort_unstable();
        Self::new(inner, keep)
    }
}

impl Dataset for Subset {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        self.inner.name(self.keep[index])
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.inner.digest(self.keep[index])
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        self.inner.load(self.keep[index])
    }
    fn text(&self, index: usize) -> Option<&str> {
        self.inner.text(self.keep[index])
    }
    fn heard(&self) -> Option<&Params> {
        self.inner.heard()
    }
    fn clip(&self, index: usize) -> Result<audio::Clip, String> {
        self.inner.clip(self.keep[index])
    }
    fn drawn(&self) -> Option<&Params> {
        self.inner.drawn()
    }
    fn drawing(&self, index: usize) -> Result<&drawing::Drawing, String> {
        self.inner.drawing(self.keep[index])
    }
    fn key(&self, index: usize) -> String {
        self.inner.key(self.keep[index])
    }
    fn passed_over(&self) -> Option<&str> {
        self.inner.passed_over()
    }
}

/// Reads a file whole, with an error that names it.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| {
        Error::user(format!("`{}` cannot be read: {e}", path.display()), "check the path in `[data]`")
    };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > limit {
        return Err(Error::user(format!("`{}` has {size} bytes, more than the limit of {limit}", path.display()), ""));
    }
    std::fs::read(path).map_err(fail)
}

/// What the catalog says of the formats.
pub fn catalog() -> Vec<Entry> {
    FORMATS.iter().map(|f| (f.entry)()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_its_ending_is_what_two_kinds_of_a_sample_share() {
        for (name, want) in [
            ("ants/1.jpg", "ants/1"),
            ("1000268201_693b08cb0e.jpg#3", "1000268201_693b08cb0e"),
            ("a.b/c.tar.gz", "a.b/c.tar"),
            ("line 3", "line 3"),
            (".hidden", ".hidden"),
            ("img.001", "img.001"),
            ("img.001.jpg", "img.001"),
            ("v1.0 of it", "v1.0 of it"),
            ("a#b", "a#b"),
        ] {
            assert_eq!(stem(name), want);
        }
    }

    #[test]
    fn a_share_of_a_folder_is_for_validation_and_the_rest_for_training() {
        let dir = tempfile::tempdir().unwrap();
        for (class, n) in ["ants", "bees"].into_iter().flat_map(|class| (0..10).map(move |n| (class, n))) {
            std::fs::create_dir_all(dir.path().join(class)).unwrap();
            std::fs::write(dir.path().join(format!("{class}/{n}.wav")), format!("{class} {n}")).unwrap();
        }
        let place = dir.path().display().to_string();
        let data = serde_json::json!({
            "format": "audio_folder", "train": place, "val": place, "val_share": 0.3, "batch": 2
        });
        let data: DataSection = serde_json::from_value(data).unwrap();
        let [train, val] = ["train", "val"].map(|part| open(&data, part, 1).unwrap());
        assert_eq!((counts(&*train), counts(&*val)), (vec![7, 7], vec![3, 3]));
        let names = |set: &dyn Dataset| (0..set.labels().len()).map(|i| set.name(i)).collect::<Vec<_>>();
        let judged = names(&*val);
        assert!(names(&*train).iter().all(|name| !judged.contains(name)), "{judged:?}");
        assert_eq!(judged, names(&*open(&data, "val", 2).unwrap()), "whatever the seed");
        // Those of another domain are without labels, and the same.
        let bare = open_bare(&data, 1).unwrap();
        assert_eq!((names(&*bare), bare.classes().len()), (names(&*train), 0));
        // Of some classes, both parts are.
        std::fs::create_dir(dir.path().join("wasps")).unwrap();
        std::fs::write(dir.path().join("wasps/1.wav"), "wasp").unwrap();
        let some = DataSection { train_classes: vec!["ants".into(), "bees".into()], ..data };
        let [train, val] = ["train", "val"].map(|part| open(&some, part, 1).unwrap());
        assert_eq!((counts(&*train), counts(&*val), val.classes()), (vec![7, 7], vec![3, 3], train.classes()));
    }

    #[test]
    fn a_class_that_is_held_out_as_a_whole_is_told_by_what_holds_it_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ants/1.wav", "ants/2.wav", "bees/1.wav", "bees/2.wav"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let opened = |held_out: &str| {
            let place = dir.path().display().to_string();
            let params = serde_json::json!({ "held_out": held_out });
            let data = serde_json::json!({
                "format": "audio_folder", "train": place, "val": place, "batch": 2, "params": params
            });
            open(&serde_json::from_value(data).unwrap(), "train", 1)
        };
        assert_eq!(opened("1\\.wav$").unwrap().labels(), [0, 1]);
        let Some(Error::User { message, hint }) = opened("^bees/").err() else { panic!("no error") };
        assert!(message.contains("class `bees`") && hint.contains("held_out"), "{message}: {hint}");
    }
}
