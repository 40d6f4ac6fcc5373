//! Rounding to TF32, kept in f32: the exponents of f32, and ten bits of its fraction; to the nearest, ties to even.

use super::{nearest::nearest, simd::vectorised};

/// The nearest number that TF32 has. What is beyond its largest becomes infinite; NaN stays NaN, and quiet.
#[inline(always)]
pub fn rounded(value: f32) -> f32 {
    nearest::<13>(value)
}

vectorised! {
    /// Rounds in place.
    pub fn round(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = rounded(*v));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by arithmetic: whole steps of 2⁻¹⁰ times the power of two that a number begins with, or times the least of
    /// them below that. In f64 nothing of it is rounded but to the whole step.
    fn in_steps(value: f32) -> f32 {
        let exponent = (value.to_bits() >> 23 & 0xff).max(1) as i32 - 127;
        let step = 2f64.powi(exponent - 10);
        ((f64::from(value) / step).round_ties_even() * step) as f32
    }

    fn check(bits: &[u32]) {
        let mut values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        round(&mut values);
        for (bits, got) in bits.iter().zip(&values) {
            let (value, got) = (f32::from_bits(*bits), got.to_bits());
            if value.is_nan() {
                assert!(f32::from_bits(got).is_nan() && got & 0x0040_0000 != 0, "{bits:08x} became {got:08x}");
                assert_eq!(got >> 31, bits >> 31, "{bits:08x}");
            } else {
                assert_eq!(got, in_steps(value).to_bits(), "{bits:08x}");
            }
            assert_eq!(got & 0x1fff, 0, "{bits:08x}");
            assert_eq!(got, rounded(f32::from_bits(got)).to_bits(), "{bits:08x} twice");
        }
    }

    #[test]
    fn every_kept_part_with_every_kind_of_rest_is_rounded_to_a_whole_step() {
        // Signs, zeros, subnormals, infinities and NaN are among the kept parts; ties and their neighbours among the rests.
        for rest in [0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff] {
            let bits: Vec<u32> = (0..1 << 19).map(|kept| kept << 13 | rest).collect();
            check(&bits);
        }
    }

    #[test]
    fn ties_go_to_even_and_what_is_beyond_the_largest_is_infinite() {
        let half = 2f32.powi(-11);
        assert_eq!([1.0 + half, 1.0 + 3.0 * half, -1.0 - half].map(rounded), [1.0, 1.0 + 4.0 * half, -1.0]);
        // The least number of f32 that is nearer to a step than to zero, and the one before it, which is as near.
        assert_eq!([0x1000, 0x1001].map(|bits| rounded(f32::from_bits(bits)).to_bits()), [0, 0x2000]);
        assert_eq!([f32::MAX, f32::INFINITY].map(rounded), [f32::INFINITY; 2]);
        assert_eq!([f32::MIN, f32::NEG_INFINITY].map(rounded), [f32::NEG_INFINITY; 2]);
        assert!(rounded(f32::from_bits(0x7f7f_efff)).is_finite() && rounded(f32::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn any_bits_are_rounded_to_a_whole_step(bits in proptest::collection::vec(any::<u32>(), 1..200)) {
            check(&bits);
        }
    }
}
