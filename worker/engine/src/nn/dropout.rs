//! Dropout whose mask is a function of the sample's draw and the element within the sample.

use super::{Array, Gradients, Layer, Pass, Saved, Tape, array, host};
use crate::{Error, Result};

/// Zeroes an element with probability `p` and scales the others by `1/(1−p)` (Srivastava et al., 2014).
#[derive(Debug)]
pub struct Dropout {
    /// Probability.
    pub p: f32,
    /// Which dropout of the network this is.
    pub site: u32,
}

impl Layer for Dropout {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let Some(draw) = pass.dropout.filter(|_| self.p > 0.0) else {
            if pass.records() {
                tape.push(Saved::Values(Vec::new()));
            }
            return Ok(x.clone());
        };
        let input = host(x)?;
        let per_sample = input.len() / draw.draws.len().max(1);
        let keep = 1.0 / (1.0 - self.p);
        let mut scales = Vec::with_capacity(input.len());
        for id in draw.draws {
            let mut stream = draw.rng.stream(*id, self.site);
            scales.extend((0..per_sample).map(|_| if stream.uniform() < self.p { 0.0 } else { keep }));
        }
        if scales.len() != input.len() {
            return Err(Error::Internal("dropout was given another number of samples than draws".into()));
        }
        let out = input.iter().zip(&scales).map(|(x, s)| x * s).collect();
        if pass.records() {
            tape.push(Saved::Values(scales));
        }
        array(out, x.dims())
    }

    fn backward(
        &self,
        dy: &Array,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let scales = tape.pop_values()?;
        if !need_dx || scales.is_empty() {
            return Ok(need_dx.then(|| dy.clone()));
        }
        let dx = host(dy)?.iter().zip(&scales).map(|(g, s)| g * s).collect();
        Ok(Some(array(dx, dy.dims())?))
    }

    fn describe(&self, out: &mut String) {
        out.push_str("dropout;");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, testing},
        num::rng::Philox,
    };

    #[test]
    fn a_sample_has_the_same_mask_in_every_grain() {
        let store = Builder::new(1).store;
        let layer = Dropout { p: 0.5, site: 3 };
        let x = testing::array(&[4, 50]);
        let run = |x: &Array, draws: &[u64]| {
            let draw = DropoutDraw { rng: Philox::new(1, "dropout"), draws };
            let pass = Pass { dropout: Some(draw), ..Pass::eval(&store) };
            layer.forward(x, &pass, &mut Tape::default()).unwrap()
        };
        let all = run(&x, &[10, 11, 12, 13]);
        let one = run(&testing::part(&x, 0, 2, 1), &[12]);
        testing::assert_close(&one, &testing::part(&all, 0, 2, 1), 0.0);
        let zeros = host(&all).unwrap().iter().filter(|v| **v == 0.0).count();
        assert!((60..140).contains(&zeros), "{zeros} of 200");
    }
}
