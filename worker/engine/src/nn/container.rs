//! Layers made of layers.

use super::{
    Act, Array, BufferId, Gradients, Layer, ParamId, Pass, Saved, Tape, act::backward, array, host, sum::add_handed,
};
use crate::Result;
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, either, ops};

/// One layer after the other.
#[derive(Default)]
pub struct Sequential(pub Vec<Box<dyn Layer>>);

impl Sequential {
    /// Adds a layer at the end.
    pub fn with(mut self, layer: impl Layer + 'static) -> Self {
        self.0.push(Box::new(layer));
        self
    }
}

impl Layer for Sequential {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        self.0.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, pass, tape))
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let mut dy = Some(dy.clone());
        for (i, layer) in self.0.iter().enumerate().rev() {
            if let Some(g) = dy.take() {
                dy = layer.backward(&g, pass, tape, grads, need_dx || i > 0)?;
            }
        }
        Ok(dy)
    }

    fn leaves(&self) -> usize {
        self.0.iter().map(|l| l.leaves()).sum()
    }

    fn describe(&self, out: &mut String) {
        self.0.iter().for_each(|l| l.describe(out));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.0.iter().for_each(|l| l.params(out));
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        self.0.iter().for_each(|l| l.norms(out));
    }
}

/// How the input of a residual block reaches its sum.
pub enum Shortcut {
    /// Unchanged.
    Identity,
    /// Through layers.
    Layers(Sequential),
    /// Every second pixel, with zeros for the new channels on both sides: option A of He et al. (2015), as in the
    /// CIFAR ResNets.
    Subsample {
        /// Channels of the sum.
        channels: usize,
    },
}

/// `act(body(x) + shortcut(x))`
pub struct Residual {
    /// The long way.
    pub body: Sequential,
    /// The short way.
    pub shortcut: Shortcut,
    /// A rectifier after the sum, or none.
    pub act: Act,
}

/// Every second pixel of each row and column, its channels after `before` new ones.
fn subsample(x: &Array, channels: usize) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let y = either!(x, |x| x.made(|device, x| ops::subsample(device, x, channels)).map(Mixed::from));
        return Ok(y?.into());
    }
    let (n, h, w, c) = x.dims4()?;
    let (oh, ow, before) = (h.div_ceil(2), w.div_ceil(2), (channels - c) / 2);
    let input = host(x)?;
    let mut out = vec![0.0; n * oh * ow * channels];
    for (p, out) in out.chunks_exact_mut(channels).enumerate() {
        let (i, y, x) = (p / (oh * ow), p / ow % oh, p % ow);
        let from = ((i * h + 2 * y) * w + 2 * x) * c;
        out[before..before + c].copy_from_slice(&input[from..from + c]);
    }
    array(out, &[n, oh, ow, channels])
}

fn subsample_backward(dy: &Array, shape: &[usize]) -> Result<Array> {
    let (_, oh, ow, channels) = dy.dims4()?;
    let (h, w, c) = (shape[1], shape[2], shape[3]);
    #[cfg(feature = "cuda")]
    if let Array::Device(dy) = dy {
        let dx = either!(dy, |dy| dy.made(|device, dy| ops::subsample_back(device, dy, [h, w, c])).map(Mixed::from));
        return Ok(dx?.into());
    }
    let (g, before) = (host(dy)?, (channels - c) / 2);
    let mut dx = vec![0.0; shape.iter().product()];
    for (p, dy) in g.chunks_exact(channels).enumerate() {
        let (i, y, x) = (p / (oh * ow), p / ow % oh, p % ow);
        let to = ((i * h + 2 * y) * w + 2 * x) * c;
        dx[to..to + c].copy_from_slice(&dy[before..before + c]);
    }
    array(dx, shape)
}

impl Layer for Residual {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let long = self.body.forward(x, pass, tape)?;
        let short = match &self.shortcut {
            Shortcut::Identity => x.clone(),
            Shortcut::Layers(layers) => layers.forward(x, pass, tape)?,
            Shortcut::Subsample { channels } => {
                if pass.records() {
                    tape.push(Saved::Shape(x.dims().to_vec()));
                }
                subsample(x, *channels)?
            }
        };
        let y = add_handed(&long, &short, self.act, pass)?;
        if pass.records() && self.act != Act::None {
            // Only rectifiers follow a sum: their output says where their slope is one.
            tape.push(Saved::Array(y.clone()));
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
        let dy = match self.act {
            Act::None => dy.clone(),
            act => backward(act, &tape.pop_array()?, dy, pass)?,
        };
        let dy = &dy;
        let short = match &self.shortcut {
            Shortcut::Identity => Some(dy.clone()),
            Shortcut::Layers(layers) => layers.backward(dy, pass, tape, grads, need_dx)?,
            Shortcut::Subsample { .. } => {
                let shape = tape.pop_shape()?;
                if need_dx { Some(subsample_backward(dy, &shape)?) } else { None }
            }
        };
        let long = self.body.backward(dy, pass, tape, grads, need_dx)?;
        match (long, short) {
            (Some(long), Some(short)) if need_dx => add_handed(&long, &short, Act::None, pass).map(Some),
            _ => Ok(None),
        }
    }

    fn leaves(&self) -> usize {
        // The sum is a layer of its own, as people count.
        let short = if let Shortcut::Layers(layers) = &self.shortcut { layers.leaves() } else { 0 };
        self.body.leaves() + short + 1 + usize::from(self.act != Act::None)
    }

    fn describe(&self, out: &mut String) {
        out.push_str("residual(");
        self.body.describe(out);
        match &self.shortcut {
            Shortcut::Identity => out.push_str("|identity"),
            Shortcut::Layers(layers) => {
                out.push('|');
                layers.describe(out);
            }
            Shortcut::Subsample { channels } => out.push_str(&format!("|subsample:{channels}")),
        }
        out.push(')');
        out.push_str(self.act.name());
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.body.params(out);
        if let Shortcut::Layers(layers) = &self.shortcut {
            layers.params(out);
        }
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        self.body.norms(out);
        if let Shortcut::Layers(layers) = &self.shortcut {
            layers.norms(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Padding, Relu, testing};

    fn block(shortcut: impl FnOnce(&mut Builder) -> Shortcut, channels: usize, stride: usize) -> (Residual, Builder) {
        let mut b = Builder::new(1);
        let shortcut = shortcut(&mut b);
        let body = Sequential::default()
            .with(b.conv("a", (2, channels), 3, stride, Padding::Symmetric(1)))
            .with(b.norm("n", channels))
            .with(Relu);
        (Residual { body, shortcut, act: Act::Relu }, b)
    }

    #[test]
    fn gradients_of_every_shortcut_are_those_of_finite_differences() {
        let (identity, b) = block(|_| Shortcut::Identity, 2, 1);
        testing::check_gradients(&identity, &b.store, &[3, 4, 4, 2]);
        let (subsample, b) = block(|_| Shortcut::Subsample { channels: 4 }, 4, 2);
        testing::check_gradients(&subsample, &b.store, &[3, 5, 5, 2]);
        let layers = |b: &mut Builder| {
            Shortcut::Layers(Sequential::default().with(b.conv("s", (2, 4), 1, 2, Padding::Symmetric(0))))
        };
        let (layers, b) = block(layers, 4, 2);
        testing::check_gradients(&layers, &b.store, &[3, 4, 4, 2]);
    }
}
