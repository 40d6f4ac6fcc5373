//! Means over windows of an image.

use std::ops::Range;

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Padding, Pass, Saved, Tape, array, host, precision::Rounds};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, either, ops};
use crate::{Error, Result};

/// The pixels of a window in one direction, and how many it is divided by.
type Window = (Range<usize>, usize);

/// Means over windows; `[n, h, w, c]` to `[n, oh, ow, c]`.
#[derive(Clone, Copy, Debug)]
pub enum AvgPool {
    /// A window that slides over the image.
    Sliding {
        /// Its side.
        k: usize,
        /// Distance between windows.
        stride: usize,
        /// The border.
        pad: Padding,
        /// Whether the border's zeros count, as they do in PyTorch unless one says `count_include_pad=False`; in
        /// TensorFlow they never do.
        counts_border: bool,
    },
    /// So many windows a side that cover the image, whatever its size: PyTorch's `AdaptiveAvgPool2d`. A smaller image is
    /// repeated.
    Grid(usize),
}

impl AvgPool {
    fn windows(&self, size: usize) -> Vec<Window> {
        match *self {
            Self::Sliding { k, stride, pad, counts_border } => {
                let (before, outputs) = pad.plan(size, k, stride);
                let window = |o: usize| {
                    let at = o * stride;
                    let range = at.saturating_sub(before)..(at + k).saturating_sub(before).min(size);
                    let count = if counts_border { k } else { range.len() };
                    (range, count)
                };
                (0..outputs).map(window).collect()
            }
            Self::Grid(side) => {
                let window = |o: usize| o * size / side..((o + 1) * size).div_ceil(side);
                (0..side).map(|o| (window(o), window(o).len())).collect()
            }
        }
    }
}

/// Windows as the operations of a GPU take them.
#[cfg(feature = "cuda")]
fn placed(windows: &[Window]) -> Vec<ops::Window> {
    windows.iter().map(|(pixels, count)| ops::Window { pixels: pixels.clone(), count: *count }).collect()
}

fn forward(x: &Array, (ys, xs): (&[Window], &[Window]), pass: &Pass<'_>) -> Result<Array> {
    let (n, h, w, c) = x.dims4()?;
    if ys.is_empty() || xs.is_empty() {
        return Err(Error::user(format!("an image of {h}x{w} is too small for this network"), "raise `model.input`"));
    }
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let (ys, xs) = (placed(ys), placed(xs));
        let y = either!(x, |x| x.made(|device, x| ops::average_pool(device, x, &ys, &xs)).map(Mixed::from));
        return Ok(pass.handed(y?)?.into());
    }
    let (oh, ow) = (ys.len(), xs.len());
    let input = host(x)?;
    let input = &*input;
    let mut out = vec![0.0; n * oh * ow * c];
    out.par_chunks_exact_mut(ow * c).enumerate().for_each(|(row, out)| {
        let (image, (rows, high)) = (&input[row / oh * h * w * c..][..h * w * c], &ys[row % oh]);
        for (out, (cols, wide)) in out.chunks_exact_mut(c).zip(xs) {
            for y in rows.clone() {
                for pixel in image[(y * w + cols.start) * c..(y * w + cols.end) * c].chunks_exact(c) {
                    out.iter_mut().zip(pixel).for_each(|(o, v)| *o += v);
                }
            }
            let count = (high * wide) as f32;
            out.iter_mut().for_each(|o| *o /= count);
        }
    });
    array(pass.precision().product(out), &[n, oh, ow, c])
}

fn backward(dy: &Array, shape: &[usize], (ys, xs): (&[Window], &[Window]), pass: &Pass<'_>) -> Result<Array> {
    let &[_, h, w, c] = shape else {
        return Err(Error::Internal(format!("pooling of {shape:?}")));
    };
    #[cfg(feature = "cuda")]
    if let Array::Device(dy) = dy {
        let (ys, xs) = (placed(ys), placed(xs));
        let dx = either!(dy, |dy| {
            dy.made(|device, dy| ops::average_pool_back(device, dy, (h, w), &ys, &xs)).map(Mixed::from)
        });
        return Ok(pass.handed(dx?)?.into());
    }
    let g = host(dy)?;
    let g = &*g;
    let mut dx = vec![0.0; shape.iter().product()];
    let own = ys.len() * xs.len() * c;
    dx.par_chunks_exact_mut(h * w * c).zip(g.par_chunks_exact(own)).for_each(|(dx, g)| {
        let mut g = g.chunks_exact(c);
        let mut share = vec![0.0; c];
        for (rows, high) in ys {
            for ((cols, wide), g) in xs.iter().zip(&mut g) {
                let count = (high * wide) as f32;
                share.iter_mut().zip(g).for_each(|(s, g)| *s = g / count);
                for y in rows.clone() {
                    for pixel in dx[(y * w + cols.start) * c..(y * w + cols.end) * c].chunks_exact_mut(c) {
                        pixel.iter_mut().zip(&share).for_each(|(d, s)| *d += s);
                    }
                }
            }
        }
    });
    array(pass.precision().product(dx), shape)
}

impl Layer for AvgPool {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        let y = forward(x, (&self.windows(h), &self.windows(w)), pass)?;
        if pass.records() {
            tape.push(Saved::Shape(vec![n, h, w, c]));
        }
        Ok(y)
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
        let windows = |axis: usize| self.windows(shape[axis]);
        if need_dx { backward(dy, &shape, (&windows(1), &windows(2)), pass).map(Some) } else { Ok(None) }
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("average:{self:?};"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    fn sliding(k: usize, stride: usize, pad: Padding, counts_border: bool) -> AvgPool {
        AvgPool::Sliding { k, stride, pad, counts_border }
    }

    fn row(layer: &dyn Layer, values: &[f32]) -> Vec<f32> {
        let store = Builder::new(1).store;
        let x = array(values.to_vec(), &[1, 1, values.len(), 1]).unwrap();
        let y = layer.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
        host(&y).unwrap().to_vec()
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let store = Builder::new(1).store;
        for pool in [
            sliding(3, 1, Padding::Symmetric(1), true),
            sliding(3, 1, Padding::Symmetric(1), false),
            sliding(3, 2, Padding::Same, false),
            sliding(1, 2, Padding::Symmetric(0), true),
            sliding(2, 2, Padding::Symmetric(0), true),
        ] {
            testing::check_gradients(&pool, &store, &[2, 5, 6, 3]);
        }
        for (h, w) in [(7, 7), (2, 3), (9, 5)] {
            testing::check_gradients(&AvgPool::Grid(7), &store, &[2, h, w, 2]);
        }
    }

    #[test]
    fn the_border_counts_only_where_it_should() {
        // One row: the border above and below counts too.
        assert_eq!(row(&sliding(3, 1, Padding::Symmetric(1), true), &[9.0, 18.0, 27.0]), [3.0, 6.0, 5.0]);
        assert_eq!(row(&sliding(3, 1, Padding::Symmetric(1), false), &[9.0, 18.0, 27.0]), [13.5, 18.0, 22.5]);
        // "SAME" with an even size and stride 2: nothing before, one after.
        let same = sliding(3, 2, Padding::Same, false);
        assert_eq!(row(&same, &[3.0, 6.0, 9.0, 12.0]), [6.0, 10.5]);
    }

    #[test]
    fn adaptive_windows_are_those_of_pytorch() {
        // torch.nn.AdaptiveAvgPool2d(3) of a column of four pixels, and of one pixel.
        let store = Builder::new(1).store;
        let y = |values: Vec<f32>, side: usize| {
            let x = array(values, &[1, side, 1, 1]).unwrap();
            let y = AvgPool::Grid(3).forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
            host(&y).unwrap().to_vec()
        };
        assert_eq!(y(vec![1.0, 2.0, 3.0, 4.0], 4), [1.5, 1.5, 1.5, 2.5, 2.5, 2.5, 3.5, 3.5, 3.5]);
        assert_eq!(y(vec![5.0], 1), [5.0; 9]);
    }

    #[test]
    fn an_image_without_a_window_is_refused() {
        let pool = sliding(4, 1, Padding::Symmetric(0), true);
        let x = testing::array(&[1, 3, 3, 1]);
        assert!(pool.forward(&x, &Pass::eval(&Builder::new(1).store), &mut Tape::default()).is_err());
    }
}
