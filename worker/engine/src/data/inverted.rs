//! Images as their negatives: dark ink on light paper becomes light ink on dark, and the other way round.

use tl_proto::{
    catalog::{Param, flag},
    spec::Params,
};

use super::{Dataset, Image};

/// What the parameter is called.
pub const INVERT: &str = "invert";

/// The parameter of a format of images.
pub(super) fn param() -> Param {
    flag(
        INVERT,
        false,
        "take the negatives of the images: dark ink on light paper becomes light ink on dark, as other data may have it; \
         `tlctl predict --invert` does so to files",
    )
}

/// Images as they are, or inverted if the parameters say so.
pub(super) fn as_asked(images: Box<dyn Dataset>, params: &Params) -> Box<dyn Dataset> {
    match params.get(INVERT).and_then(serde_json::Value::as_bool) {
        Some(true) => Box::new(Inverted(images)),
        _ => images,
    }
}

/// The negative of an image.
pub fn negative(mut image: Image) -> Image {
    image.bytes.iter_mut().for_each(|byte| *byte = u8::MAX - *byte);
    image
}

/// A data set of negatives.
struct Inverted(Box<dyn Dataset>);

impl Dataset for Inverted {
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn labels(&self) -> &[usize] {
        self.0.labels()
    }
    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }
    /// Not that of the image: what a network makes of one says nothing of the other.
    fn digest(&self, index: usize) -> [u8; 32] {
        *blake3::Hasher::new().update(&self.0.digest(index)).update(b"inverted").finalize().as_bytes()
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        self.0.load(index).map(negative)
    }
    fn passed_over(&self) -> Option<&str> {
        self.0.passed_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Named;

    #[test]
    fn a_negative_is_another_image_of_the_same_name_and_class() {
        let images = || Box::new(Named::new(&["a", "b"], &[1, 0]));
        let asked = |invert: bool| as_asked(images(), &[(INVERT.to_owned(), invert.into())].into());
        let (plain, inverted) = (asked(false), asked(true));
        assert_eq!(as_asked(images(), &Params::new()).digest(1), plain.digest(1));
        assert_ne!(inverted.digest(1), plain.digest(1));
        assert_eq!(
            (inverted.classes(), inverted.labels(), inverted.name(1)),
            (plain.classes(), &[1, 0][..], "#1".into())
        );
        let (image, negative) = (plain.load(0).unwrap(), inverted.load(0).unwrap());
        assert_eq!((negative.width, negative.height), (2, 3));
        assert!(image.bytes.iter().zip(&negative.bytes).all(|(a, b)| a + b == 255) && image.bytes[3] == 1);
    }
}
