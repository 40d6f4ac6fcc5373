//! Depthwise convolution, computed directly: one small kernel per channel.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Gradients, Layer, Padding, ParamId, Pass, Tape, dims4, host, tensor};
use crate::{Error, Result};

/// Depthwise convolution, weights `[c, 1, k, k]`, no bias.
#[derive(Debug)]
pub struct Depthwise {
    pub(super) w: ParamId,
    pub(super) c: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: Padding,
}

impl Depthwise {
    /// The outputs `[from, to)` along one axis that tap `tap` reaches, and the input position of the first one.
    fn reach(&self, tap: usize, size: usize, before: usize, outputs: usize) -> (usize, usize) {
        let from = before.saturating_sub(tap).div_ceil(self.stride);
        let to = if size + before > tap { ((size + before - tap - 1) / self.stride + 1).min(outputs) } else { 0 };
        (from.min(to), to)
    }

    /// Calls `f(tap, output start, input start, count)` for each run of outputs along a row.
    fn runs(&self, (h, w): (usize, usize), mut f: impl FnMut(usize, usize, usize, usize)) {
        let (top, oh) = self.pad.plan(h, self.k, self.stride);
        let (left, ow) = self.pad.plan(w, self.k, self.stride);
        for ky in 0..self.k {
            let (y0, y1) = self.reach(ky, h, top, oh);
            for oy in y0..y1 {
                let y = oy * self.stride + ky - top;
                for kx in 0..self.k {
                    let (x0, x1) = self.reach(kx, w, left, ow);
                    if x1 > x0 {
                        f(ky * self.k + kx, oy * ow + x0, y * w + x0 * self.stride + kx - left, x1 - x0);
                    }
                }
            }
        }
    }
}

impl Layer for Depthwise {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, c, h, w) = dims4(x)?;
        let (oh, ow) = (self.pad.plan(h, self.k, self.stride).1, self.pad.plan(w, self.k, self.stride).1);
        if c != self.c || oh * ow == 0 {
            return Err(Error::Internal(format!("depthwise convolution of {} channels was given {c}x{h}x{w}", self.c)));
        }
        let mut out = vec![0.0; n * c * oh * ow];
        {
            let (input, weights) = (host(x)?, pass.store.param(self.w));
            let input = &*input;
            out.par_chunks_exact_mut(oh * ow).enumerate().for_each(|(plane, out)| {
                let x = &input[plane * h * w..(plane + 1) * h * w];
                let kernel = &weights[(plane % c) * self.k * self.k..];
                self.runs((h, w), |tap, o, i, count| {
                    let (k, out) = (kernel[tap], &mut out[o..o + count]);
                    if self.stride == 1 {
                        out.iter_mut().zip(&x[i..i + count]).for_each(|(o, x)| *o += k * x);
                    } else {
                        out.iter_mut().zip(x[i..].iter().step_by(self.stride)).for_each(|(o, x)| *o += k * x);
                    }
                });
            });
        }
        tape.push_input(x, pass, self.w);
        tensor(out, &[n, c, oh, ow])
    }

    fn backward(
        &self,
        dy: &Tensor,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (_, c, oh, ow) = dims4(dy)?;
        let (shape, x) = tape.pop_input()?;
        let (n, h, w, taps) = (shape[0], shape[2], shape[3], self.k * self.k);
        let dy = host(dy)?;
        let dy = &*dy;
        if let (Some(x), Some(dw)) = (x, grads.slot(self.w)) {
            let x = host(&x)?;
            let x = &*x;
            dw.par_chunks_exact_mut(taps).enumerate().for_each(|(channel, dw)| {
                for i in 0..n {
                    let plane = i * c + channel;
                    let (dy, x) = (&dy[plane * oh * ow..][..oh * ow], &x[plane * h * w..][..h * w]);
                    self.runs((h, w), |tap, o, i, count| {
                        let inputs = x[i..].iter().step_by(self.stride);
                        dw[tap] += dy[o..o + count].iter().zip(inputs).fold(0.0, |acc, (g, x)| acc + g * x);
                    });
                }
            });
        }
        if !need_dx {
            return Ok(None);
        }
        let weights = pass.store.param(self.w);
        let mut dx = vec![0.0; n * c * h * w];
        dx.par_chunks_exact_mut(h * w).enumerate().for_each(|(plane, dx)| {
            let dy = &dy[plane * oh * ow..][..oh * ow];
            let kernel = &weights[(plane % c) * taps..];
            self.runs((h, w), |tap, o, i, count| {
                let (k, dy) = (kernel[tap], &dy[o..o + count]);
                dx[i..].iter_mut().step_by(self.stride).zip(dy).for_each(|(d, g)| *d += k * g);
            });
        });
        Ok(Some(tensor(dx, &shape)?))
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
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (stride, pad, side) in [
            (1, Padding::Symmetric(1), 5),
            (2, Padding::Symmetric(1), 6),
            (2, Padding::Same, 6),
            (2, Padding::Same, 7),
            (1, Padding::Same, 1),
        ] {
            let mut b = Builder::new(1);
            let conv = b.depthwise("c", 3, 3, stride, pad);
            testing::check_gradients(&conv, &b.store, &[2, 3, side, side]);
        }
    }

    #[test]
    fn agrees_with_candles_grouped_convolution() {
        let mut b = Builder::new(1);
        let conv = b.depthwise("c", 4, 3, 2, Padding::Symmetric(1));
        let x = testing::input(&[2, 4, 9, 6]);
        let ours = conv.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
        let w = tensor(b.store.param(conv.w).to_vec(), &[4, 1, 3, 3]).unwrap();
        testing::assert_close(&ours, &x.conv2d(&w, 1, 2, 1, 4).unwrap(), 1e-5);
    }
}
