//! What a few runs say of the mean: Student's t.

/// Quantiles of Student's t at 97.5 % for 1 to 10 degrees of freedom: those that the expansion below misses.
const QUANTILES: [f64; 10] =
    [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];

/// The same of the normal distribution.
const NORMAL: f64 = 1.959_964;

/// The quantile of Student's t at 97.5 %.
fn quantile(freedom: usize) -> f64 {
    if let Some(known) = freedom.checked_sub(1).and_then(|i| QUANTILES.get(i)) {
        return *known;
    }
    // Cornish and Fisher's expansion about the normal quantile (Abramowitz and Stegun, 26.7.5).
    let (z, n) = (NORMAL, freedom as f64);
    let (z2, z3) = (z * z, z * z * z);
    let first = (z3 + z) / 4.0;
    let second = z * (5.0 * z2 * z2 + 16.0 * z2 + 3.0) / 96.0;
    let third = z * (3.0 * z2 * z2 * z2 + 19.0 * z2 * z2 + 17.0 * z2 - 15.0) / 384.0;
    z + first / n + second / (n * n) + third / (n * n * n)
}

/// A mean, and half of its 95 % interval where there are two values or more.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half of the interval.
    pub half: Option<f64>,
    /// Values that it is of.
    pub runs: usize,
}

impl Mean {
    /// Of some values; nothing of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let half = (values.len() > 1).then(|| {
            let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
            quantile(values.len() - 1) * (squares / (n - 1.0)).sqrt() / n.sqrt()
        });
        (!values.is_empty()).then_some(Self { mean, half, runs: values.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, want) in
            [(1, 12.706), (4, 2.776), (10, 2.228), (11, 2.201), (15, 2.131), (30, 2.042), (63, 1.998)]
        {
            assert!((quantile(freedom) - want).abs() < 6e-4, "{freedom}: {}", quantile(freedom));
        }
    }

    #[test]
    fn an_interval_is_that_of_the_textbook() {
        // R: t.test(c(1, 2, 3, 4, 5))$conf.int is 1.036757 to 4.963243.
        let five = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((five.mean - 3.0).abs() < 1e-12 && (five.half.unwrap() - 1.963_243).abs() < 1e-5, "{five:?}");
        assert_eq!(Mean::of(&[0.5]), Some(Mean { mean: 0.5, half: None, runs: 1 }));
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[0.5, 0.5]).unwrap().half, Some(0.0));
    }
}
