//! Position embeddings for another input size than the weights': resampled on their grid, as timm does.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    Error, Result,
    nn::{Store, host, tensor},
};

/// timm's name of them: `[1, 1 + grid², c]`, the class's first.
const NAME: &str = "pos_embed";

/// Replaces the file's position embeddings by those for the grid of `store`, where it has another one.
///
/// # Errors
/// Embeddings that lie on no square grid.
pub fn fit(file: &mut BTreeMap<String, Tensor>, store: &Store) -> Result<()> {
    let Some(wanted) = store.params.iter().find(|e| e.name == NAME) else { return Ok(()) };
    let Some(found) = file.get_mut(NAME) else { return Ok(()) };
    let (&[1, rows, c], &[_, wanted_rows, wanted_c]) = (found.dims(), &wanted.shape[..]) else { return Ok(()) };
    // Another width is another network, which is said where all shapes are compared.
    if rows == wanted_rows || c != wanted_c {
        return Ok(());
    }
    let grid = |rows: usize| rows.saturating_sub(1).isqrt();
    let (old, new) = (grid(rows), grid(wanted_rows));
    if old == 0 || 1 + old * old != rows {
        return Err(Error::user(
            format!("the weights have {rows} position embeddings, and a class with a square of patches has 1 + n²"),
            "give weights with a class token, such as those of timm's vit_small_patch16_224",
        ));
    }
    let values = host(found)?.to_vec();
    let mut out = values[..c].to_vec();
    out.extend(resample(&values[c..], c, old, new));
    *found = tensor(out, &[1, wanted_rows, c])?;
    Ok(())
}

/// `[old, old, c]` to `[new, new, c]`: bicubic with antialiasing (Keys, 1981, with a = −0.5), as PyTorch's and Pillow's.
fn resample(x: &[f32], c: usize, old: usize, new: usize) -> Vec<f32> {
    let taps: Vec<Vec<(usize, f64)>> = (0..new).map(|o| taps(old, new, o)).collect();
    let mut lines = vec![0.0f64; new * old * c];
    for (taps, line) in taps.iter().zip(lines.chunks_exact_mut(old * c)) {
        for (i, w) in taps {
            line.iter_mut().zip(&x[i * old * c..]).for_each(|(o, v)| *o += w * f64::from(*v));
        }
    }
    let mut out = Vec::with_capacity(new * new * c);
    for line in lines.chunks_exact(old * c) {
        for taps in &taps {
            out.extend((0..c).map(|k| taps.iter().map(|(i, w)| w * line[i * c + k]).fold(0.0, |a, b| a + b) as f32));
        }
    }
    out
}

/// What output `o` of `new` reads of `old` inputs, and how much of each.
fn taps(old: usize, new: usize, o: usize) -> Vec<(usize, f64)> {
    let scale = old as f64 / new as f64;
    // When shrinking, the filter grows with the scale: that is the antialiasing.
    let wide = scale.max(1.0);
    let centre = (o as f64 + 0.5) * scale;
    let from = (centre - 2.0 * wide + 0.5).max(0.0) as usize;
    let to = ((centre + 2.0 * wide + 0.5) as usize).min(old);
    let raw: Vec<(usize, f64)> = (from..to).map(|i| (i, cubic((i as f64 - centre + 0.5) / wide))).collect();
    let total = raw.iter().fold(0.0, |sum, (_, w)| sum + w);
    raw.into_iter().map(|(i, w)| (i, w / total)).collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((x - 5.0) * x + 8.0) * x * A - 4.0 * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of timm's `resample_abs_pos_embed` on a grid of 3x3 with the values below.
    const GROWN: [f32; 25] = [
        3.150_943, 1.558_856, -0.075_472, 4.334_977, 7.452_829, 3.532_385, 1.940_298, 0.305_97, 4.716_419, 7.834_271,
        4.226_415, 2.634_328, 1.0, 5.410_449, 8.528_301, 4.920_445, 3.328_358, 1.694_03, 6.104_478, 9.222_331,
        5.301_887, 3.709_8, 2.075_472, 6.485_92, 9.603_773,
    ];
    const SHRUNK: [f32; 4] = [1.979_133, 4.739_967, 3.359_55, 6.120_385];

    #[test]
    fn grids_become_those_of_timm() {
        let x: Vec<f32> = (0..9).map(|i| ((i * 7 + 3) % 10) as f32).collect();
        for (new, wanted) in [(5, &GROWN[..]), (2, &SHRUNK[..])] {
            for (i, (got, want)) in resample(&x, 1, 3, new).iter().zip(wanted).enumerate() {
                assert!((got - want).abs() < 1e-5, "{new}: {i}: {got} instead of {want}");
            }
        }
        assert_eq!(resample(&x, 1, 3, 3), x);
    }
}
