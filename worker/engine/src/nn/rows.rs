//! Sums per channel over the rows of a channels-last tensor, the same for any number of threads.

use rayon::prelude::*;

use crate::num::simd::vectorised;

/// Rows whose sum is one chain in f32; a constant, since it is part of the result.
pub const BLOCK: usize = 64;

/// Adds up lines of `width` partial sums, one per block of rows, in order and in f64.
pub fn total(lines: &[f32], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    lines.chunks_exact(width.max(1)).for_each(|line| add_wide(&mut sums, line));
    sums
}

vectorised! {
    fn add_wide(sums: &mut [f64], line: &[f32]) {
        sums.iter_mut().zip(line).for_each(|(s, v)| *s += f64::from(*v));
    }

    fn sum_products(x: &[f32], y: &[f32], sums: &mut [f32]) {
        for (x, y) in x.chunks_exact(sums.len()).zip(y.chunks_exact(sums.len())) {
            sums.iter_mut().zip(x).zip(y).for_each(|((s, x), y)| *s += x * y);
        }
    }

    fn sum_rows(x: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
    }
}

/// `sums[c] += Σ over rows of x[row, c]·y[row, c]`.
pub fn add_products(x: &[f32], y: &[f32], c: usize, sums: &mut [f32]) {
    let mut lines = vec![0.0; (x.len() / c).div_ceil(BLOCK) * c];
    let parts = lines.par_chunks_exact_mut(c).zip(x.par_chunks(BLOCK * c)).zip(y.par_chunks(BLOCK * c));
    parts.for_each(|((line, x), y)| sum_products(x, y, line));
    sums.iter_mut().zip(total(&lines, c)).for_each(|(s, t)| *s += t as f32);
}

/// `sums[c] += Σ over rows of x[row, c]`.
pub fn add_sums(x: &[f32], c: usize, sums: &mut [f32]) {
    let mut lines = vec![0.0; (x.len() / c).div_ceil(BLOCK) * c];
    lines.par_chunks_exact_mut(c).zip(x.par_chunks(BLOCK * c)).for_each(|(line, x)| sum_rows(x, line));
    sums.iter_mut().zip(total(&lines, c)).for_each(|(s, t)| *s += t as f32);
}
