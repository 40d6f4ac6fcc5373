//! Arithmetic whose bits depend on its arguments alone: never on threads, batch size or the machine's cache.

pub mod fingerprint;
pub mod gemm;
pub mod math;
pub mod pool;
pub mod rng;
pub mod simd;

/// The sum in index order, in f64.
pub fn sum(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().fold(0.0, |acc, v| acc + f64::from(v))
}

/// The squared norm: f64 within blocks of 4096 elements, the blocks folded in order.
pub fn squared_norm(values: &[f32]) -> f64 {
    values.chunks(4096).map(|block| block.iter().fold(0.0, |acc, v| acc + f64::from(*v) * f64::from(*v))).sum()
}
