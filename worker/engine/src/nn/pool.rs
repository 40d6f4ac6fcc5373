//! Pooling, and the step from images to features.

use candle_core::Tensor;

use super::{Gradients, Layer, Pass, Saved, Tape, dims4, host, tensor};
use crate::{Error, Result};

/// Mean over height and width: `[n, c, h, w]` to `[n, c]`.
#[derive(Debug)]
pub struct GlobalAvgPool;

impl Layer for GlobalAvgPool {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, c, h, w) = dims4(x)?;
        if pass.records() {
            tape.push(Saved::Shape(vec![n, c, h, w]));
        }
        let means = host(x)?
            .chunks_exact(h * w)
            .map(|p| (crate::num::sum(p.iter().copied()) / (h * w) as f64) as f32)
            .collect();
        tensor(means, &[n, c])
    }

    fn backward(
        &self,
        dy: &Tensor,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let shape = tape.pop_shape()?;
        if !need_dx {
            return Ok(None);
        }
        let area = shape[2] * shape[3];
        let dx = host(dy)?.iter().flat_map(|g| std::iter::repeat_n(g / area as f32, area)).collect();
        Ok(Some(tensor(dx, &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str("mean;");
    }
}

/// `[n, …]` to `[n, features]`.
#[derive(Debug)]
pub struct Flatten;

impl Layer for Flatten {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        if pass.records() {
            tape.push(Saved::Shape(x.dims().to_vec()));
        }
        Ok(x.flatten_from(1)?)
    }

    fn backward(
        &self,
        dy: &Tensor,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let shape = tape.pop_shape()?;
        if need_dx { Ok(Some(dy.reshape(shape)?)) } else { Ok(None) }
    }

    fn describe(&self, out: &mut String) {
        out.push_str("flatten;");
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
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (n, c, h, w) = dims4(x)?;
        if h + 2 * self.pad < self.k || w + 2 * self.pad < self.k {
            return Err(Error::user(
                format!("an image of {h}x{w} is too small for this network"),
                "raise `model.input`",
            ));
        }
        let (oh, ow) = ((h + 2 * self.pad - self.k) / self.stride + 1, (w + 2 * self.pad - self.k) / self.stride + 1);
        let input = host(x)?;
        let mut out = Vec::with_capacity(n * c * oh * ow);
        let mut chosen = Vec::with_capacity(n * c * oh * ow);
        for plane in 0..n * c {
            let x = &input[plane * h * w..(plane + 1) * h * w];
            for oy in 0..oh {
                let rows = (oy * self.stride).saturating_sub(self.pad)..(oy * self.stride + self.k - self.pad).min(h);
                for ox in 0..ow {
                    let cols =
                        (ox * self.stride).saturating_sub(self.pad)..(ox * self.stride + self.k - self.pad).min(w);
                    let mut best = rows.start * w + cols.start;
                    for y in rows.clone() {
                        for at in y * w + cols.start..y * w + cols.end {
                            if x[at] > x[best] || x[at].is_nan() {
                                best = at;
                            }
                        }
                    }
                    out.push(x[best]);
                    chosen.push(best as u32);
                }
            }
        }
        if pass.records() {
            tape.push(Saved::Shape(vec![n, c, h, w]));
            tape.push(Saved::Indices(chosen));
        }
        tensor(out, &[n, c, oh, ow])
    }

    fn backward(
        &self,
        dy: &Tensor,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let chosen = tape.take(|s| if let Saved::Indices(i) = s { Some(i) } else { None })?;
        let shape = tape.pop_shape()?;
        if !need_dx {
            return Ok(None);
        }
        let (planes, area) = (shape[0] * shape[1], shape[2] * shape[3]);
        let (g, per_plane) = (host(dy)?, chosen.len() / planes.max(1));
        let mut dx = vec![0.0; planes * area];
        for (i, (g, at)) in g.iter().zip(&chosen).enumerate() {
            dx[i / per_plane * area + *at as usize] += g;
        }
        Ok(Some(tensor(dx, &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("max:{}:{}:{};", self.k, self.stride, self.pad));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let store = Builder::new(1).store;
        testing::check_gradients(&GlobalAvgPool, &store, &[2, 3, 4, 5]);
        testing::check_gradients(&Flatten, &store, &[2, 3, 2, 2]);
        testing::check_gradients(&MaxPool { k: 3, stride: 2, pad: 1 }, &store, &[2, 2, 6, 7]);
        testing::check_gradients(&MaxPool { k: 2, stride: 2, pad: 0 }, &store, &[1, 2, 4, 4]);
    }

    #[test]
    fn windows_agree_with_candle_where_it_can() {
        let x = testing::input(&[2, 3, 6, 6]);
        let store = Builder::new(1).store;
        let y = MaxPool { k: 2, stride: 2, pad: 0 }.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
        testing::assert_close(&y, &x.max_pool2d(2).unwrap(), 0.0);
    }
}
