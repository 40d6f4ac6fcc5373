//! Images in four turns, each a class of its own: a character on its side is another character.

use super::{Dataset, Image};
use crate::{Error, Result};

/// Turns of a quarter to the left.
const TURNS: usize = 4;

/// A data set in which every class is there four times, turned by 0, 90, 180 and 270 degrees.
pub struct Turned {
    inner: Box<dyn Dataset>,
    classes: Vec<String>,
    labels: Vec<usize>,
}

impl Turned {
    /// All turns of a data set: as it is, then turned.
    ///
    /// # Errors
    /// Text, sound or drawings.
    pub fn new(inner: Box<dyn Dataset>) -> Result<Self> {
        let n = inner.labels().len();
        if n > 0 && inner.text(0).is_some() {
            return Err(Error::user("`data.episodes.rotations` turns images, and the data is text", "remove it"));
        }
        if inner.heard().is_some() {
            return Err(Error::user("`data.episodes.rotations` turns images, and the data is sound", "remove it"));
        }
        if inner.drawn().is_some() {
            return Err(Error::user("`data.episodes.rotations` turns images, and the data is drawings", "remove it"));
        }
        let each = inner.classes().len();
        let classes = (0..TURNS).flat_map(|turn| inner.classes().iter().map(move |c| turned(c, turn))).collect();
        let labels = (0..TURNS).flat_map(|turn| inner.labels().iter().map(move |l| l + turn * each)).collect();
        Ok(Self { inner, classes, labels })
    }

    /// The sample, and how often it is turned.
    fn at(&self, index: usize) -> (usize, usize) {
        let n = self.inner.labels().len().max(1);
        (index % n, index / n)
    }
}

fn turned(name: &str, turn: usize) -> String {
    if turn == 0 { name.to_owned() } else { format!("{name}@{}", 90 * turn) }
}

/// One quarter to the left.
fn quarter(image: &Image) -> Image {
    let (width, height) = (image.height, image.width);
    let mut bytes = Vec::with_capacity(image.bytes.len());
    for y in 0..height {
        for x in 0..width {
            let at = 3 * (x * image.width + (image.width - 1 - y));
            bytes.extend_from_slice(&image.bytes[at..at + 3]);
        }
    }
    Image { width, height, bytes }
}

impl Dataset for Turned {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        let (index, turn) = self.at(index);
        turned(&self.inner.name(index), turn)
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        let (index, turn) = self.at(index);
        let digest = self.inner.digest(index);
        if turn == 0 {
            return digest;
        }
        *blake3::Hasher::new().update(&digest).update(format!("turn/{turn}").as_bytes()).finalize().as_bytes()
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        let (index, turn) = self.at(index);
        Ok((0..turn).fold(self.inner.load(index)?, |image, _| quarter(&image)))
    }
    fn passed_over(&self) -> Option<&str> {
        self.inner.passed_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Named;

    #[test]
    fn a_turn_is_another_class_with_the_same_samples() {
        // Two by three pixels that count up: 0 1 / 2 3 / 4 5.
        let set = Turned::new(Box::new(Named::new(&["a", "b"], &[1, 0]))).unwrap();
        assert_eq!(set.classes(), ["a", "b", "a@90", "b@90", "a@180", "b@180", "a@270", "b@270"]);
        assert_eq!(set.labels(), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!((set.name(0), set.name(7)), ("#0".into(), "#1@270".into()));
        let seen = |i: usize| {
            let image = set.load(i).unwrap();
            (image.width, image.bytes.chunks(3).map(|p| p[0]).collect::<Vec<u8>>())
        };
        assert_eq!(seen(0), (2, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(seen(2), (3, vec![1, 3, 5, 0, 2, 4]), "as numpy.rot90 turns");
        assert_eq!(seen(4), (2, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(seen(6), (3, vec![4, 2, 0, 5, 3, 1]));
        let digests: std::collections::BTreeSet<_> = [0, 2, 4, 6].map(|i| set.digest(i)).into();
        assert_eq!(digests.len(), 4);
    }
}
