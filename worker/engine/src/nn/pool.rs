//! Pooling, and the step from images to features.

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Pass, Saved, Tape, array, host, precision::Rounds};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, either, ops};
use crate::{Error, Result, num::simd::vectorised};

vectorised! {
    /// Keeps the larger of each channel, and where it lies; the first one wins a tie, and a NaN wins always.
    fn largest(best: &mut [f32], chosen: &mut [u32], x: &[f32], at: u32, first: bool) {
        for i in 0..best.len() {
            let wins = first || x[i] > best[i] || x[i].is_nan();
            best[i] = if wins { x[i] } else { best[i] };
            chosen[i] = if wins { at } else { chosen[i] };
        }
    }
}

/// Mean over height and width: `[n, h, w, c]` to `[n, c]`.
#[derive(Debug)]
pub struct GlobalAvgPool;

impl Layer for GlobalAvgPool {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        if pass.records() {
            tape.push(Saved::Shape(vec![n, h, w, c]));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let y = either!(x, |x| x.made(ops::global_mean).map(Mixed::from));
            return Ok(pass.handed(y?)?.into());
        }
        let input = host(x)?;
        let mut means = vec![0.0; n * c];
        for (means, image) in means.chunks_exact_mut(c).zip(input.chunks_exact(h * w * c)) {
            let mut sums = vec![0.0f64; c];
            image.chunks_exact(c).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v)));
            means.iter_mut().zip(&sums).for_each(|(m, s)| *m = (s / (h * w) as f64) as f32);
        }
        array(pass.precision().product(means), &[n, c])
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let shape = tape.pop_shape()?;
        if !need_dx {
            return Ok(None);
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            let size = (shape[1], shape[2]);
            let dx = either!(dy, |dy| dy.made(|device, dy| ops::global_mean_back(device, dy, size)).map(Mixed::from));
            return Ok(Some(pass.handed(dx?)?.into()));
        }
        let (area, c) = (shape[1] * shape[2], shape[3]);
        let share = 1.0 / area as f32;
        let mut dx = vec![0.0; shape.iter().product()];
        for (image, g) in dx.chunks_exact_mut(area * c).zip(host(dy)?.chunks_exact(c)) {
            image.chunks_exact_mut(c).for_each(|row| row.iter_mut().zip(g).for_each(|(d, g)| *d = g * share));
        }
        Ok(Some(array(pass.precision().product(dx), &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str("mean;");
    }
}

/// The largest value of each window; the first one wins a tie, as in PyTorch.
#[derive(Debug)]
pub struct MaxPool {
    /// Side of the window.
    pub k: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Border on each side, never chosen.
    pub pad: usize,
}

impl Layer for MaxPool {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        if h + 2 * self.pad < self.k || w + 2 * self.pad < self.k {
            return Err(Error::user(
                format!("an image of {h}x{w} is too small for this network"),
                "raise `model.input`",
            ));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(x, pass, tape).map(Array::from);
        }
        let (oh, ow) = ((h + 2 * self.pad - self.k) / self.stride + 1, (w + 2 * self.pad - self.k) / self.stride + 1);
        let input = host(x)?;
        let input = &*input;
        let mut out = vec![0.0; n * oh * ow * c];
        let mut chosen = vec![0u32; out.len()];
        let lines = out.par_chunks_exact_mut(ow * c).zip(chosen.par_chunks_exact_mut(ow * c));
        lines.enumerate().for_each(|(row, (out, chosen))| {
            let (image, oy) = (&input[row / oh * h * w * c..][..h * w * c], row % oh);
            let span = |o: usize, size: usize| {
                (o * self.stride).saturating_sub(self.pad)..(o * self.stride + self.k - self.pad).min(size)
            };
            for (ox, (out, chosen)) in out.chunks_exact_mut(c).zip(chosen.chunks_exact_mut(c)).enumerate() {
                let mut first = true;
                for y in span(oy, h) {
                    for x in span(ox, w) {
                        largest(out, chosen, &image[(y * w + x) * c..][..c], (y * w + x) as u32, first);
                        first = false;
                    }
                }
            }
        });
        if pass.records() {
            tape.push(Saved::Shape(vec![n, h, w, c]));
            tape.push(Saved::Indices(chosen));
        }
        array(pass.precision().product(out), &[n, oh, ow, c])
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return Ok(self.placed_backward(dy, pass, tape, need_dx)?.map(Array::from));
        }
        let chosen = tape.take(|s| if let Saved::Indices(i) = s { Some(i) } else { None })?;
        let shape = tape.pop_shape()?;
        if !need_dx {
            return Ok(None);
        }
        let (n, c, size) = (shape[0], shape[3], shape[1] * shape[2] * shape[3]);
        let (g, own) = (host(dy)?, chosen.len() / n.max(1));
        let g = &*g;
        let mut dx = vec![0.0; n * size];
        dx.par_chunks_exact_mut(size).enumerate().for_each(|(i, dx)| {
            let range = i * own..(i + 1) * own;
            for (g, at) in g[range.clone()].chunks_exact(c).zip(chosen[range].chunks_exact(c)) {
                for (ch, (g, at)) in g.iter().zip(at).enumerate() {
                    dx[*at as usize * c + ch] += g;
                }
            }
        });
        Ok(Some(array(pass.precision().product(dx), &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("max:{}:{}:{};", self.k, self.stride, self.pad));
    }
}

#[cfg(feature = "cuda")]
impl MaxPool {
    fn placed(&self, x: &Mixed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Mixed> {
        let Self { k, stride, pad } = *self;
        let (y, chosen) = either!(x, |x| {
            let made = ops::max_pool(x.device(), x.array(), k, stride, pad);
            made.map(|(y, chosen)| (Mixed::from(x.beside(y)), chosen))
        })?;
        if pass.records() {
            tape.push(Saved::Shape(x.shape().to_vec()));
            tape.push(Saved::PlacedIndices(chosen.into()));
        }
        pass.handed(y)
    }

    fn placed_backward(&self, dy: &Mixed, pass: &Pass<'_>, tape: &mut Tape, need_dx: bool) -> Result<Option<Mixed>> {
        let chosen = tape.take(|s| if let Saved::PlacedIndices(i) = s { Some(i) } else { None })?;
        let shape = tape.take(|s| if let Saved::Shape(s) = s { <[usize; 4]>::try_from(s).ok() } else { None })?;
        if !need_dx {
            return Ok(None);
        }
        let Self { k, stride, pad } = *self;
        let dx = either!(dy, |dy| {
            dy.made(|device, dy| ops::max_pool_back(device, dy, &chosen, shape, k, stride, pad)).map(Mixed::from)
        });
        pass.handed(dx?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let store = Builder::new(1).store;
        testing::check_gradients(&GlobalAvgPool, &store, &[2, 4, 5, 3]);
        testing::check_gradients(&MaxPool { k: 3, stride: 2, pad: 1 }, &store, &[2, 6, 7, 2]);
        testing::check_gradients(&MaxPool { k: 2, stride: 2, pad: 0 }, &store, &[1, 4, 4, 2]);
    }

    #[test]
    fn windows_agree_with_candle_where_it_can() {
        let x = testing::array(&[2, 6, 6, 3]);
        let store = Builder::new(1).store;
        let y = MaxPool { k: 2, stride: 2, pad: 0 }.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
        testing::assert_close(&y, &testing::last(&testing::first(&x).max_pool2d(2).unwrap()), 0.0);
    }
}
