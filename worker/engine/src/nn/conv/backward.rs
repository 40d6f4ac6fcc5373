//! The two gradients.

use rayon::prelude::*;

use super::{Axis, Conv2d, Geometry, Pass, Way, geometry::Place};
use crate::num::{
    fresh::{Fresh, zeros},
    gemm::{Packed, STRIPE, View, add_outer, multiply},
};

/// Input pixels of one task of the input's gradient, about; never part of the result.
const TASK: usize = 96;

/// Input pixels whose coordinates leave the same remainders by the stride: the same taps reach them.
struct Phase {
    /// First row and column.
    offset: (usize, usize),
    taps: Vec<(usize, usize)>,
    weights: Packed,
}

fn reaching(axis: &Axis, offset: usize, k: usize) -> Vec<usize> {
    (0..k).filter(|tap| (offset + axis.before + axis.stride * k - tap).is_multiple_of(axis.stride)).collect()
}

impl Conv2d {
    fn phases(&self, g: &Geometry, w: &[f32]) -> Vec<Phase> {
        let (spec, all) = (&self.spec, self.taps());
        let mut phases = Vec::new();
        for py in 0..spec.stride.min(g.y.size) {
            for px in 0..spec.stride.min(g.x.size) {
                let rows = reaching(&g.y, py, spec.kernel.0);
                let columns = reaching(&g.x, px, spec.kernel.1);
                let taps: Vec<_> = rows.iter().flat_map(|y| columns.iter().map(|x| (*y, *x))).collect();
                let mut weights = Packed::new(taps.len() * spec.cout, spec.cin);
                let parts: Vec<_> = taps
                    .iter()
                    .enumerate()
                    .map(|(i, (y, x))| {
                        let first = y * spec.kernel.1 + x;
                        (i * spec.cout, View { data: &w[first..], row: spec.cin * all, col: all }, spec.cout)
                    })
                    .collect();
                weights.fill(&parts);
                if !taps.is_empty() {
                    phases.push(Phase { offset: (py, px), taps, weights });
                }
            }
        }
        phases
    }

    /// Weights as rows `(tap in reverse, output channel)` by input channels.
    fn turned_weights(&self, w: &[f32]) -> Packed {
        let (cin, cout, taps) = (self.spec.cin, self.spec.cout, self.taps());
        let mut packed = Packed::new(taps * cout, cin);
        let view = |t: usize| View { data: &w[taps - 1 - t..], row: cin * taps, col: taps };
        packed.fill(&(0..taps).map(|t| (t * cout, view(t), cout)).collect::<Vec<_>>());
        packed
    }

    /// `dx`, each pixel the sum over the taps that read it.
    pub(super) fn input_gradient(&self, g: &Geometry, dy: &[f32], pass: &Pass<'_>) -> Vec<f32> {
        match self.window(*g).turned(self.spec.cout) {
            Some(turned) => {
                let weights = pass.packed(self.w, Way::Back, |w| self.turned_weights(w));
                turned.times(dy, &weights, None)
            }
            None => self.phased_gradient(g, dy, &pass.weight(self.w)),
        }
    }

    /// The same by phases, where outputs are apart.
    fn phased_gradient(&self, g: &Geometry, dy: &[f32], w: &[f32]) -> Vec<f32> {
        let (cin, cout, stride) = (self.spec.cin, self.spec.cout, self.spec.stride);
        let phases = self.phases(g, w);
        let zeros = vec![0.0; cout];
        let (height, width) = (g.y.size, g.x.size);
        let mut dx = Fresh::new(g.n * height * width * cin);
        // Whole rows of phases, so that a task's rows start at remainder zero.
        let rows = (TASK * stride * stride).div_ceil(width).next_multiple_of(stride);
        let line = width * cin;
        let tasks = (0..g.n).flat_map(|image| (0..height).step_by(rows).map(move |y| (image, y)));
        let parts = dx.cut(tasks.clone().map(|(_, y)| rows.min(height - y) * line));
        parts.into_par_iter().zip(tasks.collect::<Vec<_>>()).for_each(|(dx, (image, y0))| {
            let dx = dx.zeros();
            let own = dx.len() / line;
            for phase in &phases {
                let (py, px) = phase.offset;
                let pixels = (py..own).step_by(stride).flat_map(|y| (px..width).step_by(stride).map(move |x| (y, x)));
                let at: Vec<usize> = pixels.clone().map(|(y, x)| y * line + x * cin).collect();
                if at.is_empty() {
                    continue;
                }
                let mut sources = Vec::with_capacity(phase.taps.len() * at.len());
                for (ky, kx) in &phase.taps {
                    sources.extend(pixels.clone().map(|(y, x)| match (g.y.output(y0 + y, *ky), g.x.output(x, *kx)) {
                        (Some(oy), Some(ox)) => {
                            let p = (image * g.y.outputs + oy) * g.x.outputs + ox;
                            &dy[p * cout..(p + 1) * cout]
                        }
                        _ => &zeros[..],
                    }));
                }
                multiply(dx, &at, &sources, cout, &phase.weights, false);
            }
        });
        dx.done()
    }

    /// `dw += Σ over output pixels of dy · patch`, stripe by stripe.
    pub(super) fn weight_gradient(&self, g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let (cin, cout, taps) = (self.spec.cin, self.spec.cout, self.taps());
        let (window, pixels, depth) = (self.window(*g), g.outputs(), cin * taps);
        // Sums are made as `[cout, tap, cin]`; with one tap, or one channel, that is how the weights lie.
        let direct = taps == 1 || cin == 1;
        let mut sums = if direct { Vec::new() } else { zeros(cout * depth) };
        for from in (0..pixels).step_by(STRIPE) {
            let count = STRIPE.min(pixels - from);
            let left = View::transposed(&dy[from * cout..(from + count) * cout], cout);
            let right = if window.is_pixel() {
                Packed::of(View::rows(&x[from * cin..(from + count) * cin], cin), count, cin)
            } else {
                let places: Vec<Place> = g.places(from, count).collect();
                let mut right = Packed::new(count, depth);
                right.fill_with(|row, first, out| window.read(x, places[row], first, out));
                right
            };
            let target = if direct { &mut *dw } else { &mut sums[..] };
            add_outer(target, left, (cout, count), &right);
        }
        if !direct {
            dw.par_chunks_exact_mut(depth).zip(sums.par_chunks_exact(depth)).for_each(|(dw, sums)| {
                for (t, sums) in sums.chunks_exact(cin).enumerate() {
                    dw[t..].iter_mut().step_by(taps).zip(sums).for_each(|(d, s)| *d += s);
                }
            });
        }
    }
}
