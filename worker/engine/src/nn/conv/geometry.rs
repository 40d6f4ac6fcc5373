//! Which input pixel each tap of each output reads.

use super::ConvSpec;
use crate::{Error, Result};

/// How borders are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The same number of zeros on each side: PyTorch's.
    Symmetric(usize),
    /// As few zeros as keep `ceil(size / stride)` outputs, the odd one below and right: TensorFlow's "SAME".
    Same,
}

impl Padding {
    /// Zeros before the first element, and the number of outputs.
    pub fn plan(self, size: usize, k: usize, stride: usize) -> (usize, usize) {
        match self {
            Self::Symmetric(p) => (p, (size + 2 * p).saturating_sub(k) / stride + usize::from(size + 2 * p >= k)),
            Self::Same => {
                let out = size.div_ceil(stride);
                ((out.saturating_sub(1) * stride + k).saturating_sub(size) / 2, out)
            }
        }
    }
}

/// One of the two directions.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Inputs.
    pub size: usize,
    /// Zeros before the first input.
    pub before: usize,
    /// Outputs.
    pub outputs: usize,
    /// Distance between outputs, in inputs.
    pub stride: usize,
}

impl Axis {
    /// Resolves a direction.
    pub fn new(size: usize, k: usize, stride: usize, pad: Padding) -> Self {
        let (before, outputs) = pad.plan(size, k, stride);
        Self { size, before, outputs, stride }
    }

    /// The input that tap `tap` of output `o` reads; `None` in the border.
    #[inline]
    pub fn input(&self, o: usize, tap: usize) -> Option<usize> {
        let at = (o * self.stride + tap).wrapping_sub(self.before);
        (at < self.size).then_some(at)
    }

    /// The output whose tap `tap` reads input `i`, if there is one.
    #[inline]
    pub fn output(&self, i: usize, tap: usize) -> Option<usize> {
        let at = (i + self.before).checked_sub(tap)?;
        if self.stride == 1 {
            // The usual one, and a division takes as long as the rest together.
            return (at < self.outputs).then_some(at);
        }
        (at.is_multiple_of(self.stride) && at / self.stride < self.outputs).then_some(at / self.stride)
    }
}

/// Where an output pixel lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its image.
    pub image: usize,
    /// Its row.
    pub y: usize,
    /// Its column.
    pub x: usize,
}

/// A convolution on images of one size.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Images.
    pub n: usize,
    /// Vertical.
    pub y: Axis,
    /// Horizontal.
    pub x: Axis,
}

impl Geometry {
    /// Checks and resolves `[n, h, w, c]`.
    pub fn new(spec: &ConvSpec, shape: &[usize]) -> Result<Self> {
        let &[n, h, w, c] = shape else {
            return Err(Error::Internal(format!("a convolution was given {shape:?} instead of images")));
        };
        if c != spec.cin {
            return Err(Error::Internal(format!("convolution of {} channels was given {c}", spec.cin)));
        }
        let y = Axis::new(h, spec.kernel.0, spec.stride, spec.pad.0);
        let x = Axis::new(w, spec.kernel.1, spec.stride, spec.pad.1);
        if y.outputs == 0 || x.outputs == 0 {
            return Err(Error::user(
                format!("an image of {h}x{w} is too small for this network"),
                "raise `model.input`",
            ));
        }
        Ok(Self { n, y, x })
    }

    /// Output pixels of all images.
    pub fn outputs(&self) -> usize {
        self.n * self.y.outputs * self.x.outputs
    }

    /// Where `count` output pixels lie, from the one with number `from` over all images on.
    pub fn places(&self, from: usize, count: usize) -> impl Iterator<Item = Place> {
        let Self { y: Axis { outputs: rows, .. }, x: Axis { outputs: columns, .. }, .. } = *self;
        let row = from / columns;
        let first = Place { image: row / rows, y: row % rows, x: from % columns };
        let next = move |Place { image, y, x }: &Place| {
            Some(match (y + 1 < rows, x + 1 < columns) {
                (_, true) => Place { image: *image, y: *y, x: x + 1 },
                (true, false) => Place { image: *image, y: y + 1, x: 0 },
                (false, false) => Place { image: image + 1, y: 0, x: 0 },
            })
        };
        std::iter::successors(Some(first), next).take(count)
    }

    /// The input pixel that tap `(ky, kx)` of an output pixel reads, counted over all images.
    #[inline]
    pub fn read(&self, at: Place, (ky, kx): (usize, usize)) -> Option<usize> {
        Some(self.row(at, ky)? + self.x.input(at.x, kx)?)
    }

    /// The first input pixel of the row that taps `(ky, ..)` of an output pixel read.
    #[inline]
    pub fn row(&self, at: Place, ky: usize) -> Option<usize> {
        Some((at.image * self.y.size + self.y.input(at.y, ky)?) * self.x.size)
    }
}
