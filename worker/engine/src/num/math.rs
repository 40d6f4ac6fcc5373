//! Transcendental functions of f32 without branches, so that loops over them become vector code. The C library picks its
//! own by CPU model; these give the same bits everywhere.

/// eˣ: reduction by powers of two and a polynomial of degree 6 on ±ln 2 / 2 (Cephes' scheme); relative error below 2e-7.
/// Below −87.3 the result is the smallest normal number; above 88.3 it saturates near the largest.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer
    // Written so that a NaN stays one.
    let x = if x > 88.3 { 88.3 } else { x };
    let x = if x < -87.3 { -87.3 } else { x };
    let n = (x * std::f32::consts::LOG2_E + MAGIC) - MAGIC;
    // ln 2 in two parts, the first with few bits, so that n·hi is exact.
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let scale = f32::from_bits((((n + MAGIC).to_bits() as i32).wrapping_shl(23) as u32).wrapping_add(0x3f80_0000));
    y * scale
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x; a polynomial below 0.625, where the quotient of exponentials would cancel (Cephes' scheme).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let e = exp(-2.0 * a);
    let large = (1.0 - e) / (1.0 + e);
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let small = a + a * z * p;
    let t = if a < 0.625 { small } else { large };
    if x < 0.0 { -t } else { t }
}

/// The error function: the odd rational approximation that Eigen uses, on ±4.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let z = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * z + 2.770_681_5e-8;
    p = p * z - 2.101_024e-6;
    p = p * z - 5.692_506_3e-5;
    p = p * z - 7.349_906e-4;
    p = p * z - 2.954_6e-3;
    p = p * z - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * z - 2.133_740_6e-4;
    q = q * z - 1.682_827e-3;
    q = q * z - 7.373_329_3e-3;
    q = q * z - 1.426_473_9e-2;
    x * p / q
}

/// x·Φ(x), the exact form of GELU (Hendrycks and Gimpel, 2016).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The derivative of [`gelu`]: Φ(x) + x·φ(x).
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    cdf + x * 0.398_942_3 * exp(-0.5 * x * x)
}

/// √(2/π)
const SLOPE: f32 = 0.797_884_6;

/// x·Φ(x) with Φ by a hyperbolic tangent (Hendrycks and Gimpel, 2016): 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(SLOPE * (x + 0.044_715 * x * x * x)))
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_grad(x: f32) -> f32 {
    let t = tanh(SLOPE * (x + 0.044_715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SLOPE * (1.0 + 0.134_145 * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(ours: fn(f32) -> f32, exact: fn(f64) -> f64, range: f32, relative: bool) -> f64 {
        let at = |i: i32| range * (i as f32) / 20_000.0;
        (-20_000..=20_000).fold(0.0, |worst: f64, i| {
            let (got, want) = (f64::from(ours(at(i))), exact(f64::from(at(i))));
            worst.max((got - want).abs() / if relative { want.abs().max(1e-30) } else { 1.0 })
        })
    }

    #[test]
    fn functions_agree_with_double_precision() {
        assert!(worst(exp, libm::exp, 87.0, true) < 2e-7);
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + libm::exp(-x)), 80.0, true) < 4e-7);
        assert!(worst(tanh, libm::tanh, 12.0, true) < 4e-7);
        let error = worst(erf, libm::erf, 6.0, false);
        assert!(error < 5e-7, "{error}");
        assert!(worst(gelu, |x| x * 0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)), 6.0, false) < 2e-6);
        fn inner(x: f64) -> f64 {
            (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)
        }
        assert!(worst(gelu_tanh, |x| 0.5 * x * (1.0 + libm::tanh(inner(x))), 6.0, false) < 2e-6);
        let slope = |x: f64| {
            let t = libm::tanh(inner(x));
            0.5 * (1.0 + t)
                + 0.5 * x * (1.0 - t * t) * (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x)
        };
        assert!(worst(gelu_tanh_grad, slope, 6.0, false) < 2e-6);
        let grad = |x: f64| {
            0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
                + x * libm::exp(-0.5 * x * x) / (2.0 * std::f64::consts::PI).sqrt()
        };
        assert!(worst(gelu_grad, grad, 6.0, false) < 2e-6);
    }

    #[test]
    fn not_a_number_stays_visible() {
        for f in [exp, sigmoid, tanh, erf, gelu, gelu_grad, gelu_tanh, gelu_tanh_grad] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0) > 1e38 && tanh(1000.0) == 1.0 && tanh(-0.0) == 0.0);
    }
}
