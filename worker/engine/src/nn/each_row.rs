//! Layers on each row of a sequence by itself, as if it were a sample.

use super::{Array, BufferId, Gradients, Layer, ParamId, Pass, Ragged, Sequential, Tape};
use crate::Result;

/// Framed `[n, 1 + t, c]` to framed `[n, 1 + t, d]`: the layers see the real rows of all samples, `[Σ lengths, c]`, and
/// neither headers nor padding.
pub struct EachRow(pub Sequential);

impl Layer for EachRow {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (ragged, rows) = Ragged::unpack(x)?;
        let draws = ragged.draws(pass);
        let y = self.0.forward(&rows, &pass.with_draws(&draws), tape)?;
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
        let dx = self.0.backward(&ragged.pack(dy)?, &pass.with_draws(&draws), tape, grads, need_dx)?;
        dx.map(|dx| ragged.frame(&dx, false)).transpose()
    }

    fn leaves(&self) -> usize {
        self.0.leaves()
    }

    fn describe(&self, out: &mut String) {
        out.push_str("rows(");
        self.0.describe(out);
        out.push(')');
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.0.params(out);
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        self.0.norms(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Act, Activation, Builder, Dropout, DropoutDraw, Relu, sequence::testing},
        num::rng::Philox,
    };

    #[test]
    fn gradients_are_those_of_finite_differences_and_padding_does_not_show() {
        let mut b = Builder::new(5);
        let layer = EachRow(Sequential::default().with(b.linear("l", (3, 5))).with(Relu));
        testing::check(&layer, &b.store, 3);
    }

    #[test]
    fn what_is_dropped_of_a_row_depends_on_its_sample_and_its_place_alone() {
        let mut b = Builder::new(5);
        let inner = Sequential::default().with(b.linear("l", (3, 3))).with(Activation(Act::Tanh));
        let layer = EachRow(inner.with(Dropout { p: 0.4, site: 7 }));
        let draw = DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[11, 12, 13, 14] };
        testing::check_dropped(&layer, &b.store, 3, draw);
    }
}
