//! Arithmetic whose bits depend on its arguments alone: never on threads, batch size or the machine's cache.

pub mod fingerprint;
pub mod fresh;
pub mod gemm;
pub mod math;
pub mod pool;
pub mod rng;
pub mod simd;

use rayon::prelude::*;

/// The sum in index order, in f64.
pub fn sum(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().fold(0.0, |acc, v| acc + f64::from(v))
}

/// Elements of one task of a pass over a flat buffer.
const TASK: usize = 1 << 14;
/// Elements whose squares are added up by themselves, and how many sums each block has: lane after lane, so that a
/// vector of them is one instruction.
const BLOCK: usize = 4096;
const LANES: usize = 8;

/// The squared norm, in f64: within blocks of 4096 elements eight sums of every eighth square, folded in order; the blocks
/// folded in order.
pub fn squared_norm(values: &[f32]) -> f64 {
    let mut blocks = vec![0.0f64; values.len().div_ceil(BLOCK)];
    blocks.par_iter_mut().zip(values.par_chunks(BLOCK)).for_each(|(sum, block)| *sum = squares(block));
    blocks.iter().fold(0.0, |acc, v| acc + v)
}

fn squares(block: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    for part in block.chunks(LANES) {
        sums.iter_mut().zip(part).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
    }
    sums.iter().fold(0.0, |acc, v| acc + v)
}

/// Every element divided by `by`.
pub fn divide(values: &mut [f32], by: f32) {
    values.par_chunks_mut(TASK).for_each(|part| part.iter_mut().for_each(|v| *v /= by));
}

/// Every element times `factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(TASK).for_each(|part| part.iter_mut().for_each(|v| *v *= factor));
}
