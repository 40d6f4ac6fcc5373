//! Dense 2-d convolution: a product per sample over unfolded patches; 1x1 with stride 1 needs no unfolding.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Gradients, Layer, ParamId, Pass, Tape, dims4, host, tensor};
use crate::{
    Error, Result,
    num::gemm::{View, gemm},
};

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
                (((out - 1) * stride + k).saturating_sub(size) / 2, out)
            }
        }
    }
}

/// Convolution, weights `[cout, cin, k, k]`, no bias.
#[derive(Debug)]
pub struct Conv2d {
    pub(super) w: ParamId,
    pub(super) cin: usize,
    pub(super) cout: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: Padding,
}

struct Plan {
    h: usize,
    w: usize,
    top: usize,
    left: usize,
    oh: usize,
    ow: usize,
}

/// Rows of one task of the weight gradient; a constant of the op, so threads never change the sum.
const ROWS: usize = 64;

impl Conv2d {
    fn plan(&self, h: usize, w: usize) -> Result<Plan> {
        let (top, oh) = self.pad.plan(h, self.k, self.stride);
        let (left, ow) = self.pad.plan(w, self.k, self.stride);
        if oh == 0 || ow == 0 {
            return Err(Error::user(
                format!("an image of {h}x{w} is too small for this network"),
                "raise `model.input`",
            ));
        }
        Ok(Plan { h, w, top, left, oh, ow })
    }

    fn pointwise(&self) -> bool {
        self.k == 1 && self.stride == 1
    }

    fn unfold(&self, x: &[f32], p: &Plan, out: &mut [f32]) {
        let mut rows = out.chunks_exact_mut(p.oh * p.ow);
        for c in 0..self.cin {
            for ky in 0..self.k {
                for kx in 0..self.k {
                    let row = rows.next().expect("one row per tap");
                    for oy in 0..p.oh {
                        let line = &mut row[oy * p.ow..(oy + 1) * p.ow];
                        let y = (oy * self.stride + ky).wrapping_sub(p.top);
                        if y >= p.h {
                            line.fill(0.0);
                            continue;
                        }
                        let src = &x[(c * p.h + y) * p.w..(c * p.h + y + 1) * p.w];
                        for (ox, v) in line.iter_mut().enumerate() {
                            let at = (ox * self.stride + kx).wrapping_sub(p.left);
                            *v = if at < p.w { src[at] } else { 0.0 };
                        }
                    }
                }
            }
        }
    }

    fn fold(&self, cols: &[f32], p: &Plan, dx: &mut [f32]) {
        let mut rows = cols.chunks_exact(p.oh * p.ow);
        for c in 0..self.cin {
            for ky in 0..self.k {
                for kx in 0..self.k {
                    let row = rows.next().expect("one row per tap");
                    for oy in 0..p.oh {
                        let y = (oy * self.stride + ky).wrapping_sub(p.top);
                        if y >= p.h {
                            continue;
                        }
                        let dst = &mut dx[(c * p.h + y) * p.w..(c * p.h + y + 1) * p.w];
                        for ox in 0..p.ow {
                            let at = (ox * self.stride + kx).wrapping_sub(p.left);
                            if at < p.w {
                                dst[at] += row[oy * p.ow + ox];
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Layer for Conv2d {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, c, h, w) = dims4(x)?;
        if c != self.cin {
            return Err(Error::Internal(format!("convolution of {} channels was given {c}", self.cin)));
        }
        let p = self.plan(h, w)?;
        let (pixels, depth) = (p.oh * p.ow, self.cin * self.k * self.k);
        let mut out = vec![0.0; n * self.cout * pixels];
        {
            let (input, weights) = (host(x)?, pass.store.param(self.w));
            let (input, size) = (&*input, c * h * w);
            out.par_chunks_exact_mut(self.cout * pixels).enumerate().for_each_init(Vec::new, |cols, (i, out)| {
                let sample = &input[i * size..(i + 1) * size];
                let shape = (self.cout, pixels, depth);
                if self.pointwise() {
                    gemm(out, View::rows(weights, depth), View::rows(sample, pixels), shape, false);
                } else {
                    cols.resize(depth * pixels, 0.0);
                    self.unfold(sample, &p, cols);
                    gemm(out, View::rows(weights, depth), View::rows(cols, pixels), shape, false);
                }
            });
        }
        tape.push_input(x, pass, self.w);
        tensor(out, &[n, self.cout, p.oh, p.ow])
    }

    fn backward(
        &self,
        dy: &Tensor,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (shape, x) = tape.pop_input()?;
        let (n, size, p) = (shape[0], shape[1] * shape[2] * shape[3], self.plan(shape[2], shape[3])?);
        let (pixels, depth) = (p.oh * p.ow, self.cin * self.k * self.k);
        let dy = host(dy)?;
        let dy = &*dy;
        if let (Some(x), Some(dw)) = (x, grads.slot(self.w)) {
            let x = host(&x)?;
            let x = &*x;
            let mut cols = Vec::new();
            if !self.pointwise() {
                cols.resize(n * depth * pixels, 0.0);
                cols.par_chunks_exact_mut(depth * pixels)
                    .enumerate()
                    .for_each(|(i, cols)| self.unfold(&x[i * size..(i + 1) * size], &p, cols));
            }
            let patches = if self.pointwise() { x } else { &cols[..] };
            dw.par_chunks_mut(ROWS * depth).enumerate().for_each(|(block, dw)| {
                let rows = dw.len() / depth;
                for i in 0..n {
                    let dy = &dy[(i * self.cout + block * ROWS) * pixels..][..rows * pixels];
                    let patch = &patches[i * depth * pixels..(i + 1) * depth * pixels];
                    gemm(dw, View::rows(dy, pixels), View::transposed(patch, pixels), (rows, depth, pixels), true);
                }
            });
        }
        if !need_dx {
            return Ok(None);
        }
        let weights = pass.store.param(self.w);
        let mut dx = vec![0.0; n * size];
        dx.par_chunks_exact_mut(size).enumerate().for_each_init(Vec::new, |cols, (i, dx)| {
            let dy = &dy[i * self.cout * pixels..(i + 1) * self.cout * pixels];
            let shape = (depth, pixels, self.cout);
            if self.pointwise() {
                gemm(dx, View::transposed(weights, depth), View::rows(dy, pixels), shape, false);
            } else {
                cols.resize(depth * pixels, 0.0);
                gemm(cols, View::transposed(weights, depth), View::rows(dy, pixels), shape, false);
                self.fold(cols, &p, dx);
            }
        });
        Ok(Some(tensor(dx, &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("conv:{}:{}:{}:{:?};", self.cout, self.k, self.stride, self.pad));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (k, stride, pad, side) in [
            (1, 1, Padding::Symmetric(0), 4),
            (3, 1, Padding::Symmetric(1), 5),
            (3, 2, Padding::Same, 6),
            (3, 2, Padding::Symmetric(1), 6),
            (1, 2, Padding::Symmetric(0), 5),
        ] {
            let mut b = Builder::new(1);
            let conv = b.conv("c", (3, 4), k, stride, pad);
            testing::check_gradients(&conv, &b.store, &[2, 3, side, side]);
        }
    }

    #[test]
    fn agrees_with_candle_where_padding_is_symmetric() {
        let mut b = Builder::new(1);
        let conv = b.conv("c", (3, 5), 3, 2, Padding::Symmetric(1));
        let x = testing::input(&[2, 3, 9, 7]);
        let ours = conv.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
        let w = tensor(b.store.param(conv.w).to_vec(), &[5, 3, 3, 3]).unwrap();
        let theirs = x.conv2d(&w, 1, 2, 1, 1).unwrap();
        testing::assert_close(&ours, &theirs, 1e-5);
    }

    #[test]
    fn same_padding_puts_the_odd_zero_last() {
        assert_eq!(Padding::Same.plan(224, 3, 2), (0, 112));
        assert_eq!(Padding::Same.plan(225, 3, 2), (1, 113));
        assert_eq!(Padding::Same.plan(7, 3, 1), (1, 7));
        assert_eq!(Padding::Symmetric(1).plan(224, 3, 2), (1, 112));
    }
}
