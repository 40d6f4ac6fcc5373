//! From a decoded image to the square that the network sees. Fixed taps in f32: the same bits on every machine.

use super::Image;
use crate::{nn, weights::Contract};

/// Resizes the short side to `short` and cuts out the centre: `side · side · 3` bytes, interleaved.
///
/// Bilinear with antialiasing: when shrinking, the triangle filter grows with the scale, as in Pillow.
pub fn square(image: &Image, short: usize, side: usize) -> Vec<u8> {
    let (w, h) = (image.width, image.height);
    let least = w.min(h).max(1);
    let (rw, rh) = ((w * short).div_ceil(least).max(side), (h * short).div_ceil(least).max(side));
    let columns = taps(w, rw, (rw - side) / 2, side);
    let rows = taps(h, rh, (rh - side) / 2, side);
    // Rows that are never read are never resized.
    let first = rows.iter().map(|r| r.0).min().unwrap_or(0);
    let last = rows.iter().map(|r| r.0 + r.1.len()).max().unwrap_or(0);
    let mut narrow = vec![0.0f32; (last - first) * side * 3];
    for (y, line) in narrow.chunks_exact_mut(side * 3).enumerate() {
        let src = &image.bytes[(first + y) * w * 3..(first + y + 1) * w * 3];
        for (pixel, (start, weights)) in line.chunks_exact_mut(3).zip(&columns) {
            for (i, weight) in weights.iter().enumerate() {
                let at = (start + i) * 3;
                (0..3).for_each(|c| pixel[c] += weight * f32::from(src[at + c]));
            }
        }
    }
    let mut out = vec![0.0f32; side * side * 3];
    for (line, (start, weights)) in out.chunks_exact_mut(side * 3).zip(&rows) {
        for (i, weight) in weights.iter().enumerate() {
            let src = &narrow[(start - first + i) * side * 3..][..side * 3];
            line.iter_mut().zip(src).for_each(|(o, v)| *o += weight * v);
        }
    }
    out.into_iter().map(|v| (v + 0.5) as u8).collect()
}

/// For each output in `[skip, skip + count)`: first input and the weights from there on.
fn taps(size: usize, resized: usize, skip: usize, count: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = size as f32 / resized as f32;
    let reach = scale.max(1.0);
    (skip..skip + count)
        .map(|o| {
            let centre = (o as f32 + 0.5) * scale;
            let from = libm::floorf(centre - reach).max(0.0) as usize;
            let to = (libm::ceilf(centre + reach) as usize).min(size);
            let raw: Vec<f32> =
                (from..to).map(|i| (1.0 - ((i as f32 + 0.5 - centre) / reach).abs()).max(0.0)).collect();
            let total: f32 = raw.iter().sum();
            (from, raw.iter().map(|w| w / total).collect())
        })
        .collect()
}

/// Interleaved byte values, red first, to planes of network input in the network's order.
pub fn normalise(pixels: &[f32], contract: &Contract) -> Vec<f32> {
    let mut out = Vec::with_capacity(pixels.len());
    for pixel in pixels.chunks_exact(3) {
        out.extend((0..3).map(|c| contract.value(c, pixel[if contract.bgr() { 2 - c } else { c }])));
    }
    out
}

/// A batch `[n, side, side, 3]` of inputs one after the other.
///
/// # Errors
/// Inputs of another size.
pub fn batch(inputs: Vec<f32>, n: usize, side: usize) -> crate::Result<candle_core::Tensor> {
    nn::tensor(inputs, &[n, side, side, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_of_the_right_size_is_unchanged() {
        let bytes: Vec<u8> = (0..4 * 4 * 3).map(|i| (i * 5) as u8).collect();
        let image = Image { width: 4, height: 4, bytes: bytes.clone() };
        assert_eq!(square(&image, 4, 4), bytes);
    }

    #[test]
    fn halving_averages_as_a_triangle_and_the_centre_is_cut_out() {
        // Pillow's bilinear weights for 2:1 are 1/8 3/8 3/8 1/8; a ramp stays a ramp away from the border.
        let (w, h) = (16, 8);
        let bytes = (0..h).flat_map(|_| (0..w).flat_map(|x| [x as u8 * 10; 3])).collect();
        let out = square(&Image { width: w, height: h, bytes }, 4, 4);
        let row: Vec<u8> = out.chunks_exact(3).take(4).map(|p| p[0]).collect();
        assert_eq!(row, [45, 65, 85, 105]);
    }

    #[test]
    fn a_network_that_wants_blue_first_gets_its_own_mean_with_it() {
        let named = Contract::named("unit", 32, None).unwrap();
        let rgb = Contract { mean: [0.0, 0.5, 1.0], ..named };
        let bgr = Contract { color: "bgr".into(), ..rgb.clone() };
        // Two pixels: one red, one blue.
        let pixels = [255.0, 0.0, 0.0, 0.0, 0.0, 255.0];
        assert_eq!(normalise(&pixels, &rgb), [1.0, -0.5, -1.0, 0.0, -0.5, 0.0]);
        assert_eq!(normalise(&pixels, &bgr), [0.0, -0.5, 0.0, 1.0, -0.5, -1.0]);
    }
}
