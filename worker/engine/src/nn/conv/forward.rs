//! The outputs.

use rayon::prelude::*;

use super::{Conv2d, Geometry, geometry::Place};
use crate::num::{
    fresh::Fresh,
    gemm::{Packed, View, multiply},
};

/// Output pixels of one task, about; never part of the result.
const TASK: usize = 96;

impl Conv2d {
    /// Weights as rows `(tap, input channel)` by output channels.
    fn forward_weights(&self, w: &[f32]) -> Packed {
        let (cin, taps) = (self.spec.cin, self.taps());
        let mut packed = Packed::new(taps * cin, self.spec.cout);
        let parts: Vec<_> =
            (0..taps).map(|t| (t * cin, View { data: &w[t..], row: taps, col: cin * taps }, cin)).collect();
        packed.fill(&parts);
        packed
    }

    /// Gathers the patches of output pixels `from..`, `(tap, channel)` within a row.
    pub(super) fn gather(&self, g: &Geometry, x: &[f32], from: usize, out: &mut [f32]) {
        let (cin, width) = (self.spec.cin, self.spec.kernel.1);
        let patches = out.chunks_exact_mut(self.taps() * cin);
        for (at, patch) in g.places(from, patches.len()).zip(patches) {
            // Where all taps of a row are inside, what they read lies side by side.
            let inside = g.x.input(at.x, 0).filter(|first| first + width <= g.x.size);
            for (ky, line) in patch.chunks_exact_mut(width * cin).enumerate() {
                match (g.row(at, ky), inside) {
                    (Some(row), Some(first)) => line.copy_from_slice(&x[(row + first) * cin..][..width * cin]),
                    (Some(row), None) => {
                        for (kx, part) in line.chunks_exact_mut(cin).enumerate() {
                            match g.x.input(at.x, kx) {
                                Some(column) => part.copy_from_slice(&x[(row + column) * cin..][..cin]),
                                None => part.fill(0.0),
                            }
                        }
                    }
                    (None, _) => line.fill(0.0),
                }
            }
        }
    }

    pub(super) fn compute(&self, g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (cin, cout, pixels) = (self.spec.cin, self.spec.cout, g.outputs());
        let weights = self.forward_weights(w);
        let zeros = vec![0.0; cin];
        let mut out = Fresh::new(pixels * cout);
        let task = pixels.div_ceil(pixels.div_ceil(TASK).next_multiple_of(rayon::current_num_threads())).max(1);
        out.parts(task * cout).enumerate().for_each_init(Vec::new, |patches: &mut Vec<f32>, (i, out)| {
            let (from, count) = (i * task, out.len() / cout);
            let at: Vec<usize> = (0..count).map(|m| m * cout).collect();
            if self.gathers() {
                let depth = self.taps() * cin;
                patches.resize(count * depth, 0.0);
                self.gather(g, x, from, patches);
                let rows: Vec<&[f32]> = patches.chunks_exact(depth).collect();
                multiply(out, &at, &rows, depth, &weights, false);
            } else {
                let mut rows = Vec::with_capacity(self.taps() * count);
                let places: Vec<Place> = g.places(from, count).collect();
                for tap in self.tap_places() {
                    rows.extend(places.iter().map(|at| match g.read(*at, tap) {
                        Some(p) => &x[p * cin..(p + 1) * cin],
                        None => &zeros[..],
                    }));
                }
                multiply(out, &at, &rows, cin, &weights, false);
            }
            if let Some(bias) = bias {
                out.chunks_exact_mut(cout).for_each(|row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b));
            }
        });
        out.done()
    }
}
