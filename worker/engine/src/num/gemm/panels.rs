//! A right-hand matrix laid out for the innermost loop: panels of one to three vectors, row after row.

use rayon::prelude::*;

use super::{
    View,
    kernel::{Part, VECTORS, lanes},
    scratch::Scratch,
};

/// Columns `[first, first + cols)` of the matrix, `vectors` wide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub first: usize,
    pub cols: usize,
    pub vectors: usize,
    /// Where it starts in the data.
    pub start: usize,
}

/// A packed matrix of `k` rows.
pub struct Packed {
    pub(super) panels: Vec<Panel>,
    pub(super) data: Scratch,
    pub(super) k: usize,
}

/// Rows that are copied at a time when columns are far apart, so that what is written stays in the nearest cache.
const BLOCK: usize = 64;

/// Elements of a matrix that several threads pack.
const PARALLEL: usize = 1 << 14;

impl Packed {
    /// Space for `k` rows of `n` columns, which the caller fills. What is beside them is cleared with them: no sum of it is
    /// stored, but odd numbers could make it slow.
    pub fn new(k: usize, n: usize) -> Self {
        let lanes = lanes();
        let vectors = n.div_ceil(lanes);
        let count = vectors.div_ceil(VECTORS).max(1);
        let (mut panels, mut first, mut start) = (Vec::with_capacity(count), 0, 0);
        for i in 0..count {
            // As even as possible: 64 columns are two panels of 32, not 48 and 16.
            let wide = vectors * (i + 1) / count - vectors * i / count;
            let cols = (wide * lanes).min(n - first);
            if cols > 0 {
                panels.push(Panel { first, cols, vectors: wide, start });
            }
            first += cols;
            start += k * wide * lanes;
        }
        Self { panels, data: Scratch::new(start), k }
    }

    /// Packs a whole matrix.
    pub fn of(b: View<'_>, k: usize, n: usize) -> Self {
        let mut packed = Self::new(k, n);
        packed.fill(&[(0, b, k)]);
        packed
    }

    /// The same on this thread.
    pub(super) fn alone(b: View<'_>, k: usize, n: usize) -> Self {
        let mut packed = Self::new(k, n);
        packed.fill_by(&[(0, b, k)], false);
        packed
    }

    /// Packs matrices on top of each other: from row `.0` on `.2` rows of the view `.1`. In parallel over panels.
    ///
    /// # Panics
    /// If a view is too short.
    pub fn fill(&mut self, parts: &[(usize, View<'_>, usize)]) {
        // A small matrix is packed sooner than it is handed to another thread.
        self.fill_by(parts, self.k * self.columns() >= PARALLEL);
    }

    fn fill_by(&mut self, parts: &[(usize, View<'_>, usize)], parallel: bool) {
        let (k, n, lanes) = (self.k, self.columns(), lanes());
        for (at, view, rows) in parts {
            assert!(at + rows <= k && view.holds(*rows, n), "matrix does not fit its slice");
        }
        self.by_panel(parallel, |panel, out| {
            let width = panel.vectors * lanes;
            for (at, view, rows) in parts {
                let out = &mut out[at * width..(at + rows) * width];
                if view.col == 1 {
                    for (r, line) in out.chunks_exact_mut(width).enumerate() {
                        let from = r * view.row + panel.first;
                        line[..panel.cols].copy_from_slice(&view.data[from..from + panel.cols]);
                        line[panel.cols..].fill(0.0);
                    }
                    continue;
                }
                if panel.cols < width {
                    out.fill(0.0);
                }
                for (block, out) in out.chunks_mut(BLOCK * width).enumerate() {
                    for c in 0..panel.cols {
                        let from = &view.data[(panel.first + c) * view.col + block * BLOCK * view.row..];
                        for (line, v) in out.chunks_exact_mut(width).zip(from.iter().step_by(view.row)) {
                            line[c] = *v;
                        }
                    }
                }
            }
        });
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.panels.last().map_or(0, |p| p.first + p.cols)
    }

    /// Rows `[top, top + len)` of a panel, for the numbers from `from` on of each row on the left.
    pub(super) fn part(&self, panel: &Panel, top: usize, len: usize, from: usize) -> Part<'_> {
        let Panel { first, cols, vectors, start } = *panel;
        let width = vectors * lanes();
        Part { data: &self.data[start + top * width..start + (top + len) * width], vectors, first, cols, len, from }
    }

    /// Packs rows that somebody writes: `write(r, first, out)` puts the numbers of row `r` from column `first` on into `out`.
    /// In parallel over panels.
    pub fn fill_with(&mut self, write: impl Fn(usize, usize, &mut [f32]) + Sync) {
        self.by_panel(self.k * self.columns() >= PARALLEL, |panel, out| {
            for (r, line) in out.chunks_exact_mut(panel.vectors * lanes()).enumerate() {
                let (own, beside) = line.split_at_mut(panel.cols);
                write(r, panel.first, own);
                beside.fill(0.0);
            }
        });
    }

    /// Hands each panel and its memory to `work`.
    fn by_panel(&mut self, parallel: bool, work: impl Fn(&Panel, &mut [f32]) + Sync) {
        let (k, lanes) = (self.k, lanes());
        let mut rest = &mut self.data[..];
        let mut tasks = Vec::with_capacity(self.panels.len());
        for panel in &self.panels {
            let (own, after) = rest.split_at_mut(k * panel.vectors * lanes);
            tasks.push((panel, own));
            rest = after;
        }
        if parallel {
            tasks.into_par_iter().for_each(|(panel, own)| work(panel, own));
        } else {
            tasks.into_iter().for_each(|(panel, own)| work(panel, own));
        }
    }
}
