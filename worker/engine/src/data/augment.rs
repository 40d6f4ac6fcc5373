//! Random flips, turns, zooms and shifts of a training sample: one inverse map, bilinear, borders repeated.

use std::ops::Range;

use tl_proto::spec::{AugmentSection, Views};

use crate::num::rng::{Philox, Stream};

/// One realised transform; equal text means equal pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    flip: bool,
    angle: f32,
    scale: f32,
    shift: (f32, f32),
    erase: Option<Erase>,
}

/// A box in parts of the side, so that networks that see a sample at different sizes miss the same of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Erase {
    height: f32,
    width: f32,
    /// Where it lies within what is left of the side.
    top: f32,
    left: f32,
}

impl Erase {
    /// Random erasing (Zhong et al., 2020) with torchvision's defaults: 2 to 33 % of the area, sides 3:10 to 10:3 evenly
    /// in their logarithm, and nothing where ten tries do not fit.
    fn draw(s: &mut Stream) -> Option<Self> {
        let ratio = libm::logf(3.3);
        let low = libm::logf(0.3);
        let fitting = (0..10).find_map(|_| {
            let (area, aspect) = (s.range(0.02, 0.33), libm::expf(s.range(low, ratio)));
            let (height, width) = (libm::sqrtf(area * aspect), libm::sqrtf(area / aspect));
            (height < 1.0 && width < 1.0).then_some((height, width))
        });
        let (top, left) = (s.uniform(), s.uniform());
        fitting.map(|(height, width)| Self { height, width, top, left })
    }

    /// Rows and columns of the box in a square of `side` pixels.
    fn bounds(&self, side: usize) -> (Range<usize>, Range<usize>) {
        let span = |length: f32, at: f32| {
            let length = (libm::roundf(length * side as f32) as usize).min(side);
            let start = ((at * (side - length + 1) as f32) as usize).min(side - length);
            start..start + length
        };
        (span(self.height, self.top), span(self.width, self.left))
    }
}

impl View {
    /// The sample as it is.
    pub const PLAIN: Self = Self { flip: false, angle: 0.0, scale: 1.0, shift: (0.0, 0.0), erase: None };

    /// View number `view` of a sample: a function of seed, content and number alone. Fixed views take turns at being
    /// mirrored, so that two of them always differ; endless ones toss a coin.
    pub fn draw(augment: &AugmentSection, seed: u32, digest: &[u8; 32], view: u64) -> Self {
        let content = u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
        let mut s = Philox::new(seed, "augment").stream(content ^ view.wrapping_mul(0x9E37_79B9_7F4A_7C15), 0);
        // Every draw is made whether used or not, so that switching one transform on leaves the others as they were.
        let coin = s.uniform() < 0.5;
        let flip = if augment.views == Views::Fresh { coin } else { view % 2 == 1 };
        let (angle, scale) = (s.range(-1.0, 1.0), s.range(-1.0, 1.0));
        let shift = (s.range(-1.0, 1.0), s.range(-1.0, 1.0));
        let crop = augment.crop as f32;
        let hit = f64::from(s.uniform()) < augment.erase;
        let erase = Erase::draw(&mut s).filter(|_| hit);
        Self {
            erase,
            flip: augment.flip && flip,
            // Adding zero turns −0 into 0: equal transforms have equal text.
            angle: angle * augment.rotate as f32 * std::f32::consts::TAU + 0.0,
            scale: 1.0 + scale * augment.zoom as f32,
            shift: (shift.0 * crop + 0.0, shift.1 * crop + 0.0),
        }
    }

    /// The transform as text, for the key of cached features.
    pub fn describe(&self) -> String {
        format!("{self:?}")
    }

    /// Sets the erased box of a normalised input `[side, side, 3]` to zero, which is the mean colour.
    pub fn blank(&self, input: &mut [f32], side: usize) {
        let Some(erase) = self.erase else { return };
        let (rows, columns) = erase.bounds(side);
        for row in rows {
            input[(row * side + columns.start) * 3..(row * side + columns.end) * 3].fill(0.0);
        }
    }

    /// Applies all but the erasing to a square of interleaved pixels.
    pub fn apply(&self, pixels: Vec<f32>, side: usize) -> Vec<f32> {
        if (Self { erase: None, ..*self }) == Self::PLAIN {
            return pixels;
        }
        let (sin, cos) = (libm::sinf(self.angle), libm::cosf(self.angle));
        let middle = (side as f32 - 1.0) / 2.0;
        let last = side as f32 - 1.0;
        let mut out = Vec::with_capacity(pixels.len());
        for y in 0..side {
            for x in 0..side {
                let dx = if self.flip { middle - x as f32 } else { x as f32 - middle } * self.scale;
                let dy = (y as f32 - middle) * self.scale;
                let sx = (cos * dx - sin * dy + middle + self.shift.0 * side as f32).clamp(0.0, last);
                let sy = (sin * dx + cos * dy + middle + self.shift.1 * side as f32).clamp(0.0, last);
                let (x0, y0) = (libm::floorf(sx) as usize, libm::floorf(sy) as usize);
                let (x1, y1) = ((x0 + 1).min(side - 1), (y0 + 1).min(side - 1));
                let (fx, fy) = (sx - x0 as f32, sy - y0 as f32);
                for c in 0..3 {
                    let at = |x: usize, y: usize| pixels[(y * side + x) * 3 + c];
                    let top = at(x0, y0) + (at(x1, y0) - at(x0, y0)) * fx;
                    let bottom = at(x0, y1) + (at(x1, y1) - at(x0, y1)) * fx;
                    out.push(top + (bottom - top) * fy);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_mirrors_and_twice_is_nothing() {
        let flip = View { flip: true, ..View::PLAIN };
        let pixels: Vec<f32> = (0..5 * 5 * 3).map(|v| v as f32).collect();
        let once = flip.apply(pixels.clone(), 5);
        assert_eq!(once[..3], pixels[12..15]);
        assert_eq!(flip.apply(once, 5), pixels);
    }

    #[test]
    fn a_view_depends_on_content_and_number_and_obeys_its_limits() {
        let augment = AugmentSection { rotate: 0.1, zoom: 0.2, ..AugmentSection::default() };
        let draw = |d: u8, v| View::draw(&augment, 1, &[d; 32], v);
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
        for v in 0..100 {
            let view = draw(0, v);
            assert!(!view.flip && view.shift == (0.0, 0.0));
            assert!(view.angle.abs() <= 0.1 * std::f32::consts::TAU + 1e-6 && (view.scale - 1.0).abs() <= 0.2001);
        }
    }

    #[test]
    fn erasing_blanks_a_box_of_the_usual_size_as_often_as_asked() {
        let augment = AugmentSection { erase: 0.25, views: Views::Fresh, ..AugmentSection::default() };
        let (side, mut hits, mut areas) = (64, 0, 0.0);
        for v in 1..=4000u64 {
            let view = View::draw(&augment, 1, &[3; 32], v);
            let mut input = vec![1.0f32; 3 * side * side];
            view.blank(&mut input, side);
            let blank = input.iter().filter(|v| **v == 0.0).count();
            assert_eq!(view.erase.is_some(), blank > 0);
            if let Some(erase) = view.erase {
                let (rows, columns) = erase.bounds(side);
                assert_eq!(blank, 3 * rows.len() * columns.len());
                let corner = (rows.start * side + columns.start) * 3;
                assert_eq!(input[corner..corner + 3 * columns.len()], vec![0.0; 3 * columns.len()]);
                let (h, w) = (rows.len() as f64, columns.len() as f64);
                let area = h * w / (side * side) as f64;
                assert!((0.015..0.36).contains(&area) && (0.25..4.0).contains(&(h / w)), "{area} {}", h / w);
                // The same part of a picture of another size.
                let (large, _) = erase.bounds(4 * side);
                assert!(large.start.abs_diff(4 * rows.start) <= 8 && large.len().abs_diff(4 * rows.len()) <= 4);
                (hits, areas) = (hits + 1, areas + area);
            }
        }
        assert!((900..1100).contains(&hits), "{hits}");
        // Evenly from 2 to 33 %.
        assert!((areas / f64::from(hits) - 0.175).abs() < 0.01, "{}", areas / f64::from(hits));
        let without = View::draw(&AugmentSection { erase: 0.0, ..augment.clone() }, 1, &[3; 32], 7);
        assert_eq!(without, View { erase: None, ..View::draw(&augment, 1, &[3; 32], 7) }, "nothing else moves");
    }
}
