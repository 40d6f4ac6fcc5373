//! IDX, the format of MNIST: a file of images and a file of labels, plain or gzip; and names of the labels, where there
//! are some.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use tl_proto::{
    catalog::{Entry, choice, entry},
    spec::Params,
};

use super::{Dataset, Format, Image, gzip, inverted, read_file, texture};
use crate::{Error, Result};

pub(super) const FORMAT: Format = Format { entry: describe, open, bare };

fn describe() -> Entry {
    let doc = "`texture`: on drawn textures in colour, by the recipe of MNIST-M";
    Entry {
        params: vec![choice("ground", &["plain", "texture"], doc), inverted::param()],
        ..entry(
            "idx",
            "MNIST-style files: give the images (…images-idx3-ubyte[.gz], …idx4… in colour), or the folder with those of \
             both parts (train…images…, and t10k…, test… or val…); the labels lie beside them (…labels-idx1-ubyte[.gz]), \
             and are not needed where none are wanted; `…classes.txt` beside them, if it is there, has a name for each \
             label, line by line from 0",
        )
    }
}

/// Most bytes that one file may unpack to.
const MAX_BYTES: u64 = 4 << 30;

/// What the names of files of validation samples may have in them; those of training samples have `train`.
const VAL: [&str; 3] = ["t10k", "test", "val"];

/// Most names of files that an error lists.
const SHOWN: usize = 5;

struct Idx {
    classes: Vec<String>,
    labels: Vec<usize>,
    /// Rows, columns and channels of an image.
    shape: [usize; 3],
    pixels: Vec<u8>,
    textured: bool,
}

/// What a file of images has in it.
struct Images {
    path: PathBuf,
    count: usize,
    /// Rows, columns and channels of one.
    shape: [usize; 3],
    pixels: Vec<u8>,
}

/// Reads the images of a part.
fn images(place: &str, part: &str) -> Result<Images> {
    let path = file_of(place, part)?;
    let shown = path.display().to_string();
    let (shape, pixels) = parse(&gzip::read(&path, MAX_BYTES)?, &shown)?;
    let (count, shape) = match shape[..] {
        [n, rows, columns] => (n, [rows, columns, 1]),
        [n, rows, columns, 3] => (n, [rows, columns, 3]),
        _ => {
            return Err(Error::user(
                format!("`{shown}` has the shape {shape:?}, and is no file of images"),
                "theirs is [images, rows, columns], or [images, rows, columns, 3] in colour",
            ));
        }
    };
    Ok(Images { path, count, shape, pixels })
}

/// The file that a place is, or the one with the images of a part in the folder that it is.
fn file_of(place: &str, part: &str) -> Result<PathBuf> {
    let path = Path::new(place);
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let listed = std::fs::read_dir(path)
        .map_err(|e| Error::user(format!("`{place}` cannot be listed: {e}"), "give the file of the images"))?;
    let files = listed.flatten().filter(|entry| entry.path().is_file());
    let names: BTreeSet<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let words: &[&str] = if part == "train" { &["train"] } else { &VAL };
    let is_own = |name: &str| words.iter().any(|word| name.contains(word));
    // One that lies there unpacked, too, is the same file.
    let is_again = |name: &str| name.strip_suffix(".gz").is_some_and(|plain| names.contains(plain));
    let own = |name: &&String| name.contains("images") && !name.starts_with('.') && is_own(name) && !is_again(name);
    let own: Vec<&String> = names.iter().filter(own).collect();
    match own[..] {
        [one] => Ok(path.join(one)),
        [] => Err(Error::user(
            format!("the folder `{place}` has no file of images for {part}"),
            "give a file such as `train-images-idx3-ubyte.gz`",
        )),
        _ => {
            let some: Vec<String> = own.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
            let more = if own.len() > SHOWN { ", …" } else { "" };
            let hint = format!("give one of the files: {}{more}", some.join(", "));
            Err(Error::user(format!("the folder `{place}` has {} files of images for {part}", own.len()), hint))
        }
    }
}

fn textured(params: &Params) -> bool {
    describe().word(params, "ground") == "texture"
}

/// The images alone.
fn bare(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    let Images { count, shape, pixels, .. } = images(place, part)?;
    let (classes, labels, textured) = (Vec::new(), vec![0; count], textured(params));
    Ok(inverted::as_asked(Box::new(Idx { classes, labels, shape, pixels, textured }), params))
}

fn open(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    let Images { path, count: n, shape, pixels } = images(place, part)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains("images") {
        return Err(Error::user(
            format!("the name of `{}` has no `images` in it, by which its labels would be found", path.display()),
            "call the two files as MNIST's: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`",
        ));
    }
    let labels = labels_of(&path, &name);
    let (count, values) = numbers(&gzip::read(&labels, MAX_BYTES)?, &labels.display().to_string())?;
    if count != [n] {
        return Err(Error::user(
            format!("`{}` has {n} images and {count:?} labels", path.display()),
            "the two files do not belong together",
        ));
    }
    // Labels may begin above zero and have gaps: those of EMNIST's letters are 1 to 26.
    let mut class_of: BTreeMap<u32, usize> = values.iter().map(|label| (*label, 0)).collect();
    class_of.values_mut().enumerate().for_each(|(class, slot)| *slot = class);
    let images = Idx {
        classes: named(&path.with_file_name(start_of(&name) + "classes.txt"), class_of.keys())?,
        labels: values.iter().map(|label| class_of[label]).collect(),
        shape,
        pixels,
        textured: textured(params),
    };
    Ok(inverted::as_asked(Box::new(images), params))
}

/// What the names of the files of one data set begin with.
fn start_of(name: &str) -> String {
    name.split("images").next().unwrap_or_default().to_owned()
}

/// The file of labels beside one of images: with the same name but for what it holds, or with the usual one.
fn labels_of(images: &Path, name: &str) -> PathBuf {
    let same = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    let same = images.with_file_name(same);
    let usual = ["labels-idx1-ubyte", "labels-idx1-ubyte.gz"].map(|end| images.with_file_name(start_of(name) + end));
    usual.into_iter().find(|path| !same.exists() && path.exists()).unwrap_or(same)
}

/// Names of classes: the lines of a file, if it is there, else the labels themselves.
fn named<'a>(file: &Path, labels: impl Iterator<Item = &'a u32>) -> Result<Vec<String>> {
    if !file.exists() {
        return Ok(labels.map(|label| label.to_string()).collect());
    }
    let shown = file.display();
    let text = String::from_utf8(read_file(file, MAX_BYTES)?);
    let text = text.map_err(|_| Error::user(format!("`{shown}` is not text in UTF-8"), "give a name on each line"))?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut at: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    lines.iter().enumerate().for_each(|(label, name)| at.entry(*name).or_default().push(label));
    let name = |label: &u32| {
        let Some(name) = lines.get(*label as usize).filter(|name| !name.is_empty()) else {
            return Err(Error::user(
                format!("`{shown}` has no name for label {label}"),
                "it has a line for each label, from 0; without the file labels are their own names",
            ));
        };
        // Samples are judged by the names of classes.
        if let [first, second, ..] = at[*name][..] {
            return Err(Error::user(
                format!("`{shown}` has `{name}` for labels {first} and {second}"),
                "give each label a name of its own",
            ));
        }
        Ok((*name).to_owned())
    };
    labels.map(name).collect()
}

/// The numbers of an IDX file of labels: unsigned bytes, or, of more classes, integers of two or four bytes.
fn numbers(bytes: &[u8], shown: &str) -> Result<(Vec<usize>, Vec<u32>)> {
    let width = match bytes.get(2) {
        Some(0x0b) => 2,
        Some(0x0c) => 4,
        _ => 1,
    };
    if width == 1 {
        let (shape, values) = parse(bytes, shown)?;
        return Ok((shape, values.into_iter().map(u32::from).collect()));
    }
    let bad = || Error::user(format!("`{shown}` is no IDX file of labels"), "give a list of numbers from 0 up");
    let rest = bytes.get(8..).filter(|_| bytes.starts_with(&[0, 0]) && bytes[3] == 1).ok_or_else(bad)?;
    let count = bytes[4..8].iter().fold(0usize, |n, b| (n << 8) | usize::from(*b));
    if count.checked_mul(width) != Some(rest.len()) {
        return Err(bad());
    }
    // The highest bit is a sign.
    let number = |b: &[u8]| b.iter().fold(0u32, |n, b| (n << 8) | u32::from(*b));
    let limit = 1u32 << (8 * width - 1);
    let values: Vec<u32> = rest.chunks_exact(width).map(number).collect();
    if values.iter().any(|v| *v >= limit) {
        return Err(bad());
    }
    Ok((vec![count], values))
}

/// Shape and bytes of an IDX file of unsigned bytes.
///
/// # Errors
/// A file that contradicts its own header.
pub fn parse(bytes: &[u8], shown: &str) -> Result<(Vec<usize>, Vec<u8>)> {
    let bad =
        |why: &str| Error::user(format!("`{shown}` is no IDX file: {why}"), "give MNIST-style files of unsigned bytes");
    let [0, 0, 8, dims, rest @ ..] = bytes else { return Err(bad("it does not start with 0, 0, 8")) };
    let dims = usize::from(*dims);
    if !(1..=4).contains(&dims) {
        return Err(bad(&format!("it has {dims} dimensions")));
    }
    if rest.len() < 4 * dims {
        return Err(bad("its header is cut off"));
    }
    let shape: Vec<usize> =
        rest[..4 * dims].chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as usize).collect();
    let want = shape.iter().try_fold(1usize, |a, d| a.checked_mul(*d)).ok_or_else(|| bad("its size overflows"))?;
    let data = &rest[4 * dims..];
    if data.len() != want || want == 0 {
        return Err(bad(&format!("it has {} bytes where its header says {want}", data.len())));
    }
    Ok((shape, data.to_vec()))
}

impl Idx {
    fn bytes(&self, index: usize) -> &[u8] {
        let each: usize = self.shape.iter().product();
        &self.pixels[index * each..(index + 1) * each]
    }
}

impl Dataset for Idx {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        format!("#{index}")
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.bytes(index));
        if self.shape[2] == 3 {
            hasher.update(b"colour/1");
        }
        if self.textured {
            hasher.update(b"texture/1");
        }
        *hasher.finalize().as_bytes()
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        let ([height, width, channels], bytes) = (self.shape, self.bytes(index));
        let in_colour = if channels == 3 { bytes.to_vec() } else { bytes.iter().flat_map(|v| [*v; 3]).collect() };
        let image = Image { width, height, bytes: in_colour };
        if !self.textured {
            return Ok(image);
        }
        // By what it shows, so that no two parts of the data share their textures.
        let digest = self.digest(index);
        let number = digest.first_chunk().expect("a digest has 32 bytes");
        Ok(texture::blend(&image, u64::from_le_bytes(*number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(0u8.., 0..64), good: bool) {
            if good && bytes.len() > 3 {
                bytes[..3].copy_from_slice(&[0, 0, 8]);
            }
            let _ = parse(&bytes, "x");
            if good && bytes.len() > 3 {
                bytes[2] = 0x0b + bytes[3] % 2;
            }
            let _ = numbers(&bytes, "x");
        }
    }

    /// A file of unsigned bytes.
    fn of(dims: &[u8], data: &[u8]) -> Vec<u8> {
        let sizes: Vec<u8> = dims.iter().flat_map(|d| [0, 0, 0, *d]).collect();
        [&[0, 0, 8, dims.len() as u8][..], &sizes[..], data].concat()
    }

    #[test]
    fn images_in_colour_are_read_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let pixels: Vec<u8> = (0..12).collect();
        let images = dir.path().join("train-images-idx4-ubyte").display().to_string();
        std::fs::write(&images, of(&[2, 1, 2, 3], &pixels)).unwrap();
        std::fs::write(dir.path().join("train-labels-idx1-ubyte"), of(&[2], &[7, 4])).unwrap();
        let set = open(&images, "train", &Params::new(), 0).unwrap();
        assert_eq!((set.classes(), set.labels()), (&["4".to_owned(), "7".to_owned()][..], &[1, 0][..]));
        assert_eq!(set.load(1).unwrap(), Image { width: 2, height: 1, bytes: pixels[6..].to_vec() });
        // Six grey pixels of the same bytes are another image.
        let colour = set.digest(0);
        std::fs::write(&images, of(&[2, 1, 6], &pixels)).unwrap();
        assert_ne!(open(&images, "train", &Params::new(), 0).unwrap().digest(0), colour);
        for shape in [&[4, 3][..], &[2, 1, 3, 2], &[12]] {
            std::fs::write(&images, of(shape, &pixels)).unwrap();
            let error = open(&images, "train", &Params::new(), 0).err().unwrap().to_string();
            assert!(error.contains(&format!("has the shape {shape:?}")), "{error}");
        }
        let error = parse(&of(&[1; 5], &[9]), "x").unwrap_err().to_string();
        assert!(error.contains("it has 5 dimensions"), "{error}");
    }

    #[test]
    fn a_folder_has_the_images_of_both_parts() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display().to_string();
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
        for (part, value) in [("train", 5), ("t10k", 6)] {
            write(&format!("{part}-images-idx3-ubyte"), of(&[1, 1, 1], &[value]));
            write(&format!("{part}-labels-idx1-ubyte"), of(&[1], &[0]));
        }
        // As it was fetched.
        write("train-images-idx3-ubyte.gz", vec![1]);
        let first = |part: &str| open(&place, part, &Params::new(), 0).unwrap().load(0).unwrap().bytes[0];
        assert_eq!((first("train"), first("val")), (5, 6));
        write("test-images", of(&[1, 1, 1], &[7]));
        let error = |part: &str| open(&place, part, &Params::new(), 0).err().unwrap().to_failure();
        let two = error("val");
        assert!(two.message.contains("has 2 files of images for val"), "{two}");
        assert!(two.hint.contains("`t10k-images-idx3-ubyte`, `test-images`"), "{}", two.hint);
        for name in ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        assert!(error("train").message.contains("has no file of images for train"));
    }

    #[test]
    fn images_without_labels_may_be_called_anything() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("usps_train_x").display().to_string();
        std::fs::write(&place, of(&[2, 1, 1], &[5, 6])).unwrap();
        assert_eq!(bare(&place, "train", &Params::new(), 0).unwrap().load(1).unwrap().bytes, [6; 3]);
        let error = open(&place, "train", &Params::new(), 0).err().unwrap().to_string();
        assert!(error.contains("has no `images` in it"), "{error}");
    }

    #[test]
    fn a_file_that_contradicts_its_header_is_refused() {
        let good = [0, 0, 8, 1, 0, 0, 0, 2, 7, 9];
        assert_eq!(parse(&good, "x").unwrap(), (vec![2], vec![7, 9]));
        assert!(parse(&good[..9], "x").is_err());
    }

    #[test]
    fn classes_are_the_labels_that_are_there_in_the_order_of_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let labels = [10u8, 2, 26, 2, 10];
        let images = dir.path().join("letters-images-idx3-ubyte");
        std::fs::write(&images, of(&[5, 1, 1], &[50, 51, 52, 53, 54])).unwrap();
        std::fs::write(dir.path().join("letters-labels-idx1-ubyte"), of(&[5], &labels)).unwrap();
        let set = open(&images.display().to_string(), "train", &Params::new(), 0).unwrap();
        assert_eq!(set.classes(), ["2", "10", "26"]);
        assert_eq!(set.labels(), [1, 0, 2, 0, 1]);
        assert_eq!(set.load(2).unwrap().bytes, [52; 3]);
        let invert = [("invert".to_owned(), true.into())].into();
        assert_eq!(open(&images.display().to_string(), "train", &invert, 0).unwrap().load(2).unwrap().bytes, [203; 3]);
    }

    #[test]
    fn labels_of_many_classes_and_their_names_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("some-images28-idx3-ubyte");
        std::fs::write(&images, [&[0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1][..], &[5, 6, 7]].concat()).unwrap();
        let labels = [&[0, 0, 0x0b, 1, 0, 0, 0, 3][..], &[1, 44, 0, 2, 1, 44]].concat();
        std::fs::write(dir.path().join("some-labels-idx1-ubyte"), &labels).unwrap();
        let open = || open(&images.display().to_string(), "train", &Params::new(), 0);
        let set = open().unwrap();
        assert_eq!((set.classes(), set.labels()), (&["2".to_owned(), "300".to_owned()][..], &[1, 0, 1][..]));
        let names = |count: usize| (0..count).map(|i| format!("Greek/{i}\n")).collect::<String>();
        std::fs::write(dir.path().join("some-classes.txt"), names(301)).unwrap();
        assert_eq!(open().unwrap().classes(), ["Greek/2", "Greek/300"]);
        std::fs::write(dir.path().join("some-classes.txt"), names(300)).unwrap();
        assert!(open().err().unwrap().to_string().contains("no name for label 300"));
        // A label that is there and one that is not; what other lines have in common is nobody's name here.
        let named = |other: &str| names(301).replace("Greek/7\n", other).replace("Greek/9\n", "none\n");
        std::fs::write(dir.path().join("some-classes.txt"), named("none\n")).unwrap();
        assert_eq!(open().unwrap().classes(), ["Greek/2", "Greek/300"]);
        std::fs::write(dir.path().join("some-classes.txt"), named("Greek/300\n")).unwrap();
        let error = open().err().unwrap().to_string();
        assert!(error.ends_with("has `Greek/300` for labels 7 and 300"), "{error}");
        for bad in [&labels[..labels.len() - 1], &[0, 0, 0x0b, 1, 0, 0, 0, 1, 255, 255], &[0, 0, 0x0c, 1, 0]] {
            assert!(numbers(bad, "x").is_err(), "{bad:?}");
        }
    }
}
