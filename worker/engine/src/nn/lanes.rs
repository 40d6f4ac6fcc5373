//! Sums and products of one row in sixteen chains, folded in a fixed order: vector code with the same bits at every width.

const LANES: usize = 16;

/// Σ f(i) for `i` below `len`.
#[inline(always)]
fn fold(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + i);
        }
    }
    for (i, lane) in lanes.iter_mut().take(len % LANES).enumerate() {
        *lane += f(whole + i);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ x
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    fold(x.len(), |i| x[i])
}

/// Σ a·b
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    fold(a.len(), |i| a[i] * b[i])
}

/// Σ (x − m)²
#[inline(always)]
pub(super) fn squares(x: &[f32], m: f32) -> f32 {
    fold(x.len(), |i| (x[i] - m) * (x[i] - m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_add_up_to_the_sum_in_double_precision() {
        for len in [0, 1, 15, 16, 17, 100, 384] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let exact = |f: &dyn Fn(f64) -> f64| x.iter().map(|v| f(f64::from(*v))).sum::<f64>();
            assert!((f64::from(sum(&x)) - exact(&|v| v)).abs() < 1e-3);
            assert!((f64::from(dot(&x, &x)) - exact(&|v| v * v)).abs() < 1e-4 * (1.0 + exact(&|v| v * v)));
            let moved = exact(&|v| (v - 0.5) * (v - 0.5));
            assert!((f64::from(squares(&x, 0.5)) - moved).abs() < 1e-4 * (1.0 + moved));
        }
    }
}
