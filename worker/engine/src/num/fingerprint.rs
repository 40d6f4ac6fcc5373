//! Which numbers this machine computes. Ranks of one ordered gang must agree on it, and cached features belong to it.

use std::sync::OnceLock;

use super::{
    gemm::{View, gemm},
    rng::Philox,
};

/// Digest of the release, and of what a few milliseconds of arithmetic come to here: products below and
/// above the depth of one chain, and the functions that enter losses and schedules. Equal digests mean equal bits as far as
/// could be seen; different ones mean different bits.
pub fn fingerprint() -> [u8; 32] {
    static FOUND: OnceLock<[u8; 32]> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        let mut draws = Philox::new(0, "fingerprint").stream(0, 0);
        for (m, n, k) in [(3, 5, 7), (64, 48, 520), (130, 96, 1100), (1, 17, 64)] {
            let mut fill = |len: usize| (0..len).map(|_| draws.normal()).collect::<Vec<f32>>();
            let (a, b) = (fill(m * k), fill(k * n));
            let mut out = vec![0.0; m * n];
            gemm(&mut out, n, View::rows(&a, k), View::rows(&b, n), (m, n, k), false);
            hasher.update(bytemuck::cast_slice(&out));
        }
        for i in 0..200 {
            let x = (i as f32 - 100.0) * 0.37;
            let all = [libm::expf(x), libm::logf(x.abs() + 0.1), libm::cosf(x), x.abs().sqrt(), libm::tanhf(x)];
            hasher.update(bytemuck::cast_slice(&all));
        }
        *hasher.finalize().as_bytes()
    })
}
