//! Rounding to bf16, kept in f32: to the nearest, ties to even, as every processor with bf16 does.

use super::{nearest::nearest, simd::vectorised};

/// The nearest number that bf16 has. What is beyond its largest becomes infinite; NaN stays NaN, and quiet.
#[inline(always)]
pub fn rounded(value: f32) -> f32 {
    nearest::<16>(value)
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

    fn check(bits: &[u32]) {
        let mut values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        round(&mut values);
        for (bits, got) in bits.iter().zip(&values) {
            let want = half::bf16::from_f32(f32::from_bits(*bits));
            assert_eq!(got.to_bits(), u32::from(want.to_bits()) << 16, "{bits:08x}");
            assert_eq!(got.to_bits(), rounded(*got).to_bits(), "{bits:08x} twice");
        }
    }

    #[test]
    fn every_kept_part_with_every_kind_of_rest_is_rounded_as_by_the_library() {
        // Signs, zeros, subnormals, infinities and NaN are among the kept parts; ties and their neighbours among the rests.
        let rests = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        for rest in rests {
            let bits: Vec<u32> = (0..=u32::from(u16::MAX)).map(|kept| kept << 16 | rest).collect();
            check(&bits);
        }
    }

    proptest! {
        #[test]
        fn any_bits_are_rounded_as_by_the_library(bits in proptest::collection::vec(any::<u32>(), 1..200)) {
            check(&bits);
        }
    }
}
