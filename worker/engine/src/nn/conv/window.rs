//! A kernel that moves over images: what it covers at each output, and the products of that with weights.

use rayon::prelude::*;

use super::{Axis, Geometry, geometry::Place};
use crate::num::{
    fresh::Fresh,
    gemm::{Packed, multiply, rows_product},
};

/// Output pixels of one task, about; never part of the result.
const TASK: usize = 96;

/// Windows over images of fewer channels are copied before they are multiplied: the slice under one tap is so short that
/// looking it up, and beginning a sum for it, would take as long as the sum.
const FEW: usize = 65;

/// A kernel over images of one size. What it covers at an output is a row of numbers, by tap and channel.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub g: Geometry,
    /// Rows and columns of the kernel.
    pub kernel: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
}

impl Window {
    pub fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Numbers of a window.
    pub fn depth(&self) -> usize {
        self.taps() * self.channels
    }

    /// Whether each window is one pixel, in their order.
    pub fn is_pixel(&self) -> bool {
        let Geometry { y, x, .. } = self.g;
        self.taps() == 1 && y.stride == 1 && x.stride == 1 && y.before + x.before == 0
    }

    /// The window that gradients of outputs move through on their way back, its taps in reverse; `None` where outputs are
    /// apart, or a border is wider than the kernel.
    pub fn turned(&self, channels: usize) -> Option<Self> {
        let turn = |axis: Axis, k: usize| {
            let before = (axis.stride == 1).then(|| (k - 1).checked_sub(axis.before)).flatten()?;
            Some(Axis { size: axis.outputs, before, outputs: axis.size, stride: 1 })
        };
        let (y, x) = (turn(self.g.y, self.kernel.0)?, turn(self.g.x, self.kernel.1)?);
        Some(Self { g: Geometry { y, x, ..self.g }, channels, ..*self })
    }

    /// The numbers of an output's window from `first` on, as many as there is room for.
    pub fn read(&self, images: &[f32], at: Place, first: usize, mut out: &mut [f32]) {
        let (channels, width, g) = (self.channels, self.kernel.1, &self.g);
        let line = width * channels;
        // Where all taps of a row are inside, what they read lies side by side.
        let inside = g.x.input(at.x, 0).filter(|column| column + width <= g.x.size);
        let (mut ky, mut skip) = (first / line, first % line);
        while !out.is_empty() {
            let (own, rest) = out.split_at_mut((line - skip).min(out.len()));
            match (g.row(at, ky), inside) {
                (Some(row), Some(column)) => {
                    own.copy_from_slice(&images[(row + column) * channels + skip..][..own.len()]);
                }
                (Some(row), None) => {
                    let (mut kx, mut skip, mut own) = (skip / channels, skip % channels, own);
                    while !own.is_empty() {
                        let (part, rest) = own.split_at_mut((channels - skip).min(own.len()));
                        match g.x.input(at.x, kx) {
                            Some(x) => part.copy_from_slice(&images[(row + x) * channels + skip..][..part.len()]),
                            None => part.fill(0.0),
                        }
                        (kx, skip, own) = (kx + 1, 0, rest);
                    }
                }
                (None, _) => own.fill(0.0),
            }
            (ky, skip, out) = (ky + 1, 0, rest);
        }
    }

    /// Each output's window times `weights`, plus a bias.
    pub fn times(&self, images: &[f32], weights: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
        let (g, pixels, n, depth) = (&self.g, self.g.outputs(), weights.columns(), self.depth());
        if self.is_pixel() && bias.is_none() {
            return rows_product(images, weights, n);
        }
        if pixels == 0 {
            return Vec::new();
        }
        let zeros = vec![0.0; self.channels];
        let mut out = Fresh::new(pixels * n);
        let task = pixels.div_ceil(pixels.div_ceil(TASK).next_multiple_of(rayon::current_num_threads())).max(1);
        out.parts(task * n).enumerate().for_each_init(Vec::new, |windows: &mut Vec<f32>, (i, out)| {
            let (from, count) = (i * task, out.len() / n);
            let at: Vec<usize> = (0..count).map(|m| m * n).collect();
            if self.channels < FEW && self.taps() > 1 {
                windows.resize(count * depth, 0.0);
                let places = g.places(from, count).zip(windows.chunks_exact_mut(depth));
                places.for_each(|(at, window)| self.read(images, at, 0, window));
                let rows: Vec<&[f32]> = windows.chunks_exact(depth).collect();
                multiply(out, &at, &rows, depth, weights, false);
            } else {
                let mut rows = Vec::with_capacity(self.taps() * count);
                let places: Vec<Place> = g.places(from, count).collect();
                for tap in 0..self.taps() {
                    let tap = (tap / self.kernel.1, tap % self.kernel.1);
                    rows.extend(places.iter().map(|at| match g.read(*at, tap) {
                        Some(p) => &images[p * self.channels..(p + 1) * self.channels],
                        None => &zeros[..],
                    }));
                }
                multiply(out, &at, &rows, self.channels, weights, false);
            }
            if let Some(bias) = bias {
                out.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b));
            }
        });
        out.done()
    }
}
