//! Small steps between layers that need no neighbours: a constant factor, a fixed normalisation of the input, and the
//! step from images to features in PyTorch's order.

use rayon::prelude::*;

use super::{Array, BufferId, Gradients, Layer, Pass, Saved, Tape, act::TASK, array, host};
#[cfg(feature = "cuda")]
use crate::gpu::{Placed, ops};
use crate::{Error, Result};

/// `y = factor · x`
#[derive(Debug)]
pub struct Scale(pub f32);

fn times(x: &Array, factor: f32) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        return Ok(x.full()?.changed(|device, x| ops::scale(device, x, factor))?.into());
    }
    let mut out = host(x)?.to_vec();
    out.par_chunks_mut(TASK).for_each(|part| part.iter_mut().for_each(|v| *v *= factor));
    array(out, x.dims())
}

impl Layer for Scale {
    fn forward(&self, x: &Array, _: &Pass<'_>, _: &mut Tape) -> Result<Array> {
        times(x, self.0)
    }

    fn backward(
        &self,
        dy: &Array,
        _: &Pass<'_>,
        _: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        if need_dx { times(dy, self.0).map(Some) } else { Ok(None) }
    }

    fn leaves(&self) -> usize {
        0
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("scale:{};", self.0));
    }
}

/// `(x − mean) / √variance · after` per channel, with constants that come with the weights.
#[derive(Debug)]
pub struct Normalize {
    pub(super) mean: BufferId,
    pub(super) variance: BufferId,
    pub(super) after: Vec<f32>,
}

impl Normalize {
    fn factors(&self, pass: &Pass<'_>) -> Vec<f32> {
        pass.store.buffer(self.variance).iter().zip(&self.after).map(|(v, a)| a / v.sqrt()).collect()
    }
}

/// `(x − mean) · factor` per channel, where `x` lies.
#[cfg(feature = "cuda")]
fn placed(x: &Placed, mean: &[f32], factors: &[f32]) -> Result<Placed> {
    let y = x.made(|device, x| {
        let [mean, factors] = [mean, factors].map(|values| device.upload(values, &[values.len()]));
        ops::normalize(device, x, &mean?, &factors?)
    })?;
    Ok(y)
}

impl Layer for Normalize {
    fn forward(&self, x: &Array, pass: &Pass<'_>, _: &mut Tape) -> Result<Array> {
        let (mean, factors) = (pass.store.buffer(self.mean), self.factors(pass));
        if x.dims().last() != Some(&mean.len()) {
            return Err(Error::Internal(format!("{:?} is to be normalised in {} channels", x.dims(), mean.len())));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return placed(&x.full()?, mean, &factors).map(Array::from);
        }
        let mut out = host(x)?.to_vec();
        for pixel in out.chunks_exact_mut(mean.len()) {
            pixel.iter_mut().zip(mean).zip(&factors).for_each(|((v, m), f)| *v = (*v - m) * f);
        }
        array(out, x.dims())
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        _: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        if !need_dx {
            return Ok(None);
        }
        let factors = self.factors(pass);
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return placed(&dy.full()?, &vec![0.0; factors.len()], &factors).map(|dx| Some(dx.into()));
        }
        let mut dx = host(dy)?.to_vec();
        dx.chunks_exact_mut(factors.len()).for_each(|p| p.iter_mut().zip(&factors).for_each(|(d, f)| *d *= f));
        Ok(Some(array(dx, dy.dims())?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("normalize:{:?};", self.after));
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        out.push((self.mean, self.variance));
    }
}

/// `[n, h, w, c]` to `[n, c·h·w]`, the features of one channel side by side: the order that the weights of a linear layer
/// after PyTorch's `flatten` are in.
#[derive(Debug)]
pub struct FlattenChannels;

/// Each sample of `rows` rows and `cols` columns, transposed.
fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_exact_mut(rows * cols).zip(x.par_chunks_exact(rows * cols)).for_each(|(out, x)| {
        for (col, out) in out.chunks_exact_mut(rows).enumerate() {
            out.iter_mut().enumerate().for_each(|(row, o)| *o = x[row * cols + col]);
        }
    });
    out
}

impl Layer for FlattenChannels {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        if pass.records() {
            tape.push(Saved::Shape(vec![n, h, w, c]));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let turned = x.full()?.made(|device, x| ops::turn(device, x, [n, h * w, c])?.reshaped(&[n, c * h * w]))?;
            return Ok(turned.into());
        }
        array(transposed(&host(x)?, h * w, c), &[n, c * h * w])
    }

    fn backward(
        &self,
        dy: &Array,
        _: &Pass<'_>,
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
            let sizes = [shape[0], shape[3], shape[1] * shape[2]];
            let dx = dy.full()?.made(|device, dy| ops::turn(device, dy, sizes)?.reshaped(&shape))?;
            return Ok(Some(dx.into()));
        }
        Ok(Some(array(transposed(&host(dy)?, shape[3], shape[1] * shape[2]), &shape)?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str("flatten:channels;");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let normalize = b.normalize("n", &[0.5, 0.4], &[0.3, 0.2], &[2.0, 3.0]);
        testing::check_gradients(&Scale(0.17), &b.store, &[2, 3]);
        testing::check_gradients(&FlattenChannels, &b.store, &[2, 3, 2, 4]);
        let layout = crate::nn::Layout::new(&b.store, &[], &[]);
        testing::check_gradients_of(&normalize, &b.store, &[2, 2, 3, 2], &layout);
    }

    #[test]
    fn features_are_in_pytorchs_order_and_inputs_are_normalised_by_channel() {
        let mut b = Builder::new(1);
        let normalize = b.normalize("n", &[1.0, 2.0], &[4.0, 0.25], &[1.0, 3.0]);
        let x = array(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1, 1, 3, 2]).unwrap();
        let run = |layer: &dyn Layer| {
            let y = layer.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
            host(&y).unwrap().to_vec()
        };
        assert_eq!(run(&FlattenChannels), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!(run(&normalize), [0.0, 0.0, 1.0, 12.0, 2.0, 24.0]);
    }
}
