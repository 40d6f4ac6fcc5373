//! One block of a transformer encoder: attention, then two dense layers, each added to what it was given.

use super::{
    Act, Activation, AddNorm, Array, Gradients, Layer, Linear, Mask, ParamId, Pass, Ragged, SelfAttention, Tape,
    sum::add,
};
use crate::{Error, Result};

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The sums: `h = norm(x + attention(x))`, `y = norm(h + dense(h))` (Vaswani et al., 2017).
    After,
    /// What attention and dense layers are given: `h = x + attention(norm(x))`, `y = h + dense(norm(h))` (Xiong et al.,
    /// 2020).
    Before,
}

/// A block on framed sequences, where `dense(h) = down(act(up(h)))`.
#[derive(Debug)]
pub struct EncoderBlock {
    /// Looks at the other rows.
    pub attention: SelfAttention,
    /// That of the attention, and that of the dense layers. A bottleneck is for those that come after.
    pub norms: [AddNorm; 2],
    /// Whether they come before or after.
    pub order: Order,
    /// To the wide layer.
    pub up: Linear,
    /// Its activation.
    pub act: Activation,
    /// Back again.
    pub down: Linear,
    /// What is dropped: of the attention's output, of the wide layer, and of the last layer's output.
    pub drops: [Mask; 3],
}

fn given(gradient: Option<Array>) -> Result<Array> {
    gradient.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))
}

impl EncoderBlock {
    /// What a part of the block is given.
    fn inner(&self, part: usize, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        match self.order {
            Order::Before => self.norms[part].alone(x, pass, tape),
            Order::After => Ok(x.clone()),
        }
    }

    /// The sum of what a part was given and gives.
    fn outer(&self, part: usize, x: &Array, made: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        match self.order {
            Order::Before => add(x, made, Act::None),
            Order::After => self.norms[part].forward(x, made, pass, tape),
        }
    }
}

impl Layer for EncoderBlock {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (ragged, x) = Ragged::unpack(x)?;
        let draws = ragged.draws(pass);
        let by_row = &pass.with_draws(&draws);
        let a = self.attention.forward(&self.inner(0, &x, pass, tape)?, &ragged, pass, tape)?;
        let h = self.outer(0, &x, &self.drops[0].rows(a, &ragged, pass)?, pass, tape)?;
        let wide = self.up.forward(&self.inner(1, &h, pass, tape)?, by_row, tape)?;
        let wide = self.drops[1].rows(self.act.forward(&wide, pass, tape)?, &ragged, pass)?;
        let d = self.drops[2].rows(self.down.forward(&wide, by_row, tape)?, &ragged, pass)?;
        let y = self.outer(1, &h, &d, pass, tape)?;
        ragged.save(pass, tape);
        ragged.frame(&y, true)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let ragged = Ragged::saved(tape)?;
        let draws = ragged.draws(pass);
        let by_row = &pass.with_draws(&draws);
        let before = self.order == Order::Before;
        let [first, second] = &self.norms;
        let sum = ragged.pack(dy)?;
        let (sum, made) = if before { (sum.clone(), sum) } else { second.backward(&sum, pass, tape, grads)? };
        let wide = self.drops[2].rows(made, &ragged, pass)?;
        let wide = given(self.down.backward(&wide, by_row, tape, grads, true)?)?;
        let wide = self.drops[1].rows(wide, &ragged, pass)?;
        let wide = given(self.act.backward(&wide, pass, tape, grads, true)?)?;
        let mut inner = given(self.up.backward(&wide, by_row, tape, grads, true)?)?;
        if before {
            inner = given(second.alone_backward(&inner, pass, tape, grads, true)?)?;
        }
        let sum = add(&sum, &inner, Act::None)?;
        let (sum, made) = if before { (sum.clone(), sum) } else { first.backward(&sum, pass, tape, grads)? };
        let a = self.drops[0].rows(made, &ragged, pass)?;
        let mut inner = self.attention.backward(&a, &ragged, pass, tape, grads, need_dx || before)?;
        if before {
            inner = first.alone_backward(&given(inner)?, pass, tape, grads, need_dx)?;
        }
        inner.map(|inner| ragged.frame(&add(&sum, &inner, Act::None)?, false)).transpose()
    }

    fn leaves(&self) -> usize {
        // As a person counts: attention and two dense layers.
        3
    }

    fn describe(&self, out: &mut String) {
        let before = if self.order == Order::Before { "before:" } else { "" };
        out.push_str(&format!("encoder:{before}{}x{};", self.attention.heads, self.attention.depth));
        self.attention.describe(out);
        self.norms[0].describe(out);
        self.up.describe(out);
        self.act.describe(out);
        self.down.describe_part(out);
        self.norms[1].describe(out);
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.attention.params(out);
        self.norms[0].params(out);
        self.up.params(out);
        self.down.params(out);
        self.norms[1].params(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Act, Builder, DropoutDraw, Place, sequence::testing},
        num::rng::Philox,
    };

    /// Every way of a block: normalised before or after, projections apart or fused.
    fn block(b: &mut Builder, act: Act, order: Order, fused: bool, p: f32) -> EncoderBlock {
        let drop = Mask { p, site: 4 };
        let attention = if fused {
            b.attention_fused(["qkv", "o"], 6, (2, 4), drop)
        } else {
            b.attention(["q", "k", "v", "o"], 6, (2, 4), drop)
        };
        let block = EncoderBlock {
            attention,
            norms: if order == Order::Before {
                ["n1", "n2"].map(|name| b.layer_norm(name, 6, 1e-5).into())
            } else {
                [("n1", "a1", Place::Attention), ("n2", "a2", Place::Dense)]
                    .map(|(name, adapter, place)| b.add_norm(name, adapter, place, 6, 1e-5))
            },
            order,
            up: b.linear("up", (6, 10)),
            act: Activation(act),
            down: b.linear("down", (10, 6)),
            drops: [1, 2, 3].map(|site| Mask { p, site }),
        };
        let mut draw = Philox::new(3, "block").stream(0, 0);
        b.store.values.iter_mut().for_each(|v| *v = *v * 1.5 + 0.3 * draw.normal());
        block
    }

    #[test]
    fn gradients_are_those_of_finite_differences_and_padding_does_not_show() {
        for (act, order, fused) in [
            (Act::Gelu, Order::After, false),
            (Act::Tanh, Order::After, true),
            (Act::GeluTanh, Order::Before, false),
            (Act::Gelu, Order::Before, true),
        ] {
            let mut b = Builder::new(3);
            let block = block(&mut b, act, order, fused, 0.0);
            testing::check(&block, &b.store, 6);
        }
    }

    #[test]
    fn gradients_under_dropout_are_those_of_finite_differences_and_masks_belong_to_samples() {
        for (order, fused) in [(Order::After, false), (Order::Before, true)] {
            let mut b = Builder::new(3);
            let block = block(&mut b, Act::Gelu, order, fused, 0.3);
            let rng = Philox::new(5, "dropout");
            testing::check_dropped(&block, &b.store, 6, DropoutDraw { rng, draws: &[11, 12, 13, 14] });
        }
    }

    #[test]
    fn fused_projections_are_three_side_by_side() {
        let (mut apart, mut fused) = (Builder::new(3), Builder::new(3));
        let a = block(&mut apart, Act::Gelu, Order::After, false, 0.0);
        let f = block(&mut fused, Act::Gelu, Order::After, true, 0.0);
        // Put the separate weights where the fused layer has them.
        let of = |name: &str, b: &Builder| b.store.params.iter().find(|e| e.name == name).unwrap().range.clone();
        for kind in ["weight", "bias"] {
            let all: Vec<f32> = ["q", "k", "v"]
                .iter()
                .flat_map(|n| apart.store.values[of(&format!("{n}.{kind}"), &apart)].to_vec())
                .collect();
            let place = of(&format!("qkv.{kind}"), &fused);
            fused.store.values[place].copy_from_slice(&all);
        }
        for layer in ["o", "n1", "n2", "up", "down"] {
            for kind in ["weight", "bias"] {
                let name = format!("{layer}.{kind}");
                let (from, to) = (of(&name, &apart), of(&name, &fused));
                fused.store.values[to].copy_from_slice(&apart.store.values[from]);
            }
        }
        testing::same(&a, &apart.store, &f, &fused.store, 6);
    }
}
