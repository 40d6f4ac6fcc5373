//! Matrix products whose bits do not depend on the thread count, the host's cache sizes or how many rows are in the batch.
//!
//! The library picks its blocking of `k` from the host's L1 above 512, and takes other code paths for few outputs or a
//! single row. Blocks of at most 512 and padded rows rule both out.

const K_BLOCK: usize = 512;

/// A matrix inside a slice: element `(i, j)` lies at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix with `cols` columns.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose of a row-major matrix with `cols` columns.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: 1, col: cols }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `out[m, n] (+)= a[m, k] · b[k, n]`, row-major `out`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gemm(out: &mut [f32], a: View<'_>, b: View<'_>, (m, n, k): (usize, usize, usize), add: bool) {
    assert!(out.len() >= m * n && a.holds(m, k) && b.holds(k, n), "matrix does not fit its slice");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out[..m * n].fill(0.0);
        }
        return;
    }
    let mut start = 0;
    while start < k {
        let len = K_BLOCK.min(k - start);
        #[expect(unsafe_code, reason = "the library's interface is raw pointers")]
        // SAFETY: the assertion above bounds every element that the strides reach; `out` is borrowed exclusively and
        // cannot overlap `a` and `b`.
        unsafe {
            gemm::gemm(
                m,
                n,
                len,
                out.as_mut_ptr(),
                1,
                n as isize,
                add || start > 0,
                a.data.as_ptr().add(start * a.col),
                a.col as isize,
                a.row as isize,
                b.data.as_ptr().add(start * b.row),
                b.col as isize,
                b.row as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        start += len;
    }
}

/// `x[rows, k] · wᵀ` for `w[o, k]`: a row's bits do not depend on the other rows, nor on how many there are.
pub fn linear(x: &[f32], w: &[f32], (rows, o, k): (usize, usize, usize)) -> Vec<f32> {
    let padded = rows.max(2).max(256 / o.max(1) + 1);
    let weights = View::transposed(w, k);
    if padded == rows {
        let mut out = vec![0.0; rows * o];
        gemm(&mut out, View::rows(x, k), weights, (rows, o, k), false);
        return out;
    }
    let mut wide = x[..rows * k].to_vec();
    wide.resize(padded * k, 0.0);
    let mut out = vec![0.0; padded * o];
    gemm(&mut out, View::rows(&wide, k), weights, (padded, o, k), false);
    out.truncate(rows * o);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::rng::Philox;

    fn random(n: usize, site: u32) -> Vec<f32> {
        let mut s = Philox::new(5, "gemm").stream(0, site);
        (0..n).map(|_| s.normal()).collect()
    }

    #[test]
    fn agrees_with_the_naive_product_in_every_layout() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (2, 300, 1100), (65, 17, 513)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let mut out = vec![1.0; m * n];
            gemm(&mut out, View::rows(&a, k), View::rows(&b, n), (m, n, k), true);
            let mut bt = vec![0.0; n * k];
            (0..k).for_each(|i| (0..n).for_each(|j| bt[j * k + i] = b[i * n + j]));
            let mut other = vec![0.0; m * n];
            gemm(&mut other, View::rows(&a, k), View::transposed(&bt, k), (m, n, k), false);
            for i in 0..m {
                for j in 0..n {
                    let want: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    assert!((f64::from(out[i * n + j]) - want - 1.0).abs() < 1e-4 * (k as f64).sqrt());
                    assert!((f64::from(other[i * n + j]) - want).abs() < 1e-4 * (k as f64).sqrt());
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch() {
        for (o, k) in [(1, 64), (10, 512), (77, 1280), (256, 2000)] {
            let (x, w) = (random(70 * k, 3), random(o * k, 4));
            let all = linear(&x, &w, (70, o, k));
            for rows in [1, 2, 3, 17, 64, 65] {
                let some = linear(&x[k..], &w, (rows, o, k));
                assert_eq!(some, all[o..o * (rows + 1)], "o={o} k={k} rows={rows}");
            }
        }
    }
}
