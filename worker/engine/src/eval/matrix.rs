//! Rows of numbers in f64, with their products with a vector: plain loops in a fixed order.

/// `rows` rows of `width` numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub width: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// Rows that are all as long as the first.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let (mut width, mut values) = (0, Vec::new());
        for row in rows {
            width = row.len();
            values.extend(row.iter().map(|v| f64::from(*v)));
        }
        Self { width, values }
    }

    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// Mean and deviation of each column; a deviation of 1 where a column is constant.
    pub fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.rows().len().max(1) as f64;
        let mut mean = vec![0.0; self.width];
        self.rows().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n));
        let mut var = vec![0.0; self.width];
        for row in self.rows() {
            var.iter_mut().zip(row).zip(&mean).for_each(|((s, v), m)| *s += (v - m) * (v - m) / n);
        }
        (mean, var.into_iter().map(|v| if v > 1e-24 { v.sqrt() } else { 1.0 }).collect())
    }

    /// Takes `mean` off every row and divides by `by`.
    pub fn scale(&mut self, mean: &[f64], by: &[f64]) {
        for row in self.values.chunks_exact_mut(self.width.max(1)) {
            row.iter_mut().zip(mean).zip(by).for_each(|((v, m), d)| *v = (*v - m) / d);
        }
    }

    /// `X v`
    pub fn times(&self, v: &[f64]) -> Vec<f64> {
        self.rows().map(|row| dot(row, v)).collect()
    }

    /// `Xᵀ u`
    pub fn times_t(&self, u: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.width];
        for (row, u) in self.rows().zip(u) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += u * v);
        }
        out
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `v` over its length, which is handed back; nothing changes where it is zero.
pub(super) fn normalise(v: &mut [f64]) -> f64 {
    let norm = dot(v, v).sqrt();
    if norm > 0.0 {
        v.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}
