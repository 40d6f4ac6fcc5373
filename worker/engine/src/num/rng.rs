//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), keyed by seed and purpose.
//!
//! A draw is a pure function of what it is for. Nothing here has a state that a restart could lose or a rank could
//! advance out of turn.

/// A family of random numbers for one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The family of `purpose` under `seed`.
    pub fn new(seed: u32, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
        let bytes = *hasher.finalize().as_bytes();
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { key: [word(0), word(4)] }
    }

    /// What tells it from other families, for those who compute it elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Four words at a counter.
    pub fn block(&self, mut c: [u32; 4]) -> [u32; 4] {
        let mut k = self.key;
        for _ in 0..10 {
            let p0 = u64::from(c[0]) * 0xD251_1F53;
            let p1 = u64::from(c[2]) * 0xCD9E_8D57;
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    /// The sequence that belongs to `(id, site)`.
    pub fn stream(&self, id: u64, site: u32) -> Stream {
        Stream { philox: *self, id, site, index: 0, left: [0; 4], have: 0 }
    }

    /// The order of `n` things in `epoch`: Fisher-Yates.
    pub fn permutation(&self, n: usize, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        let mut stream = self.stream(epoch, 0);
        for i in (1..n).rev() {
            order.swap(i, stream.below(i as u64 + 1) as usize);
        }
        order
    }
}

/// Random numbers one after the other.
#[derive(Clone, Debug)]
pub struct Stream {
    philox: Philox,
    id: u64,
    site: u32,
    index: u32,
    left: [u32; 4],
    have: usize,
}

impl Stream {
    /// Leaves out the first `words` words of a sequence from which nothing was taken yet.
    pub fn starting_at(mut self, words: u64) -> Self {
        self.index = (words / 4) as u32;
        for _ in 0..words % 4 {
            self.next_u32();
        }
        self
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.have == 0 {
            self.left = self.philox.block([self.id as u32, (self.id >> 32) as u32, self.site, self.index]);
            self.index = self.index.wrapping_add(1);
            self.have = 4;
        }
        self.have -= 1;
        self.left[3 - self.have]
    }

    /// Uniform in `[0, 1)`, 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..n`; the bias of 2^-64·n is below what anyone can observe.
    pub fn below(&mut self, n: u64) -> u64 {
        let wide = (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32());
        ((u128::from(wide) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal, by Box and Muller, with `libm` so that the bits do not depend on the machine's libc.
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - f64::from(self.uniform());
        let v = f64::from(self.uniform());
        (libm::sqrt(-2.0 * libm::log(u)) * libm::cos(std::f64::consts::TAU * v)) as f32
    }

    /// Gamma(shape, 1), by Marsaglia and Tsang (2000), with the usual boost below 1.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        let boost = if shape < 1.0 { libm::pow(1.0 - f64::from(self.uniform()), 1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = f64::from(self.normal());
            let v = 1.0 + c * x;
            let v = v * v * v;
            let u = 1.0 - f64::from(self.uniform());
            if v > 0.0 && libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return boost * d * v;
            }
        }
    }
}

/// 64 bits of a name, for counters.
pub fn name_id(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_test_vectors() {
        // Random123's kat_vectors, philox4x32 with 10 rounds.
        let zero = Philox { key: [0, 0] };
        assert_eq!(zero.block([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox { key: [u32::MAX; 2] };
        assert_eq!(ones.block([u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn a_sequence_can_be_entered_anywhere() {
        let stream = Philox::new(3, "test").stream(7, 2);
        let all: Vec<u32> = std::iter::repeat_with({
            let mut stream = stream.clone();
            move || stream.next_u32()
        })
        .take(30)
        .collect();
        for first in 0..20 {
            let mut later = stream.clone().starting_at(first as u64);
            assert!((first..first + 9).all(|i| later.next_u32() == all[i]), "from {first}");
        }
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut s = Philox::new(1, "test").stream(7, 0);
        let n = 20_000;
        let normals: Vec<f64> = (0..n).map(|_| f64::from(s.normal())).collect();
        let mean = normals.iter().sum::<f64>() / f64::from(n);
        let var = normals.iter().map(|v| v * v).sum::<f64>() / f64::from(n) - mean * mean;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
        let gamma = (0..n).map(|_| s.gamma(0.4)).sum::<f64>() / f64::from(n);
        assert!((gamma - 0.4).abs() < 0.02, "{gamma}");
    }

    #[test]
    fn a_permutation_holds_everything_once_and_differs_by_epoch() {
        let p = Philox::new(3, "order");
        let (a, b) = (p.permutation(100, 0), p.permutation(100, 1));
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(a, b);
    }
}
