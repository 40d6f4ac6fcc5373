//! Depthwise convolution on channels-last images: every pixel is a sum of neighbours, each times its tap, channel by
//! channel.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Padding, ParamId, Pass, Tape, array, conv::Axis, host, precision::Rounds};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Device, Mixed, Placed, both, either,
    ops::{self, Windowed},
};
use crate::{
    Error, Result,
    num::{fresh::Fresh, simd::vectorised},
};

/// Depthwise convolution, weights `[c, 1, k, k]` as in PyTorch, no bias; `[n, h, w, c]` to `[n, oh, ow, c]`.
#[derive(Debug)]
pub struct Depthwise {
    pub(super) w: ParamId,
    pub(super) c: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: Padding,
}

vectorised! {
    /// `out[c] = Σ x[from + c] · w[tap·C + c]` over the `(from, tap)` of `reads`, for the `C` channels of `out`.
    fn pixel(out: &mut [f32], x: &[f32], w: &[f32], reads: &[(usize, usize)]) {
        const WIDE: usize = 32;
        let c = out.len();
        let mut blocks = out.chunks_exact_mut(WIDE);
        let mut at = 0;
        for block in &mut blocks {
            let mut acc = [0.0f32; WIDE];
            for (from, tap) in reads {
                let (x, w) = (&x[from + at..from + at + WIDE], &w[tap * c + at..tap * c + at + WIDE]);
                for i in 0..WIDE {
                    acc[i] = x[i].mul_add(w[i], acc[i]);
                }
            }
            block.copy_from_slice(&acc);
            at += WIDE;
        }
        for o in blocks.into_remainder() {
            *o = reads.iter().fold(0.0, |acc, (from, tap)| x[from + at].mul_add(w[tap * c + at], acc));
            at += 1;
        }
    }

    /// `sums[tap·W + i] += dy[i] · x[from + i]` for each `(from, tap)` of `reads`, `W` channels of one pixel.
    fn deposit(sums: &mut [f32], dy: &[f32], x: &[f32], reads: &[(usize, usize)]) {
        let width = dy.len();
        for (from, tap) in reads {
            let (x, sums) = (&x[*from..from + width], &mut sums[tap * width..(tap + 1) * width]);
            for i in 0..width {
                sums[i] = dy[i].mul_add(x[i], sums[i]);
            }
        }
    }
}

/// Channels of one task of the weights' gradient.
const CHANNELS: usize = 64;

impl Depthwise {
    fn axes(&self, (h, w): (usize, usize)) -> (Axis, Axis) {
        (Axis::new(h, self.k, self.stride, self.pad), Axis::new(w, self.k, self.stride, self.pad))
    }

    /// Weights by tap, channels last.
    fn by_tap(&self, w: &[f32]) -> Vec<f32> {
        let taps = self.k * self.k;
        (0..taps * self.c).map(|i| w[i % self.c * taps + i / self.c]).collect()
    }

    /// For each input of output `(oy, ox)` that is no border: its pixel within the image, and its tap.
    fn reads(&self, (y, x): (&Axis, &Axis), (oy, ox): (usize, usize), f: &mut impl FnMut(usize, usize)) {
        for ky in 0..self.k {
            let Some(iy) = y.input(oy, ky) else { continue };
            for kx in 0..self.k {
                if let Some(ix) = x.input(ox, kx) {
                    f(iy * x.size + ix, ky * self.k + kx);
                }
            }
        }
    }
}

#[cfg(feature = "cuda")]
impl Depthwise {
    fn windows(&self, (y, x): (&Axis, &Axis)) -> Windowed {
        let (before, outputs) = ((y.before, x.before), (y.outputs, x.outputs));
        Windowed { k: self.k, stride: self.stride, before, outputs }
    }

    fn placed_weights(&self, pass: &Pass<'_>, at: &Arc<Device>) -> Result<Placed> {
        pass.placed(self.w, &[self.c, 1, self.k, self.k], at)
    }

    /// The outputs for images that lie on a GPU: what it takes is rounded as what it gives is.
    fn placed(&self, x: &Mixed, windows: Windowed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Mixed> {
        let (taken, w) = (pass.handed(x.clone())?, self.placed_weights(pass, x.device())?);
        let y = either!(&taken, |x| {
            x.made(|device, x| ops::depthwise(device, x, w.array(), windows)).map(Mixed::from)
        })?;
        tape.push_input(&Array::from(taken), pass, self.w);
        Ok(y)
    }

    fn placed_backward(
        &self,
        dy: &Mixed,
        (x, (size, windows)): (Option<&Array>, ((usize, usize), Windowed)),
        pass: &Pass<'_>,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Mixed>> {
        let at = dy.device();
        let dy = &pass.handed(dy.clone())?;
        if let Some(x) = x {
            let x = x.mixed()?;
            grads.add_placed(self.w, &[self.c, 1, self.k, self.k], at, |device, dw| {
                both!(dy, x, |dy, x| ops::depthwise_weights(device, dy.array(), x.array(), windows, dw))
            })?;
        }
        if !need_dx {
            return Ok(None);
        }
        let w = self.placed_weights(pass, at)?;
        let dx = either!(dy, |dy| {
            dy.made(|device, dy| ops::depthwise_input(device, dy, w.array(), size, windows)).map(Mixed::from)
        });
        Ok(Some(dx?))
    }
}

impl Layer for Depthwise {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        let (y_axis, x_axis) = self.axes((h, w));
        let (oh, ow) = (y_axis.outputs, x_axis.outputs);
        if c != self.c || oh * ow == 0 {
            return Err(Error::Internal(format!("depthwise convolution of {} channels was given {h}x{w}x{c}", self.c)));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(x, self.windows((&y_axis, &x_axis)), pass, tape).map(Array::from);
        }
        let precision = pass.precision().outside();
        let mut out = Fresh::new(n * oh * ow * c);
        {
            let (input, weights) = (host(x)?, self.by_tap(&pass.outside(self.w)));
            let input = precision.operand(&input);
            let input = &*input;
            out.parts(ow * c).enumerate().for_each_init(Vec::new, |reads, (row, out)| {
                let image = &input[row / oh * h * w * c..][..h * w * c];
                for (ox, out) in out.chunks_exact_mut(c).enumerate() {
                    reads.clear();
                    self.reads((&y_axis, &x_axis), (row % oh, ox), &mut |pixel, tap| reads.push((pixel * c, tap)));
                    pixel(out, image, &weights, reads);
                }
            });
        }
        tape.push_input(x, pass, self.w);
        array(precision.product(out.done()), &[n, oh, ow, c])
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let (shape, x) = tape.pop_input()?;
        let (n, h, w, c, taps) = (shape[0], shape[1], shape[2], shape[3], self.k * self.k);
        let (y_axis, x_axis) = self.axes((h, w));
        let (oh, ow) = (y_axis.outputs, x_axis.outputs);
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            let over = ((h, w), self.windows((&y_axis, &x_axis)));
            let dx = self.placed_backward(dy, (x.as_ref(), over), pass, grads, need_dx)?;
            return Ok(dx.map(Array::from));
        }
        let (precision, dy) = (pass.precision().outside(), host(dy)?);
        let dy = precision.operand(&dy);
        let dy = &*dy;
        if let (Some(x), Some(dw)) = (x, grads.slot(self.w)) {
            let x = host(&x)?;
            let x = precision.operand(&x);
            let x = &*x;
            dw.par_chunks_mut(CHANNELS * taps).enumerate().for_each(|(block, dw)| {
                let (first, width) = (block * CHANNELS, dw.len() / taps);
                let (mut sums, mut reads) = (vec![0.0f32; taps * width], Vec::with_capacity(taps));
                let mut total = vec![0.0f64; taps * width];
                for row in 0..n * oh {
                    // One chain per row of outputs: short sums in f32, long ones in f64.
                    sums.fill(0.0);
                    let image = &x[row / oh * h * w * c..][..h * w * c];
                    for ox in 0..ow {
                        reads.clear();
                        self.reads((&y_axis, &x_axis), (row % oh, ox), &mut |p, t| reads.push((p * c + first, t)));
                        deposit(&mut sums, &dy[(row * ow + ox) * c + first..][..width], image, &reads);
                    }
                    total.iter_mut().zip(&sums).for_each(|(t, s)| *t += f64::from(*s));
                }
                for (i, d) in dw.iter_mut().enumerate() {
                    *d += total[i % taps * width + i / taps] as f32;
                }
            });
        }
        if !need_dx {
            return Ok(None);
        }
        let weights = self.by_tap(&pass.outside(self.w));
        let mut dx = Fresh::new(n * h * w * c);
        dx.parts(w * c).enumerate().for_each_init(Vec::new, |reads, (row, dx)| {
            let (image, y) = (&dy[row / h * oh * ow * c..][..oh * ow * c], row % h);
            for (x, dx) in dx.chunks_exact_mut(c).enumerate() {
                reads.clear();
                for ky in 0..self.k {
                    let Some(oy) = y_axis.output(y, ky) else { continue };
                    for kx in 0..self.k {
                        if let Some(ox) = x_axis.output(x, kx) {
                            reads.push(((oy * ow + ox) * c, ky * self.k + kx));
                        }
                    }
                }
                pixel(dx, image, &weights, reads);
            }
        });
        Ok(Some(array(precision.product(dx.done()), &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("depthwise:{}:{}:{:?};", self.k, self.stride, self.pad));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, tensor, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (k, stride, pad, side) in [
            (3, 1, Padding::Symmetric(1), 5),
            (3, 2, Padding::Symmetric(1), 6),
            (3, 2, Padding::Same, 6),
            (5, 2, Padding::Same, 7),
            (3, 1, Padding::Same, 1),
        ] {
            let mut b = Builder::new(1);
            let conv = b.depthwise("c", 3, k, stride, pad);
            testing::check_gradients(&conv, &b.store, &[2, side, side, 3]);
        }
    }

    #[test]
    fn agrees_with_candles_grouped_convolution() {
        for c in [4, 33, 70] {
            let mut b = Builder::new(1);
            let conv = b.depthwise("c", c, 3, 2, Padding::Symmetric(1));
            let x = testing::array(&[2, 9, 6, c]);
            let ours = conv.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
            let w = tensor(b.store.param(conv.w).to_vec(), &[c, 1, 3, 3]).unwrap();
            let theirs = testing::first(&x).conv2d(&w, 1, 2, 1, c).unwrap();
            testing::assert_close(&ours, &testing::last(&theirs), 1e-5);
        }
    }
}
