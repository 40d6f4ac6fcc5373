//! IDX, the format of MNIST: a file of images and a file of labels, plain or gzip.

use std::{io::Read, path::Path};

use tl_proto::{
    catalog::{Entry, choice, entry},
    spec::Params,
};

use super::{Dataset, Format, Image, read_file, texture};
use crate::{Error, Result};

pub(super) const FORMAT: Format = Format { entry: describe, open, bare };

fn describe() -> Entry {
    let doc = "`texture`: on drawn textures in colour, by the recipe of MNIST-M";
    Entry {
        params: vec![choice("ground", &["plain", "texture"], doc)],
        ..entry(
            "idx",
            "MNIST-style files: give the images (…images-idx3-ubyte[.gz]); the labels lie beside them \
             (…labels-idx1-ubyte[.gz]), and are not needed where none are wanted",
        )
    }
}

/// Most bytes that one file may unpack to.
const MAX_BYTES: u64 = 4 << 30;

struct Idx {
    classes: Vec<String>,
    labels: Vec<usize>,
    size: (usize, usize),
    pixels: Vec<u8>,
    textured: bool,
}

/// A file of images: where it lies, its name, their shape and pixels.
fn images(place: &str) -> Result<(&Path, String, [usize; 3], Vec<u8>)> {
    let images = Path::new(place);
    let name = images.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains("images") {
        return Err(Error::user(
            format!("`{place}` is no file of images"),
            "give a file such as `train-images-idx3-ubyte.gz`",
        ));
    }
    let (shape, pixels) = parse(&unpack(images)?, place)?;
    match shape[..] {
        [n, height, width] => Ok((images, name, [n, height, width], pixels)),
        _ => Err(Error::user(format!("`{place}` has {} dimensions instead of 3", shape.len()), "")),
    }
}

fn textured(params: &Params) -> bool {
    describe().word(params, "ground") == "texture"
}

/// The images alone.
fn bare(place: &str, _part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    let (_, _, [n, height, width], pixels) = images(place)?;
    let (classes, labels, textured) = (Vec::new(), vec![0; n], textured(params));
    Ok(Box::new(Idx { classes, labels, size: (height, width), pixels, textured }))
}

fn open(place: &str, _part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    let (images, name, [n, height, width], pixels) = images(place)?;
    let labels = images.with_file_name(name.replace("images", "labels").replace("idx3", "idx1"));
    let (count, values) = parse(&unpack(&labels)?, &labels.display().to_string())?;
    if count != [n] {
        return Err(Error::user(
            format!("`{place}` has {n} images and {count:?} labels"),
            "the two files do not belong together",
        ));
    }
    // Labels may begin above zero and have gaps: those of EMNIST's letters are 1 to 26.
    let mut present = values.clone();
    present.sort_unstable();
    present.dedup();
    let mut class_of = [0; 256];
    present.iter().enumerate().for_each(|(class, label)| class_of[usize::from(*label)] = class);
    Ok(Box::new(Idx {
        classes: present.iter().map(|label| label.to_string()).collect(),
        labels: values.iter().map(|label| class_of[usize::from(*label)]).collect(),
        size: (height, width),
        pixels,
        textured: textured(params),
    }))
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_file(path, MAX_BYTES)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    let read = flate2::read::GzDecoder::new(&bytes[..]).take(MAX_BYTES).read_to_end(&mut out);
    read.map_err(|e| Error::user(format!("`{}` is not a whole gzip file: {e}", path.display()), "fetch it again"))?;
    Ok(out)
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
    if dims == 0 || dims > 3 || rest.len() < 4 * dims {
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
        let area = self.size.0 * self.size.1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.pixels[index * area..(index + 1) * area]);
        if self.textured {
            hasher.update(b"texture/1");
        }
        *hasher.finalize().as_bytes()
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        let (height, width) = self.size;
        let gray = &self.pixels[index * height * width..(index + 1) * height * width];
        let image = Image { width, height, bytes: gray.iter().flat_map(|v| [*v; 3]).collect() };
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
        }
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
        let of = |dims: &[u8], data: &[u8]| {
            let sizes: Vec<u8> = dims.iter().flat_map(|d| [0, 0, 0, *d]).collect();
            [&[0, 0, 8, dims.len() as u8][..], &sizes[..], data].concat()
        };
        let images = dir.path().join("letters-images-idx3-ubyte");
        std::fs::write(&images, of(&[5, 1, 1], &[50, 51, 52, 53, 54])).unwrap();
        std::fs::write(dir.path().join("letters-labels-idx1-ubyte"), of(&[5], &labels)).unwrap();
        let set = open(&images.display().to_string(), "train", &Params::new(), 0).unwrap();
        assert_eq!(set.classes(), ["2", "10", "26"]);
        assert_eq!(set.labels(), [1, 0, 2, 0, 1]);
        assert_eq!(set.load(2).unwrap().bytes, [52; 3]);
    }
}
