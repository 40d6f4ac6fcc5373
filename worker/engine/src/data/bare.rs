//! Samples without labels: what lies with them is not looked at. A network that is brought to another domain learns from
//! these, and cannot come by a label that it must not know.

use tl_proto::spec::{PairedBy, Params};

use super::{Dataset, Image, audio::Clip, drawing::Drawing};

/// What stands where a label would: no class has this number.
const NO_LABEL: usize = usize::MAX;

/// Samples whose labels are out of reach.
pub(super) struct Bare {
    inner: Box<dyn Dataset>,
    labels: Vec<usize>,
    /// What pairs each with a sample of another kind, where that is not its name.
    keys: Option<Vec<String>>,
}

impl Bare {
    /// Samples that go with nothing: what stands where a name could, in a text's first column say, may be a label.
    pub(super) fn new(inner: Box<dyn Dataset>) -> Self {
        let n = inner.labels().len();
        Self { inner, labels: vec![NO_LABEL; n], keys: Some(vec![String::new(); n]) }
    }

    /// Samples that are halves of pairs. Where their classes make the pairs, that is all that their classes do.
    pub(super) fn paired(inner: Box<dyn Dataset>, by: PairedBy) -> Self {
        let all = 0..inner.labels().len();
        let place = |i| inner.place(i).to_string();
        let keys = match by {
            PairedBy::Name => None,
            PairedBy::Label => Some(inner.labels().iter().map(|l| inner.classes()[*l].clone()).collect()),
            PairedBy::Order => Some(all.map(place).collect()),
        };
        Self { keys, ..Self::new(inner) }
    }
}

impl Dataset for Bare {
    /// None.
    fn classes(&self) -> &[String] {
        &[]
    }
    /// As many as there are samples; none of them is a class.
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.inner.digest(index)
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        self.inner.load(index)
    }
    fn text(&self, index: usize) -> Option<&str> {
        self.inner.text(index)
    }
    fn heard(&self) -> Option<&Params> {
        self.inner.heard()
    }
    fn clip(&self, index: usize) -> Result<Clip, String> {
        self.inner.clip(index)
    }
    fn drawn(&self) -> Option<&Params> {
        self.inner.drawn()
    }
    fn drawing(&self, index: usize) -> Result<&Drawing, String> {
        self.inner.drawing(index)
    }
    fn key(&self, index: usize) -> String {
        match &self.keys {
            Some(keys) => keys[index].clone(),
            None => self.inner.key(index),
        }
    }
    fn passed_over(&self) -> Option<&str> {
        self.inner.passed_over()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::json;
    use tl_proto::spec::DataSection;

    use super::super::{FORMATS, open, open_bare};

    /// Writes a file, and the folders that it lies in.
    fn file(path: PathBuf, bytes: &[u8]) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Two samples in files of their own: with a folder for the class of each, without, and in a list that ends too early.
    fn files(dir: &Path, ending: &str) -> [PathBuf; 3] {
        let place = ["with", "without", "spoiled"].map(|name| dir.join(name));
        for (class, content) in [("cat", "one"), ("dog", "two")] {
            file(place[0].join(format!("{class}/{content}.{ending}")), content.as_bytes());
            file(place[1].join(format!("{content}.{ending}")), content.as_bytes());
            file(place[2].join(format!("{content}.{ending}")), content.as_bytes());
        }
        let list = file(place[2].join("list.txt"), format!("one.{ending}\tcat\ntwo.{ending}\n").as_bytes());
        let [with, without, _] = place;
        [with, without, list]
    }

    /// The same two samples of a format: with labels, without, and with something in their place that is none.
    fn thrice(format: &str, dir: &Path) -> Option<[PathBuf; 3]> {
        let written = |contents: [&str; 3], name: &str| {
            let at = [("with", contents[0]), ("without", contents[1]), ("spoiled", contents[2])];
            at.map(|(which, content)| file(dir.join(which).join(name), content.as_bytes()))
        };
        Some(match format {
            "image_folder" => files(dir, "png"),
            "audio_folder" => files(dir, "wav"),
            "idx" => {
                let images = [0u8, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 9];
                let labels = [0u8, 0, 8, 1, 0, 0, 0, 2, 4, 5];
                file(dir.join("with/train-labels-idx1-ubyte"), &labels);
                // One is not there.
                file(dir.join("spoiled/train-labels-idx1-ubyte"), &labels[..9]);
                let images = |which: &str| file(dir.join(which).join("train-images-idx3-ubyte"), &images);
                ["with", "without", "spoiled"].map(images)
            }
            "text" => {
                let texts = ["cat\tone sits\ndog\ttwo run\n", "one sits\ntwo run\n", "\tone sits\n\ttwo run\n"];
                written(texts, "train.tsv")
            }
            "strokes" => {
                let line = |word: &str, x: u8| format!("{{{word}\"drawing\":[[[{x},1],[2,3]]]}}\n");
                let both = |words: [&str; 2]| line(words[0], 4) + &line(words[1], 5);
                let with = both(["\"word\":\"cat\",", "\"word\":\"dog\","]);
                let (without, spoiled) = (both(["", ""]), both(["\"word\":null,", "\"word\":\"\","]));
                written([&with[..], &without[..], &spoiled[..]], "train.ndjson")
            }
            _ => return None,
        })
    }

    fn section(format: &str, place: &str) -> DataSection {
        let data = json!({ "format": format, "train": place, "val": place, "batch": 2 });
        serde_json::from_value(data).unwrap()
    }

    /// What can be told of samples, none of which has a label: their contents.
    fn told(format: &str, place: &str) -> Vec<[u8; 32]> {
        let set = open_bare(&section(format, place), 1).unwrap_or_else(|e| panic!("{format}, `{place}`: {e}"));
        let all = 0..set.labels().len();
        assert!(set.classes().is_empty() && set.labels().iter().all(|label| *label == usize::MAX), "{format}");
        assert!(all.clone().all(|i| set.key(i).is_empty()), "{format}: what it goes with could be its class");
        all.map(|i| set.digest(i)).collect()
    }

    #[test]
    fn labels_of_a_domain_that_is_adapted_to_are_out_of_reach_whatever_they_are() {
        let mut formats = 0;
        for format in FORMATS.iter().map(|format| (format.entry)().name) {
            let dir = tempfile::tempdir().unwrap();
            let Some(places) = thrice(&format, dir.path()) else { continue };
            let places = places.map(|place| place.display().to_string());
            let labelled = |place: &str| open(&section(&format, place), "train", 1).map(|set| set.classes().len());
            assert_eq!(labelled(&places[0]).unwrap(), 2, "{format}");
            assert!(places[1..].iter().all(|place| labelled(place).is_err()), "{format}: there are labels to be read");
            let told = places.map(|place| told(&format, &place));
            assert!(told[0].len() == 2 && told[0] == told[1] && told[0] == told[2], "{format}: the same samples");
            formats += 1;
        }
        assert_eq!(formats, 5);
        // Nothing lies beside what is drawn.
        assert_eq!(told("generated", "source").len(), 8 * 256);
    }
}
