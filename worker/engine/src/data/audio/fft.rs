//! The discrete Fourier transform of real frames, in f64. Crates for it take the widest instructions that a machine has and
//! the C library's sines, so that their last bits depend on it; this one gives the same everywhere, and is fast enough for
//! clips that are transformed once.

/// Transforms frames of one power of two.
pub(super) struct Fft {
    /// cos and −sin of 2πk/n for the first half of the circle.
    turns: Vec<[f64; 2]>,
    /// Where each value goes before the first pass: the bits of its number in reverse.
    order: Vec<usize>,
}

impl Fft {
    /// For frames of `n` values, a power of two of at least 2.
    pub fn new(n: usize) -> Self {
        let turn = |k: usize| {
            let angle = std::f64::consts::TAU * k as f64 / n as f64;
            [libm::cos(angle), -libm::sin(angle)]
        };
        let bits = n.trailing_zeros();
        let order = (0..n).map(|i| i.reverse_bits() >> (usize::BITS - bits)).collect();
        Self { turns: (0..n / 2).map(turn).collect(), order }
    }

    /// |X_k|² for k = 0..=n/2.
    pub fn power(&self, frame: &[f64]) -> Vec<f64> {
        let n = self.order.len();
        let mut values: Vec<[f64; 2]> = self.order.iter().map(|i| [frame[*i], 0.0]).collect();
        let mut half = 1;
        while half < n {
            let stride = n / (2 * half);
            for block in values.chunks_exact_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(self.turns.iter().step_by(stride)) {
                    let turned = [b[0] * cos - b[1] * sin, b[0] * sin + b[1] * cos];
                    (*a, *b) = ([a[0] + turned[0], a[1] + turned[1]], [a[0] - turned[0], a[1] - turned[1]]);
                }
            }
            half *= 2;
        }
        values[..=n / 2].iter().map(|[re, im]| re * re + im * im).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_sum_that_defines_it() {
        for n in [2usize, 4, 64, 256] {
            let frame: Vec<f64> = (0..n).map(|i| ((i * i * 7 + 3) % 11) as f64 - 4.5).collect();
            let power = Fft::new(n).power(&frame);
            assert_eq!(power.len(), n / 2 + 1);
            for (k, got) in power.iter().enumerate() {
                let sum = frame.iter().enumerate().fold([0.0f64; 2], |sum, (i, x)| {
                    let angle = -std::f64::consts::TAU * ((i * k) % n) as f64 / n as f64;
                    [sum[0] + x * libm::cos(angle), sum[1] + x * libm::sin(angle)]
                });
                let want = sum[0] * sum[0] + sum[1] * sum[1];
                assert!((got - want).abs() <= 1e-9 * (n * n) as f64, "{n} {k}: {got} {want}");
            }
        }
    }
}
