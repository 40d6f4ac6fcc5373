//! Random flips, turns, zooms and shifts of a training sample: one inverse map, bilinear, borders repeated.

use std::ops::Range;

use tl_proto::spec::{AugmentSection, Views};

use crate::num::{
    rng::{Philox, Stream},
    simd::vectorised,
};

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

    /// The sample mirrored, and no more.
    pub const FLIPPED: Self = Self { flip: true, ..Self::PLAIN };

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

    /// The same without moving up or down.
    pub fn level(self) -> Self {
        Self { shift: (self.shift.0, 0.0), ..self }
    }

    /// Whether it mirrors, if that is all it does but for the erasing.
    pub(super) fn only_flips(&self) -> Option<bool> {
        (*self == Self { flip: self.flip, erase: self.erase, ..Self::PLAIN }).then_some(self.flip)
    }

    /// Mirrors, turns, zooms and shifts `[side, side, 3]`, behind which lies one value more, into `out`.
    pub(super) fn warp(&self, pixels: &[f32], side: usize, out: &mut [f32]) {
        let (sin, cos) = (libm::sinf(self.angle) * self.scale, libm::cosf(self.angle) * self.scale);
        let middle = (side as f32 - 1.0) / 2.0;
        let mirrored = if self.flip { -1.0 } else { 1.0 };
        // Where the middle comes from, and how far one step to the right and one downwards goes there.
        let map = Map {
            middle,
            origin: [middle + self.shift.0 * side as f32, middle + self.shift.1 * side as f32],
            right: [cos * mirrored, sin * mirrored],
            down: [-sin, cos],
        };
        let mut places = Places { at: vec![0; side], right: vec![0.0; side], down: vec![0.0; side] };
        // One value more than pixels, so that every pixel can be written as four values.
        let mut line = vec![0.0; side * 3 + 1];
        for (y, row) in out.chunks_exact_mut(side * 3).enumerate() {
            locate(&mut places, y as f32, &map);
            sample(&mut line, pixels, &places, side);
            row.copy_from_slice(&line[..side * 3]);
        }
    }
}

/// An affine map from pixels of the output to places in the input, `[x, y]`.
struct Map {
    middle: f32,
    origin: [f32; 2],
    right: [f32; 2],
    down: [f32; 2],
}

/// Between which pixels of the input those of one row lie: the number of the upper left one, and how far from it.
struct Places {
    at: Vec<u32>,
    right: Vec<f32>,
    down: Vec<f32>,
}

/// Whole numbers from here on, and up to twice as much, are their own last bits: pictures of up to 2896 pixels a side.
const WHOLE: f32 = 8_388_608.0;

/// Rounds down what is at least 0 and less than [`WHOLE`].
#[inline(always)]
fn floor(v: f32) -> f32 {
    let near = (v + WHOLE) - WHOLE;
    near - if near > v { 1.0 } else { 0.0 }
}

vectorised! {
    /// Where the pixels of row `y` come from.
    fn locate(places: &mut Places, y: f32, map: &Map) {
        let (n, side) = (places.at.len(), places.at.len() as f32);
        // The last pixel counts as the end of the step that leads to it.
        let (last, before) = (side - 1.0, (side - 2.0).max(0.0));
        let within = |v: f32, limit: f32| {
            let low = if v > 0.0 { v } else { 0.0 };
            if low < limit { low } else { limit }
        };
        let dy = y - map.middle;
        let begin = [map.origin[0] + map.down[0] * dy, map.origin[1] + map.down[1] * dy];
        let (at, right, down) = (&mut places.at[..n], &mut places.right[..n], &mut places.down[..n]);
        for x in 0..n {
            let dx = x as u32 as i32 as f32 - map.middle;
            let sx = within(begin[0] + map.right[0] * dx, last);
            let sy = within(begin[1] + map.right[1] * dx, last);
            let (x0, y0) = (floor(within(sx, before)), floor(within(sy, before)));
            at[x] = (y0 * side + x0 + WHOLE).to_bits() & 0x7f_ffff;
            (right[x], down[x]) = (sx - x0, sy - y0);
        }
    }

    /// Mixes the four neighbours of each place.
    fn sample(line: &mut [f32], pixels: &[f32], places: &Places, side: usize) {
        // A picture of one pixel has no other neighbours.
        let (across, below) = if side > 1 { (3, 3 * side) } else { (0, 0) };
        let places = places.at.iter().zip(&places.right).zip(&places.down);
        for (x, ((at, right), down)) in places.enumerate() {
            let near = &pixels[*at as usize * 3..][..below + across + 4];
            let upper = between(&near[..4], &near[across..across + 4], *right);
            let lower = between(&near[below..below + 4], &near[below + across..], *right);
            // The fourth value is the next pixel's first, which is written after it.
            if let Some(slot) = line[3 * x..].first_chunk_mut::<4>() {
                *slot = between(&upper, &lower, *down);
            }
        }
    }
}

/// Four values at once; the last belongs to the next pixel.
#[inline(always)]
fn between(a: &[f32], b: &[f32], f: f32) -> [f32; 4] {
    let (a, b) = (&a[..4], &b[..4]);
    [a[0] + (b[0] - a[0]) * f, a[1] + (b[1] - a[1]) * f, a[2] + (b[2] - a[2]) * f, a[3] + (b[3] - a[3]) * f]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warped(view: View, pixels: &[f32], side: usize) -> Vec<f32> {
        let mut out = vec![-1.0; pixels.len()];
        view.warp(&[pixels, &[f32::NAN]].concat(), side, &mut out);
        out
    }

    #[test]
    fn a_flip_mirrors_and_twice_is_nothing() {
        let pixels: Vec<f32> = (0..5 * 5 * 3).map(|v| v as f32).collect();
        let once = warped(View::FLIPPED, &pixels, 5);
        assert_eq!(once[..3], pixels[12..15]);
        assert_eq!(warped(View::FLIPPED, &once, 5), pixels);
        assert_eq!(View::FLIPPED.only_flips(), Some(true));
        assert_eq!(View { scale: 1.1, ..View::FLIPPED }.only_flips(), None);
    }

    #[test]
    fn a_shift_moves_and_repeats_the_border_and_half_a_pixel_is_the_mean() {
        let pixels: Vec<f32> = (0..4 * 4 * 3).map(|v| (v * v) as f32).collect();
        let at = |y: usize, x: usize, c: usize| pixels[(y * 4 + x.min(3)) * 3 + c];
        for (by, whole, part) in [(0.25, 1, 0.0), (0.125, 0, 0.5)] {
            let out = warped(View { shift: (by, 0.0), ..View::PLAIN }, &pixels, 4);
            for (i, o) in out.iter().enumerate() {
                let (y, x, c) = (i / 12, i / 3 % 4, i % 3);
                let (near, far) = (at(y, x + whole, c), at(y, x + whole + 1, c));
                assert_eq!(*o, near + (far - near) * if x + whole < 3 { part } else { 0.0 }, "{by}: {i}");
            }
        }
    }

    #[test]
    fn a_quarter_turn_turns() {
        let pixels: Vec<f32> = (0..5 * 5 * 3).map(|v| v as f32).collect();
        let out = warped(View { angle: std::f32::consts::FRAC_PI_2, ..View::PLAIN }, &pixels, 5);
        for (i, o) in out.iter().enumerate() {
            let (y, x, c) = (i / 15, i / 3 % 5, i % 3);
            assert!((o - pixels[(x * 5 + 4 - y) * 3 + c]).abs() < 1e-3, "{i}: {o}");
        }
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
