//! Which numbers this machine computes. Ranks of one ordered gang must agree on it, and cached features belong to it.

use std::sync::OnceLock;

use super::{
    gemm::{View, gemm},
    math,
    rng::Philox,
    simd::vectorised,
    squared_norm,
};

/// The age of the arithmetic. Raise it by one whenever a change of the code may give other bits for the same job and no
/// probe below would see it: another order of a sum or of draws, another formula in a layer, a loss or an optimizer,
/// other initial values, another decoding of pixels or tokens. Checkpoints and cached features of before are left then,
/// and ranks of before and after do not meet in one ordered gang. What only becomes faster leaves it as it is.
const NUMERICS: u32 = 3;

/// Points at which the functions of [`math`] are sampled, and how many functions there are.
const POINTS: usize = 257;
const FUNCTIONS: usize = 8;

vectorised! {
    /// Every function of [`math`], compiled as in the loops of layers.
    fn functions(at: &[f32], out: &mut [[f32; FUNCTIONS]]) {
        for (x, out) in at.iter().zip(out) {
            let x = *x;
            *out = [
                math::exp(x),
                math::sigmoid(x),
                math::tanh(x),
                math::erf(x),
                math::gelu(x),
                math::gelu_grad(x),
                math::gelu_tanh(x),
                math::gelu_tanh_grad(x),
            ];
        }
    }
}

fn sampled() -> [[f32; FUNCTIONS]; POINTS] {
    // Both ends of every branch: beyond ±88.3, where `exp` saturates, and close to zero, where `tanh` is a polynomial.
    let at: Vec<f32> = (0..POINTS).map(|i| (i as f32 - 128.0) / 128.0).map(|x| 95.0 * x * x * x).collect();
    let mut out = [[0.0; FUNCTIONS]; POINTS];
    functions(&at, &mut out);
    out
}

/// Digest of the release, and of what a few milliseconds of arithmetic come to here: products below and
/// above the depth of one chain, and the functions that enter layers, losses and schedules. Equal digests mean equal
/// bits as far as could be seen; different ones mean different bits.
pub fn fingerprint() -> [u8; 32] {
    static FOUND: OnceLock<[u8; 32]> = OnceLock::new();
    *FOUND.get_or_init(|| digest(NUMERICS, &sampled()))
}

fn digest(numerics: u32, functions: &[[f32; FUNCTIONS]; POINTS]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    hasher.update(&numerics.to_le_bytes());
    let mut draws = Philox::new(0, "fingerprint").stream(0, 0);
    for (m, n, k) in [(3, 5, 7), (64, 48, 520), (130, 96, 1100), (1, 17, 64)] {
        let mut fill = |len: usize| (0..len).map(|_| draws.normal()).collect::<Vec<f32>>();
        let (a, b) = (fill(m * k), fill(k * n));
        let mut out = vec![0.0; m * n];
        gemm(&mut out, n, View::rows(&a, k), View::rows(&b, n), (m, n, k), false);
        hasher.update(bytemuck::cast_slice(&out));
        hasher.update(&squared_norm(&a).to_le_bytes());
    }
    for i in 0..200 {
        let x = (i as f32 - 100.0) * 0.37;
        let all = [libm::expf(x), libm::logf(x.abs() + 0.1), libm::cosf(x), x.abs().sqrt(), libm::tanhf(x)];
        hasher.update(bytemuck::cast_slice(&all));
    }
    hasher.update(bytemuck::cast_slice(functions.as_flattened()));
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_changes_with_the_age_of_the_arithmetic_and_with_every_function() {
        let usual = sampled();
        let mut seen = BTreeSet::from([digest(NUMERICS, &usual), digest(NUMERICS + 1, &usual)]);
        for which in 0..FUNCTIONS {
            let mut other = usual;
            other[130][which] = f32::from_bits(other[130][which].to_bits() ^ 1);
            seen.insert(digest(NUMERICS, &other));
        }
        assert_eq!(seen.len(), 2 + FUNCTIONS);
        assert!(seen.contains(&fingerprint()));
    }

    #[test]
    fn every_function_is_sampled_by_itself() {
        let public = include_str!("math.rs").matches("\npub fn ").count();
        assert_eq!(public, FUNCTIONS, "a new function of `math` belongs into the fingerprint");
        let columns: BTreeSet<Vec<u32>> =
            (0..FUNCTIONS).map(|f| sampled().iter().map(|row| row[f].to_bits()).collect()).collect();
        assert_eq!(columns.len(), FUNCTIONS);
    }
}
