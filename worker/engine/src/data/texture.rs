//! Digits on coloured textures, by the recipe of MNIST-M (Ganin and Lempitsky, 2015): the absolute difference of a digit
//! and a patch of a picture, in each channel. The patches are drawn here, so that none has to be fetched.

use super::Image;
use crate::num::rng::{Philox, Stream};

/// Layers of noise of a patch, each with twice the detail of the one before and half its weight. So small a piece of a
/// photo is smooth.
const OCTAVES: u32 = 3;
/// How much a colour may differ within a patch, as a part of the range.
const CONTRAST: f32 = 0.35;

/// Corners of a grid of random numbers, and between them straight lines.
struct Noise {
    cells: usize,
    corners: Vec<f32>,
}

impl Noise {
    fn draw(cells: usize, s: &mut Stream) -> Self {
        Self { cells, corners: (0..(cells + 1) * (cells + 1)).map(|_| s.uniform()).collect() }
    }

    /// The noise at a place of the unit square.
    fn at(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x * self.cells as f32, y * self.cells as f32);
        let (i, j) = ((x as usize).min(self.cells - 1), (y as usize).min(self.cells - 1));
        let (fx, fy) = (x - i as f32, y - j as f32);
        let corner = |i: usize, j: usize| self.corners[j * (self.cells + 1) + i];
        let top = corner(i, j) * (1.0 - fx) + corner(i + 1, j) * fx;
        let bottom = corner(i, j + 1) * (1.0 - fx) + corner(i + 1, j + 1) * fx;
        top * (1.0 - fy) + bottom * fy
    }
}

/// A patch of a texture: noise between two colours.
fn patch(width: usize, height: usize, s: &mut Stream) -> Vec<u8> {
    // Mostly grey, as photos are.
    let grey = s.uniform();
    let mut colour = || [0; 3].map(|_| (grey + 0.25 * s.normal()).clamp(0.0, 1.0));
    let dark = colour();
    let light = dark.map(|c| (c + CONTRAST * s.normal()).clamp(0.0, 1.0));
    let first = 1 + s.below(2) as usize;
    let layers: Vec<Noise> = (0..OCTAVES).map(|o| Noise::draw(first << o, s)).collect();
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
            let (mut sum, mut weight, mut whole) = (0.0, 1.0, 0.0);
            for layer in &layers {
                sum += weight * layer.at(u, v);
                whole += weight;
                weight *= 0.5;
            }
            // Noise of several layers stays near its middle: spread it.
            let mix = ((sum / whole - 0.5) * 2.0 + 0.5).clamp(0.0, 1.0);
            out.extend((0..3).map(|c| (255.0 * (dark[c] + mix * (light[c] - dark[c]))) as u8));
        }
    }
    out
}

/// The image on the texture of this number.
pub(super) fn blend(image: &Image, number: u64) -> Image {
    // Which texture belongs to which image is part of the data set, not of a job: no seed of a job changes it.
    let texture = patch(image.width, image.height, &mut Philox::new(0, "texture/1").stream(number, 0));
    let bytes = texture.iter().zip(&image.bytes).map(|(t, v)| t.abs_diff(*v)).collect();
    Image { bytes, ..*image }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_image_shows_its_texture_and_a_full_one_the_reverse() {
        let (blank, full) = ([0, 255]).map(|v| Image { width: 28, height: 28, bytes: vec![v; 28 * 28 * 3] }).into();
        let (texture, reverse) = (blend(&blank, 3), blend(&full, 3));
        assert!(texture.bytes.iter().zip(&reverse.bytes).all(|(a, b)| *a == 255 - b));
        assert_eq!(texture, blend(&blank, 3));
        assert_ne!(texture, blend(&blank, 4));
        let spread = |number| {
            let bytes = blend(&blank, number).bytes;
            bytes.iter().max().unwrap() - bytes.iter().min().unwrap()
        };
        assert!((0..20).filter(|n| spread(*n) > 40).count() > 15, "textures are not of one colour");
    }
}
