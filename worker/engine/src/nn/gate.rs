//! Channels scaled by what layers make of their means: squeeze-and-excitation (Hu et al., 2017).

use rayon::prelude::*;

use super::{
    Array, BufferId, Gradients, Layer, ParamId, Pass, Saved, Sequential, Tape, array, host, precision::Rounds,
};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Mixed, Placed, both, either,
    ops::{self, Element},
};
use crate::{Error, Result};

/// `y = x · layers(mean(x))`, channel by channel; the layers see the means as images of one pixel, `[n, 1, 1, c]`.
pub struct Gate {
    /// From means to factors, as many as there are channels.
    pub layers: Sequential,
}

/// Adds up the rows of each image: `f` adds one pixel to the image's sums.
fn sums(images: usize, c: usize, f: impl Fn(usize, &mut [f64]) + Sync) -> Vec<f64> {
    let mut out = vec![0.0; images * c];
    out.par_chunks_exact_mut(c).enumerate().for_each(|(i, sums)| f(i, sums));
    out
}

/// The mean of each channel, as an image of one pixel.
fn means(x: &Array, pass: &Pass<'_>) -> Result<Array> {
    let (n, h, w, c) = x.dims4()?;
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let means = either!(x, |x| x.made(ops::global_mean).map(Mixed::from))?;
        return pass.handed(means.reshaped(&[n, 1, 1, c])?).map(Array::from);
    }
    let (input, size) = (host(x)?, h * w * c);
    let input = &*input;
    let totals = sums(n, c, |i, sums| {
        for pixel in input[i * size..(i + 1) * size].chunks_exact(c) {
            sums.iter_mut().zip(pixel).for_each(|(s, v)| *s += f64::from(*v));
        }
    });
    let means = totals.iter().map(|s| (s / (h * w) as f64) as f32).collect();
    array(pass.precision().product(means), &[n, 1, 1, c])
}

/// Each number times the factor of its image and channel.
fn times(x: &Array, gate: &Array, pass: &Pass<'_>) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(x), Array::Device(gate)) = (x, gate) {
        let y = both!(x, gate, |x, gate| x.made(|device, x| ops::gate(device, x, gate.array())).map(Mixed::from))?;
        return pass.handed(y).map(Array::from);
    }
    let (n, h, w, c) = x.dims4()?;
    let (input, factors) = (host(x)?, host(gate)?);
    let (input, factors) = (&*input, &*factors);
    let mut out = vec![0.0; n * h * w * c];
    out.par_chunks_mut(w * c).zip(input.par_chunks(w * c)).enumerate().for_each(|(row, (out, x))| {
        let gate = &factors[row / h * c..][..c];
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            out.iter_mut().zip(x).zip(gate).for_each(|((o, x), g)| *o = x * g);
        }
    });
    array(pass.precision().product(out), x.dims())
}

/// The slope of the factors: Σ dy·x of each image and channel.
fn slopes(dy: &Array, x: &Array, pass: &Pass<'_>) -> Result<Array> {
    let (n, h, w, c) = x.dims4()?;
    #[cfg(feature = "cuda")]
    if let (Array::Device(dy), Array::Device(x)) = (dy, x) {
        let slopes = both!(dy, x, |dy, x| {
            dy.made(|device, dy| ops::global_products(device, dy, x.array())).map(Mixed::from)
        })?;
        return pass.handed(slopes.reshaped(&[n, 1, 1, c])?).map(Array::from);
    }
    let (x, g, size) = (host(x)?, host(dy)?, h * w * c);
    let (x, g) = (&*x, &*g);
    let products = sums(n, c, |i, sums| {
        let part = i * size..(i + 1) * size;
        for (g, x) in g[part.clone()].chunks_exact(c).zip(x[part].chunks_exact(c)) {
            sums.iter_mut().zip(g).zip(x).for_each(|((s, g), x)| *s += f64::from(*g) * f64::from(*x));
        }
    });
    let slopes = products.iter().map(|s| *s as f32).collect();
    array(pass.precision().product(slopes), &[n, 1, 1, c])
}

/// The slope of the input on a GPU, of three that lie in one type.
#[cfg(feature = "cuda")]
fn placed_through<T: Element>(dy: &Placed<T>, gate: &Placed<T>, means: &Placed<T>) -> Result<Mixed> {
    Ok(dy.made(|device, dy| ops::gate_back(device, dy, gate.array(), means.array()))?.into())
}

/// The slope of the input, through the product and through the means.
fn through(dy: &Array, gate: &Array, means: &Array, pass: &Pass<'_>) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(dy), Array::Device(gate), Array::Device(means)) = (dy, gate, means) {
        let dx = match (dy, gate, means) {
            (Mixed::Half(dy), Mixed::Half(gate), Mixed::Half(means)) => placed_through(dy, gate, means)?,
            _ => placed_through(&dy.full()?, &gate.full()?, &means.full()?)?,
        };
        return pass.handed(dx).map(Array::from);
    }
    let (n, h, w, c) = dy.dims4()?;
    let (g, factors, means, share) = (host(dy)?, host(gate)?, host(means)?, 1.0 / (h * w) as f32);
    let (g, factors, means) = (&*g, &*factors, &*means);
    let mut dx = vec![0.0; n * h * w * c];
    dx.par_chunks_mut(w * c).zip(g.par_chunks(w * c)).enumerate().for_each(|(row, (dx, g))| {
        let at = row / h * c..(row / h + 1) * c;
        let (gate, mean) = (&factors[at.clone()], &means[at]);
        for (dx, g) in dx.chunks_exact_mut(c).zip(g.chunks_exact(c)) {
            for i in 0..c {
                dx[i] = g[i] * gate[i] + mean[i] * share;
            }
        }
    });
    array(pass.precision().product(dx), dy.dims())
}

impl Layer for Gate {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, _, _, c) = x.dims4()?;
        let gate = self.layers.forward(&means(x, pass)?, pass, tape)?;
        if gate.dims() != [n, 1, 1, c] {
            return Err(Error::Internal(format!("a gate of {:?} for {c} channels", gate.dims())));
        }
        let y = times(x, &gate, pass)?;
        if pass.records() {
            tape.push(Saved::Array(x.clone()));
            tape.push(Saved::Array(gate));
        }
        Ok(y)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let (gate, x) = (tape.pop_array()?, tape.pop_array()?);
        let means = self.layers.backward(&slopes(dy, &x, pass)?, pass, tape, grads, need_dx)?;
        means.filter(|_| need_dx).map(|means| through(dy, &gate, &means, pass)).transpose()
    }

    fn leaves(&self) -> usize {
        // The mean and the product are layers of their own, as people count.
        self.layers.leaves() + 2
    }

    fn describe(&self, out: &mut String) {
        out.push_str("gate(");
        self.layers.describe(out);
        out.push(')');
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.layers.params(out);
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        self.layers.norms(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Act, Activation, Builder, ConvSpec, Padding, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut b = Builder::new(1);
        let none = (Padding::Symmetric(0), Padding::Symmetric(0));
        let mut conv = |name: &str, cin, cout| {
            b.conv_spec(name, ConvSpec { cin, cout, kernel: (1, 1), stride: 1, pad: none, bias: true })
        };
        let layers = Sequential::default()
            .with(conv("reduce", 3, 2))
            .with(Activation(Act::Silu))
            .with(conv("expand", 2, 3))
            .with(Activation(Act::Sigmoid));
        testing::check_gradients(&Gate { layers }, &b.store, &[2, 3, 4, 3]);
    }
}
