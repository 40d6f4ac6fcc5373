//! Activations, with derivative 0 at the kinks of rectifiers as in PyTorch.

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Pass, Saved, Tape, array, host, precision::Rounds};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, both, either, ops};
use crate::{
    Result,
    num::{fresh::Fresh, math, simd::vectorised},
};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// x
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x·σ(x) (Elfwing et al., 2017)
    Silu,
    /// x·Φ(x) (Hendrycks and Gimpel, 2016)
    Gelu,
    /// The same with Φ by a hyperbolic tangent (section 2 of that paper): Hugging Face's `gelu_new`
    GeluTanh,
    /// tanh x
    Tanh,
    /// σ(x)
    Sigmoid,
}

impl Act {
    /// Its name in descriptions.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "linear",
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// `f(x)` of each number. A NaN stays one: `max` would turn it into a zero and hide it.
    #[inline(always)]
    pub(super) fn map(self, x: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Relu => x.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
            Self::Relu6 => x.iter_mut().for_each(|v| {
                let low = if *v < 0.0 { 0.0 } else { *v };
                *v = if low > 6.0 { 6.0 } else { low };
            }),
            Self::Silu => x.iter_mut().for_each(|v| *v *= math::sigmoid(*v)),
            Self::Gelu => x.iter_mut().for_each(|v| *v = math::gelu(*v)),
            Self::GeluTanh => x.iter_mut().for_each(|v| *v = math::gelu_tanh(*v)),
            Self::Tanh => x.iter_mut().for_each(|v| *v = math::tanh(*v)),
            Self::Sigmoid => x.iter_mut().for_each(|v| *v = math::sigmoid(*v)),
        }
    }

    /// `f′(z)`
    #[inline(always)]
    pub(super) fn slope(self, z: f32) -> f32 {
        match self {
            Self::None => 1.0,
            Self::Relu => f32::from(u8::from(z > 0.0)),
            Self::Relu6 => f32::from(u8::from(z > 0.0 && z < 6.0)),
            Self::Silu => {
                let s = math::sigmoid(z);
                s * (1.0 + z * (1.0 - s))
            }
            Self::Gelu => math::gelu_grad(z),
            Self::GeluTanh => math::gelu_tanh_grad(z),
            Self::Tanh => {
                let t = math::tanh(z);
                1.0 - t * t
            }
            Self::Sigmoid => {
                let s = math::sigmoid(z);
                s * (1.0 - s)
            }
        }
    }
}

/// Numbers of one task.
pub(super) const TASK: usize = 1 << 14;

vectorised! {
    pub(super) fn apply(act: Act, x: &mut [f32]) {
        act.map(x);
    }

    /// `dx = dy · f′(z)`
    pub(super) fn slopes(act: Act, z: &[f32], dy: &[f32], dx: &mut [f32]) {
        let all = dx.iter_mut().zip(dy).zip(z);
        match act {
            Act::None => dx.copy_from_slice(dy),
            Act::Relu => all.for_each(|((d, g), z)| *d = if *z > 0.0 { *g } else { 0.0 }),
            Act::Relu6 => all.for_each(|((d, g), z)| *d = if *z > 0.0 && *z < 6.0 { *g } else { 0.0 }),
            Act::Silu => all.for_each(|((d, g), z)| *d = g * Act::Silu.slope(*z)),
            Act::Gelu => all.for_each(|((d, g), z)| *d = g * Act::Gelu.slope(*z)),
            Act::GeluTanh => all.for_each(|((d, g), z)| *d = g * Act::GeluTanh.slope(*z)),
            Act::Tanh => all.for_each(|((d, g), z)| *d = g * Act::Tanh.slope(*z)),
            Act::Sigmoid => all.for_each(|((d, g), z)| *d = g * Act::Sigmoid.slope(*z)),
        }
    }
}

/// `f(x)`, as layers of images hand it on.
fn forward(act: Act, x: &Array, pass: &Pass<'_>) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let y = either!(x, |x| x.made(|device, x| ops::activate(device, act, x)).map(Mixed::from))?;
        return pass.handed(y).map(Array::from);
    }
    let input = host(x)?;
    let mut out = Fresh::new(input.len());
    out.parts(TASK).zip(input.par_chunks(TASK)).for_each(|(out, x)| {
        out.copy_from_slice(x);
        apply(act, out);
    });
    array(pass.precision().product(out.done()), x.dims())
}

/// `dy · f′(z)`, as layers of images hand it back. A rectifier may be given its output for `z`.
pub(super) fn backward(act: Act, z: &Array, dy: &Array, pass: &Pass<'_>) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let (Array::Device(z), Array::Device(dy)) = (z, dy) {
        let dx = both!(z, dy, |z, dy| {
            dy.made(|device, dy| ops::activate_back(device, act, z.array(), dy)).map(Mixed::from)
        })?;
        return pass.handed(dx).map(Array::from);
    }
    let (z, g) = (host(z)?, host(dy)?);
    let (z, g) = (&*z, &*g);
    let mut dx = Fresh::new(g.len());
    let parts = dx.parts(TASK).zip(g.par_chunks(TASK)).zip(z.par_chunks(TASK));
    parts.for_each(|((dx, g), z)| slopes(act, z, g, dx));
    array(pass.precision().product(dx.done()), dy.dims())
}

/// A layer that applies a function to each number.
#[derive(Debug)]
pub struct Activation(pub Act);

/// The layer of [`Act::Relu`].
#[expect(non_upper_case_globals, reason = "reads as the layer it is")]
pub const Relu: Activation = Activation(Act::Relu);

impl Layer for Activation {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let y = forward(self.0, x, pass)?;
        if pass.records() {
            // The output of a rectifier says as much of its slope as its input, and the next layer keeps it anyway.
            let by_output = matches!(self.0, Act::Relu | Act::Relu6);
            tape.push(Saved::Array(if by_output { y.clone() } else { x.clone() }));
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
        let z = tape.pop_array()?;
        if need_dx { backward(self.0, &z, dy, pass).map(Some) } else { Ok(None) }
    }

    fn describe(&self, out: &mut String) {
        out.push_str(self.0.name());
        out.push(';');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences_away_from_the_kinks() {
        let store = Builder::new(1).store;
        for act in [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid] {
            testing::check_gradients(&Activation(act), &store, &[3, 7]);
        }
    }

    #[test]
    fn the_derivative_at_a_kink_is_zero_and_nan_stays() {
        let store = Builder::new(1).store;
        let layout = crate::nn::Layout::new(&store, &[], &[]);
        let pass = Pass { store: &store, layout: Some(&layout), ..Pass::eval(&store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let x = array(vec![0.0, 6.0, 3.0, f32::NAN], &[1, 4]).unwrap();
        let layer = Activation(Act::Relu6);
        let y = layer.forward(&x, &pass, &mut tape).unwrap();
        assert!(host(&y).unwrap()[3].is_nan());
        let ones = array(vec![1.0; 4], &[1, 4]).unwrap();
        let dx = layer.backward(&ones, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        assert_eq!(host(&dx).unwrap()[..3], [0.0, 0.0, 1.0]);
    }
}
