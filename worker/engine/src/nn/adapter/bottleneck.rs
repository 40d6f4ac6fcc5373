//! Bottleneck adapters in encoder blocks (Houlsby et al., 2019; Pfeiffer et al., 2020), as AdapterHub places them.

use super::{
    super::{Act, Activation, Array, Builder, Gradients, Layer, LayerNorm, Linear, ParamId, Pass, Tape, sum::add},
    Kind,
};
use crate::{Error, Result};

/// What a sum in a block comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The attention.
    Attention,
    /// The two dense layers.
    Dense,
}

/// `f + up(act(down(z)))`
#[derive(Debug)]
struct Bottleneck {
    down: Linear,
    act: Activation,
    up: Linear,
    /// Whether z is the block's sum, normalised, as Pfeiffer's; Houlsby's is f.
    of_sum: bool,
}

/// `norm(x + f)`, where a bottleneck may change f first; or only the norm, in front of what gives f.
#[derive(Debug)]
pub struct AddNorm {
    norm: LayerNorm,
    bottleneck: Option<Bottleneck>,
}

impl From<LayerNorm> for AddNorm {
    fn from(norm: LayerNorm) -> Self {
        Self { norm, bottleneck: None }
    }
}

fn given(gradient: Option<Array>) -> Result<Array> {
    gradient.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))
}

impl Bottleneck {
    fn forward(&self, z: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let low = self.act.forward(&self.down.forward(z, pass, tape)?, pass, tape)?;
        self.up.forward(&low, pass, tape)
    }

    fn backward(&self, dy: &Array, pass: &Pass<'_>, tape: &mut Tape, grads: &mut Gradients) -> Result<Array> {
        let low = given(self.up.backward(dy, pass, tape, grads, true)?)?;
        let low = given(self.act.backward(&low, pass, tape, grads, true)?)?;
        given(self.down.backward(&low, pass, tape, grads, true)?)
    }
}

impl AddNorm {
    /// `x` and `f`: rows `[n, c]`.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn forward(&self, x: &Array, f: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let Some(bottleneck) = &self.bottleneck else { return self.norm.of_sum(x, f, pass, tape) };
        let z = if bottleneck.of_sum { self.norm.of_sum(x, f, pass, tape)? } else { f.clone() };
        let f = add(f, &bottleneck.forward(&z, pass, tape)?, Act::None)?;
        self.norm.of_sum(x, &f, pass, tape)
    }

    /// The gradients of `x` and of `f`.
    ///
    /// # Errors
    /// A tape that was not written by [`AddNorm::forward`].
    pub fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
    ) -> Result<(Array, Array)> {
        let dx = given(self.norm.backward(dy, pass, tape, grads, true)?)?;
        let Some(bottleneck) = &self.bottleneck else { return Ok((dx.clone(), dx)) };
        let dz = bottleneck.backward(&dx, pass, tape, grads)?;
        if bottleneck.of_sum {
            let both = add(&dx, &given(self.norm.backward(&dz, pass, tape, grads, true)?)?, Act::None)?;
            return Ok((both.clone(), both));
        }
        let df = add(&dx, &dz, Act::None)?;
        Ok((dx, df))
    }

    /// The norm of rows that are no sum; a bottleneck has no place there.
    pub(in crate::nn) fn alone(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        match &self.bottleneck {
            None => self.norm.forward(x, pass, tape),
            Some(_) => Err(Error::Internal("a bottleneck wants a norm that follows a sum".into())),
        }
    }

    /// The backward of [`AddNorm::alone`].
    pub(in crate::nn) fn alone_backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        self.norm.backward(dy, pass, tape, grads, need_dx)
    }

    pub(in crate::nn) fn describe(&self, out: &mut String) {
        self.norm.describe(out);
        if let Some(b) = &self.bottleneck {
            out.push_str(&format!("bottleneck:{}:", b.of_sum));
            b.down.describe(out);
            b.act.describe(out);
        }
    }

    pub(in crate::nn) fn params(&self, out: &mut Vec<ParamId>) {
        self.norm.params(out);
        if let Some(b) = &self.bottleneck {
            b.down.params(out);
            b.up.params(out);
        }
    }
}

impl Builder {
    /// A sum and the layer normalisation after it; a bottleneck there is called `adapter`.
    pub fn add_norm(&mut self, name: &str, adapter: &str, place: Place, c: usize, eps: f32) -> AddNorm {
        let norm = self.layer_norm(name, c, eps);
        let wanted = self.adapters.plan.as_ref().filter(|_| self.adapting).map(|p| p.kind.clone());
        let bottleneck = match wanted {
            Some(Kind::Bottleneck { twice, reduction }) if twice || place == Place::Dense => {
                Some(self.bottleneck(adapter, c, (c / reduction).max(1), twice))
            }
            _ => None,
        };
        AddNorm { norm, bottleneck }
    }

    /// Weights from N(0, 0.02²) and biases of zero, as AdapterHub's: almost nothing at the start.
    fn bottleneck(&mut self, name: &str, c: usize, width: usize, twice: bool) -> Bottleneck {
        let mut dense = |part: &str, (input, output): (usize, usize)| {
            let w = self.param(format!("{name}.{part}.weight"), &[output, input], |s| s.normal() * 0.02);
            let b = self.param(format!("{name}.{part}.bias"), &[output], |_| 0.0);
            self.adapters.params.extend([w, b]);
            Linear { w, b: Some(b), input, output, adapter: None }
        };
        let (down, up) = (dense("down", (c, width)), dense("up", (width, c)));
        let act = Activation(if twice { Act::Silu } else { Act::Relu });
        Bottleneck { down, act, up, of_sum: !twice }
    }
}
