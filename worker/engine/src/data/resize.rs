//! Resize and centre crop: a separable filter with fixed taps in f32. The same bits on every machine.
//!
//! Each output row first blends the rows of the image below it, over the columns that the crop reads, then blends
//! neighbours within that one line, which stays in the nearest cache. Taps are added in order, one rounded product and
//! one rounded sum at a time.

use std::{array, ops::Range};

use super::Image;
use crate::num::simd::vectorised;

/// How a value between pixels is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// A triangle over two pixels.
    Bilinear,
    /// A piecewise cubic over four, with a = -0.5 (Keys, 1981), as Pillow's.
    Bicubic,
}

impl Filter {
    /// Pixels on each side that count.
    fn support(self) -> f32 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// What a pixel counts at a distance in pixels, before weights are made to add up to one.
    fn weight(self, distance: f32) -> f32 {
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

/// What one axis of the output reads: `reach` neighbours from a start on, for every output.
struct Axis {
    reach: usize,
    starts: Vec<usize>,
    /// `reach` of them per output.
    weights: Vec<f32>,
}

impl Axis {
    /// `count` outputs from number `skip` on of `size` inputs resized to `resized`.
    fn new(filter: Filter, size: usize, resized: usize, skip: usize, count: usize) -> Self {
        let scale = size as f32 / resized as f32;
        // When shrinking, the filter grows with the scale: that is the antialiasing.
        let stretch = scale.max(1.0);
        let radius = stretch * filter.support();
        let centre = |o: usize| ((skip + o) as f32 + 0.5) * scale;
        let weight = |i: usize, centre: f32| filter.weight((i as f32 + 0.5 - centre) / stretch);
        // Weights of zero at the ends cost time and change nothing.
        let runs = (0..count).map(|o| {
            let c = centre(o);
            let from = libm::floorf(c - radius).max(0.0) as usize;
            let to = (libm::ceilf(c + radius) as usize).min(size);
            let first = (from..to).find(|i| weight(*i, c) != 0.0).unwrap_or(0);
            first..(first..to).rfind(|i| weight(*i, c) != 0.0).unwrap_or(first) + 1
        });
        let runs: Vec<Range<usize>> = runs.collect();
        let reach = runs.iter().map(Range::len).max().unwrap_or(0);
        let mut weights = vec![0.0; reach * count];
        let fill = |((o, run), slot): ((usize, Range<usize>), &mut [f32])| {
            // Near the far border what is read begins earlier, with weights of zero.
            let start = run.start.min(size - reach);
            let own = &mut slot[run.start - start..][..run.len()];
            own.iter_mut().zip(run).for_each(|(w, i)| *w = weight(i, centre(o)));
            let total: f32 = own.iter().sum();
            own.iter_mut().for_each(|w| *w /= total);
            start
        };
        let starts = runs.into_iter().enumerate().zip(weights.chunks_exact_mut(reach.max(1))).map(fill).collect();
        Self { reach, starts, weights }
    }

    /// The inputs that are read at all: the first one, and the one after the last.
    fn span(&self) -> (usize, usize) {
        let first = self.starts.iter().min().copied().unwrap_or(0);
        (first, self.starts.iter().max().map_or(0, |last| last + self.reach))
    }
}

/// How long a side of `size` pixels becomes where the shorter one, of `least`, becomes `short`, and how much of it lies in front
/// of the `side` pixels in its middle: as torchvision's `Resize` and `CenterCrop` have it, which timm uses too. Places between
/// pixels go to the even one, as by Python's `round`.
fn centred(size: usize, least: usize, short: usize, side: usize) -> (usize, usize) {
    let resized = (size * short / least).max(side);
    let (half, odd) = ((resized - side) / 2, (resized - side) % 2);
    (resized, half + (half & odd))
}

/// Resizes the short side to `short` and cuts out the centre: `side · side · 3` bytes, interleaved.
///
/// With antialiasing, as Pillow's filters, but for its rounding between the two passes.
pub fn square(image: &Image, filter: Filter, short: usize, side: usize) -> Vec<u8> {
    let (w, h) = (image.width, image.height);
    let least = w.min(h).max(1);
    let [columns, rows] = [w, h].map(|size| {
        let (resized, skip) = centred(size, least, short, side);
        Axis::new(filter, size, resized, skip, side)
    });
    let (left, right) = columns.span();
    // One value more than pixels, so that every pixel can be read and written as four values.
    let mut line = vec![0.0f32; (right - left) * 3 + 1];
    let mut sharp = vec![0.0f32; side * 3 + 1];
    let mut out = vec![0u8; side * side * 3];
    let each = rows.starts.iter().zip(rows.weights.chunks_exact(rows.reach));
    for (done, (top, weights)) in out.chunks_exact_mut(side * 3).zip(each) {
        let width = line.len() - 1;
        blend_rows(&mut line[..width], &image.bytes[(top * w + left) * 3..], w * 3, weights);
        blend_pixels(&mut sharp, &line, left, &columns);
        if filter == Filter::Bicubic {
            // Beside an edge a cubic goes past what a byte can hold.
            sharp.iter_mut().for_each(|v| *v = v.clamp(0.0, 255.0));
        }
        round(done, &sharp);
    }
    out
}

vectorised! {
    /// One line from the rows below it, `stride` bytes apart.
    fn blend_rows(line: &mut [f32], rows: &[u8], stride: usize, weights: &[f32]) {
        line.fill(0.0);
        let mut rest = rows;
        for some in weights.chunks(4) {
            match *some {
                [a, b, c, d] => add_rows(line, rest, stride, [a, b, c, d]),
                [a, b, c] => add_rows(line, rest, stride, [a, b, c]),
                [a, b] => add_rows(line, rest, stride, [a, b]),
                [a] => add_rows(line, rest, stride, [a]),
                _ => {}
            }
            rest = rest.get(4 * stride..).unwrap_or_default();
        }
    }

    /// Pixels of the output from their neighbours in a line that begins at column `left`.
    fn blend_pixels(out: &mut [f32], line: &[f32], left: usize, columns: &Axis) {
        match columns.reach {
            1 => add_pixels::<1>(out, line, left, columns),
            2 => add_pixels::<2>(out, line, left, columns),
            3 => add_pixels::<3>(out, line, left, columns),
            4 => add_pixels::<4>(out, line, left, columns),
            5 => add_pixels::<5>(out, line, left, columns),
            6 => add_pixels::<6>(out, line, left, columns),
            _ => add_pixels::<0>(out, line, left, columns),
        }
    }

    /// To the nearest byte, halves upwards.
    fn round(out: &mut [u8], values: &[f32]) {
        for (o, v) in out.iter_mut().zip(values) {
            // Between 256 and 512 the whole number is in bits 15 to 22.
            *o = ((v + 256.5).to_bits() >> 15) as u8;
        }
    }
}

/// `N` is the reach, or 0 where it is another one.
#[inline(always)]
fn add_pixels<const N: usize>(out: &mut [f32], line: &[f32], left: usize, columns: &Axis) {
    let reach = if N > 0 { N } else { columns.reach };
    for (o, (start, weights)) in columns.starts.iter().zip(columns.weights.chunks_exact(reach)).enumerate() {
        let neighbours = &line[(start - left) * 3..][..reach * 3 + 1];
        let mut sum = [0.0f32; 4];
        for k in 0..reach {
            let (w, p) = (weights[k], &neighbours[3 * k..3 * k + 4]);
            sum = [sum[0] + w * p[0], sum[1] + w * p[1], sum[2] + w * p[2], sum[3] + w * p[3]];
        }
        // The fourth value is the next pixel's first, which is written after it.
        if let Some(slot) = out[3 * o..].first_chunk_mut::<4>() {
            *slot = sum;
        }
    }
}

#[inline(always)]
fn add_rows<const N: usize>(line: &mut [f32], rows: &[u8], stride: usize, weights: [f32; N]) {
    let rows: [&[u8]; N] = array::from_fn(|k| &rows[k * stride..][..line.len()]);
    for (i, v) in line.iter_mut().enumerate() {
        for k in 0..N {
            *v += weights[k] * f32::from(rows[k][i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_of_the_right_size_is_unchanged() {
        let bytes: Vec<u8> = (0..4 * 4 * 3).map(|i| (i * 5) as u8).collect();
        let image = Image { width: 4, height: 4, bytes: bytes.clone() };
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            assert_eq!(square(&image, filter, 4, 4), bytes);
        }
    }

    #[test]
    fn halving_averages_as_a_triangle_and_the_centre_is_cut_out() {
        // Pillow's bilinear weights for 2:1 are 1/8 3/8 3/8 1/8; a ramp stays a ramp away from the border.
        let (w, h) = (16, 8);
        let bytes = (0..h).flat_map(|_| (0..w).flat_map(|x| [x as u8 * 10; 3])).collect();
        let out = square(&Image { width: w, height: h, bytes }, Filter::Bilinear, 4, 4);
        let row: Vec<u8> = out.chunks_exact(3).take(4).map(|p| p[0]).collect();
        assert_eq!(row, [45, 65, 85, 105]);
    }

    #[test]
    fn sides_and_what_is_cut_off_are_torchvisions() {
        // By what torchvision's `Resize` and `CenterCrop` compute, in Python: int(short * long / least), and
        // int(round((resized - side) / 2.0)).
        for (size, short, side, wanted) in [
            ([1001, 777], 256, 224, [(329, 52), (256, 16)]),
            ([500, 375], 256, 224, [(341, 58), (256, 16)]),
            ([500, 334], 256, 224, [(383, 80), (256, 16)]),
            ([333, 500], 256, 224, [(256, 16), (384, 80)]),
            ([500, 490], 256, 224, [(261, 18), (256, 16)]),
            ([51, 20], 33, 32, [(84, 26), (33, 0)]),
            ([20_000, 2], 32, 32, [(320_000, 159_984), (32, 0)]),
        ] {
            let least = size[0].min(size[1]);
            assert_eq!(size.map(|size| centred(size, least, short, side)), wanted, "{size:?}");
        }
    }

    /// Every output by its definition, in f64: the sum over all inputs of both filters.
    fn naive(image: &Image, filter: Filter, short: usize, side: usize) -> Vec<f64> {
        let (w, h) = (image.width, image.height);
        let [(rw, left), (rh, top)] = [w, h].map(|size| {
            // As torchvision writes it, in Python's floating point.
            let long = (short as f64 * size as f64 / w.min(h) as f64).trunc() as usize;
            (long, ((long - side) as f64 / 2.0).round_ties_even() as usize)
        });
        let weights = |size: usize, resized: usize, o: usize| -> Vec<f64> {
            let scale = size as f64 / resized as f64;
            let centre = (o as f64 + 0.5) * scale;
            let weight = |x: f64| match filter {
                Filter::Bilinear => (1.0 - x).max(0.0),
                // Keys' kernel, written out by powers.
                Filter::Bicubic if x <= 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
                Filter::Bicubic if x <= 2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
                Filter::Bicubic => 0.0,
            };
            let distance = |i: usize| ((i as f64 + 0.5 - centre) / scale.max(1.0)).abs();
            let raw: Vec<f64> = (0..size).map(|i| weight(distance(i))).collect();
            let total: f64 = raw.iter().sum();
            raw.iter().map(|w| w / total).collect()
        };
        let mut out = Vec::new();
        for y in 0..side {
            let rows = weights(h, rh, y + top);
            for x in 0..side {
                let columns = weights(w, rw, x + left);
                for c in 0..3 {
                    let at = |i: usize, j: usize| f64::from(image.bytes[(j * w + i) * 3 + c]);
                    out.push((0..h).map(|j| rows[j] * (0..w).map(|i| columns[i] * at(i, j)).sum::<f64>()).sum());
                }
            }
        }
        out
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn every_pixel_is_what_the_definition_says(w in 1usize..50, h in 1usize..50, side in 1usize..20, more in 0usize..9, cubic: bool, seed: u64) {
            let mut s = crate::num::rng::Philox::new(7, "resize").stream(seed, 0);
            let bytes = (0..w * h * 3).map(|_| (s.uniform() * 256.0) as u8).collect();
            let image = Image { width: w, height: h, bytes };
            let filter = if cubic { Filter::Bicubic } else { Filter::Bilinear };
            let (ours, exact) = (square(&image, filter, side + more, side), naive(&image, filter, side + more, side));
            for (i, (o, e)) in ours.iter().zip(&exact).enumerate() {
                let e = e.clamp(0.0, 255.0);
                assert!((f64::from(*o) - e).abs() < 0.501, "value {i}: {o} instead of {e}");
            }
        }
    }
}
