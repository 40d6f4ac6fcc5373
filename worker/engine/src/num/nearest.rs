//! Rounding to fewer digits, kept in f32.

/// The nearest number whose last `CUT` bits are zero, of two the even one. What is beyond the largest becomes infinite; NaN
/// stays NaN, and quiet.
#[inline(always)]
pub(super) fn nearest<const CUT: u32>(value: f32) -> f32 {
    let (bits, below) = (value.to_bits(), (1u32 << (CUT - 1)) - 1);
    // Half a step, less one where the kept part is even: a tie then stays below. No carry leaves the number: only NaN has
    // larger bits than infinity.
    let up = bits.wrapping_add(below + (bits >> CUT & 1));
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    f32::from_bits(if nan { bits | 0x0040_0000 } else { up } & (u32::MAX << CUT))
}
