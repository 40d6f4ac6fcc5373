//! Arithmetic whose bits depend on its arguments alone: never on threads, batch size or the machine's cache.

pub mod bf16;
pub mod fingerprint;
pub mod fresh;
pub mod gemm;
pub mod math;
mod nearest;
pub mod pool;
pub mod rng;
pub mod simd;
pub mod tf32;

use rayon::prelude::*;

/// The sum in index order, in f64.
pub fn sum(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().fold(0.0, |acc, v| acc + f64::from(v))
}

/// Elements of one task of a pass over a flat buffer.
const TASK: usize = 1 << 14;
/// Elements whose squares are added up by themselves, and how many sums each block has: lane after lane, so that a
/// vector of them is one instruction.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const LANES: usize = 8;

/// The squared norm, in f64: within blocks of 4096 elements eight sums of every eighth square, folded in order; the blocks
/// folded pairwise, neighbour with neighbour.
pub fn squared_norm(values: &[f32]) -> f64 {
    let mut blocks = vec![0.0f64; values.len().div_ceil(BLOCK)];
    blocks.par_iter_mut().zip(values.par_chunks(BLOCK)).for_each(|(sum, block)| *sum = squares(block));
    fold_pairs(blocks)
}

/// The sum of what blocks came to, pairwise, neighbour with neighbour.
pub(crate) fn fold_pairs(mut blocks: Vec<f64>) -> f64 {
    while blocks.len() > 1 {
        // A last one without a neighbour goes up as it is.
        blocks = blocks.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap_or_default()).collect();
    }
    blocks.first().copied().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_norm_are_folded_pairwise_for_any_number_of_threads() {
        // Next to 2⁵⁴ a two is lost, and a four is not: the third and fourth block must meet before the first.
        let mut values = vec![0.0; 5 * BLOCK - 7];
        values[0] = (1u32 << 27) as f32;
        for block in [2, 3] {
            values[block * BLOCK..][..2].fill(1.0);
        }
        let large = 2f64.powi(54);
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| squared_norm(&values)), large + 4.0);
        }
        assert_eq!(large + 2.0 + 2.0, large);
        assert_eq!(squared_norm(&[]), 0.0);
        assert_eq!(squared_norm(&[3.0, 4.0]), 25.0);
    }
}
