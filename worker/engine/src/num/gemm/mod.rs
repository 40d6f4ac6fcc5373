//! Matrix products whose bits do not depend on threads, cache sizes, vector width or what else is in the batch.
//!
//! Every element of a product is, for each block of at most [`DEPTH`] terms in order, one chain of fused multiply-adds
//! from zero; the blocks' sums are added in order. Rows, columns and tasks can be cut anywhere.

mod kernel;
mod panels;
mod scratch;

use rayon::prelude::*;

pub use kernel::ROWS;
use kernel::{Left, Slices, Target, Tiles, strip};
pub use panels::Packed;
use panels::Panel;
use scratch::Scratch;

use super::fresh::Fresh;

/// Terms that are summed before they are added to the output; a constant, since it is part of the result.
pub const DEPTH: usize = 128;

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

/// `c[at[m]..] (+)= Σₜ a[t·M + m] · b[t·depth..]` for `M` rows: each row of the output is the sum over the taps `t` of one
/// slice of `depth` numbers times its part of `b`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn multiply(c: &mut [f32], at: &[usize], a: &[&[f32]], depth: usize, b: &Packed, add: bool) {
    let m = at.len();
    assert!(depth > 0 && a.len() * depth == m * b.k, "taps do not fit the packed matrix");
    if m == 0 {
        return;
    }
    let mut c = Target::new(c, at, b.columns());
    for panel in &b.panels {
        for (t, taps) in a.chunks_exact(m).enumerate() {
            panel_times(&Slices::new(taps, depth), b, panel, t * depth, &mut c, add || t > 0);
        }
    }
}

/// One panel's columns of a product with the rows of `b` from `top` on, block by block.
fn panel_times<L: Left>(left: &L, b: &Packed, panel: &Panel, top: usize, c: &mut Target<'_>, add: bool) {
    for from in (0..left.depth()).step_by(DEPTH) {
        let len = DEPTH.min(left.depth() - from);
        strip(left, b.part(panel, top + from, len, from), c, add || from > 0);
    }
}

/// The left side of a product over long columns: tiles of eight columns of a row-major matrix.
struct Columns {
    data: Scratch,
    k: usize,
    m: usize,
}

/// Rows that are packed at a time: what is read of them stays in the nearest cache until all tiles have theirs.
const LINES: usize = 64;

impl Columns {
    /// Takes `k` rows of `m` numbers.
    ///
    /// # Panics
    /// If the view is too short.
    fn pack(a: View<'_>, m: usize, k: usize) -> Self {
        assert!(a.holds(m, k), "matrix does not fit its slice");
        let mut data = Scratch::new(m.div_ceil(ROWS) * ROWS * k);
        for from in (0..k).step_by(LINES) {
            let lines = from..(from + LINES).min(k);
            for (tile, out) in data.chunks_exact_mut(ROWS * k).enumerate() {
                let (first, count) = (tile * ROWS, ROWS.min(m - tile * ROWS));
                for p in lines.clone() {
                    let (line, from) = (&mut out[p * ROWS..(p + 1) * ROWS], first * a.row + p * a.col);
                    if a.row == 1 && count == ROWS {
                        // A copy of known length is one move.
                        line.copy_from_slice(&a.data[from..from + ROWS]);
                    } else {
                        line[..count].iter_mut().enumerate().for_each(|(i, v)| *v = a.data[from + i * a.row]);
                    }
                }
            }
        }
        Self { data, k, m }
    }

    /// `c[m, ..] (+)= aᵀ·b`, rows of `c` `ldc` apart. Depth comes first: what is read of both sides and of `c` meanwhile
    /// stays in the second cache.
    fn product(&self, c: &mut [f32], ldc: usize, b: &Packed, add: bool) {
        assert!(self.k <= b.k, "the sides of a product are of one depth");
        let at: Vec<usize> = (0..self.m).map(|i| i * ldc).collect();
        let (left, mut c) = (Tiles::new(&self.data, self.m, self.k), Target::new(c, &at, b.columns()));
        for from in (0..self.k).step_by(DEPTH) {
            let len = DEPTH.min(self.k - from);
            b.panels.iter().for_each(|panel| strip(&left, b.part(panel, from, len, from), &mut c, add || from > 0));
        }
    }
}

/// Rows of the output of one task of [`add_outer`], about: as often is what is packed of the right side used from the
/// nearest cache.
const TALL: usize = 64;

/// `c[m, n] += a·b` for `a[m, k]`, in parallel over rows of `c`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn add_outer(c: &mut [f32], a: View<'_>, (m, k): (usize, usize), b: &Packed) {
    let (n, threads) = (b.columns(), rayon::current_num_threads());
    let tasks = threads * (m / (threads * TALL)).max(1);
    let block = m.div_ceil(tasks).next_multiple_of(ROWS).max(ROWS);
    c[..m * n].par_chunks_mut(block * n).enumerate().for_each(|(i, c)| {
        let own = View { data: &a.data[i * block * a.row..], ..a };
        Columns::pack(own, c.len() / n, k).product(c, n, b, true);
    });
}

/// `out[m, n] (+)= a[m, k] · b[k, n]`, rows of `out` `ldc` apart; on this thread alone, which is one of many that do the
/// same: one that waited for others here would take up another of their products, and its memory, in between.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gemm(out: &mut [f32], ldc: usize, a: View<'_>, b: View<'_>, (m, n, k): (usize, usize, usize), add: bool) {
    assert!(m == 0 || n == 0 || (m - 1) * ldc + n <= out.len(), "matrix does not fit its slice");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            (0..m).for_each(|i| out[i * ldc..i * ldc + n].fill(0.0));
        }
        return;
    }
    let packed = Packed::alone(b, k, n);
    if a.col == 1 {
        assert!(a.holds(m, k), "matrix does not fit its slice");
        let rows: Vec<&[f32]> = (0..m).map(|i| &a.data[i * a.row..i * a.row + k]).collect();
        let at: Vec<usize> = (0..m).map(|i| i * ldc).collect();
        multiply(out, &at, &rows, k, &packed, add);
    } else {
        Columns::pack(a, m, k).product(out, ldc, &packed, add);
    }
}

/// Rows of one task of a product that is split over threads: as often is a panel used from the nearest cache. Fewer where
/// not every thread would have some.
fn task(rows: usize) -> usize {
    const MOST: usize = 128;
    rows.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(ROWS).clamp(ROWS, MOST)
}

/// `out[rows, n] (+)= x[rows, k] · b`, in parallel over blocks of rows: a row's bits do not depend on the other rows, nor
/// on how many there are.
pub fn rows_times(out: &mut [f32], x: &[f32], b: &Packed, n: usize, add: bool) {
    let task = task(x.len() / b.k);
    let tasks = out.par_chunks_mut(task * n).zip(x.par_chunks(task * b.k));
    tasks.for_each(|(out, x)| block_times(out, x, b, n, add));
}

/// The same into new memory.
pub fn rows_product(x: &[f32], b: &Packed, n: usize) -> Vec<f32> {
    let (rows, mut out) = (x.len() / b.k, Fresh::new(x.len() / b.k * n));
    let task = task(rows);
    out.parts(task * n).zip(x.par_chunks(task * b.k)).for_each(|(out, x)| block_times(out, x, b, n, false));
    out.done()
}

fn block_times(out: &mut [f32], x: &[f32], b: &Packed, n: usize, add: bool) {
    let rows: Vec<&[f32]> = x.chunks_exact(b.k).collect();
    let at: Vec<usize> = (0..rows.len()).map(|i| i * n).collect();
    multiply(out, &at, &rows, b.k, b, add);
}

/// Rows that are packed at a time for the gradient of weights: a multiple of [`DEPTH`], so that it is no part of the result.
pub const STRIPE: usize = 8 * DEPTH;

/// `dw[o, k] += dyᵀ·x` for `dy[rows, o]` and `x[rows, k]`, in parallel over rows of `dw`.
pub fn outer(dw: &mut [f32], dy: &[f32], x: &[f32], (rows, o, k): (usize, usize, usize)) {
    for (dy, x) in dy[..rows * o].chunks(STRIPE * o).zip(x[..rows * k].chunks(STRIPE * k)) {
        let rows = dy.len() / o;
        add_outer(dw, View::transposed(dy, o), (o, rows), &Packed::of(View::rows(x, k), rows, k));
    }
}

/// `x[rows, k] · wᵀ` for `w[o, k]`: a row's bits do not depend on the other rows, nor on how many there are.
/// Layers pack their weights by themselves; tests compare with this.
#[cfg(test)]
pub fn linear(x: &[f32], w: &[f32], (rows, o, k): (usize, usize, usize)) -> Vec<f32> {
    rows_product(&x[..rows * k], &Packed::of(View::transposed(w, k), k, o), o)
}

#[cfg(test)]
mod tests;
