//! One block of a transformer encoder: attention, then two dense layers, each added and normalised afterwards.

use candle_core::Tensor;

use super::{
    Act, Activation, Gradients, Layer, LayerNorm, Linear, ParamId, Pass, Ragged, SelfAttention, Tape, sum::add,
};
use crate::{Error, Result};

/// `h = norm(x + attention(x))`, `y = norm(h + down(act(up(h))))` on framed sequences (Vaswani et al., 2017).
#[derive(Debug)]
pub struct EncoderBlock {
    /// Looks at the other rows.
    pub attention: SelfAttention,
    /// After it.
    pub middle: LayerNorm,
    /// To the wide layer.
    pub up: Linear,
    /// Its activation.
    pub act: Activation,
    /// Back again.
    pub down: Linear,
    /// At the end.
    pub last: LayerNorm,
}

fn given(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))
}

impl Layer for EncoderBlock {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
        let (ragged, x) = Ragged::unpack(x)?;
        let a = self.attention.forward(&x, &ragged, pass, tape)?;
        let h = self.middle.of_sum(&x, &a, pass, tape)?;
        let wide = self.act.forward(&self.up.forward(&h, pass, tape)?, pass, tape)?;
        let y = self.last.of_sum(&h, &self.down.forward(&wide, pass, tape)?, pass, tape)?;
        ragged.save(pass, tape);
        ragged.frame(&y, true)
    }

    fn backward(
        &self,
        dy: &Tensor,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let ragged = Ragged::saved(tape)?;
        let sum = given(self.last.backward(&ragged.pack(dy)?, pass, tape, grads, true)?)?;
        let wide = given(self.down.backward(&sum, pass, tape, grads, true)?)?;
        let wide = given(self.act.backward(&wide, pass, tape, grads, true)?)?;
        let h = add(&sum, &given(self.up.backward(&wide, pass, tape, grads, true)?)?, Act::None)?;
        let sum = given(self.middle.backward(&h, pass, tape, grads, true)?)?;
        let dx = self.attention.backward(&sum, &ragged, pass, tape, grads, need_dx)?;
        dx.map(|dx| ragged.frame(&add(&sum, &dx, Act::None)?, false)).transpose()
    }

    fn leaves(&self) -> usize {
        // As a person counts: attention and two dense layers.
        3
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("encoder:{}x{};", self.attention.heads, self.attention.depth));
        self.middle.describe(out);
        self.up.describe(out);
        self.act.describe(out);
        self.last.describe(out);
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.attention.params(out);
        self.middle.params(out);
        self.up.params(out);
        self.down.params(out);
        self.last.params(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Act, Builder, sequence::testing};

    #[test]
    fn gradients_are_those_of_finite_differences_and_padding_does_not_show() {
        for act in [Act::Gelu, Act::Tanh] {
            let mut b = Builder::new(3);
            let block = EncoderBlock {
                attention: b.attention(["q", "k", "v", "o"], 6, 2, 4),
                middle: b.layer_norm("n1", 6, 1e-5),
                up: b.linear("up", (6, 10)),
                act: Activation(act),
                down: b.linear("down", (10, 6)),
                last: b.layer_norm("n2", 6, 1e-5),
            };
            b.store.values.iter_mut().for_each(|v| *v *= 1.5);
            testing::check(&block, &b.store, 6);
        }
    }
}
