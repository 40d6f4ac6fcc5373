//! Dropout whose mask is a function of the sample's draw and the element within the sample.

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Mask, Pass, Tape, array, host};
#[cfg(feature = "cuda")]
use crate::gpu::{
    either,
    ops::{self, Dropped},
};
use crate::{Error, Result};

/// Zeroes an element with probability `p` and scales the others by `1/(1−p)` (Srivastava et al., 2014).
#[derive(Debug)]
pub struct Dropout {
    /// Probability.
    pub p: f32,
    /// Which dropout of the network this is.
    pub site: u32,
}

impl Dropout {
    /// What is left: of values on the way forward, of gradients on the way back. A mask is drawn again there, as
    /// [`Mask`]'s are.
    fn left(&self, x: &Array, pass: &Pass<'_>) -> Result<Array> {
        let Self { p, site } = *self;
        let Some(draw) = pass.dropout.filter(|_| p > 0.0) else { return Ok(x.clone()) };
        let samples = draw.draws.len();
        let own = x.count() / samples.max(1);
        if own * samples != x.count() {
            return Err(Error::Internal("dropout was given another number of samples than draws".into()));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let dropped = Dropped::new(x.device(), draw.rng, site, p, draw.draws)?;
            let elements = vec![own; samples];
            let y = either!(x, |x| x.made(|device, x| ops::dropout_from(device, x, &dropped, &elements)))?;
            return Ok(y.into());
        }
        let mut values = host(x)?.to_vec();
        let drops = Mask { p, site }.of(pass, samples)?;
        values.par_chunks_exact_mut(own.max(1)).zip(drops).for_each(|(own, drops)| {
            drops.into_iter().for_each(|mut drops| drops.scale(own));
        });
        array(values, x.dims())
    }
}

impl Layer for Dropout {
    fn forward(&self, x: &Array, pass: &Pass<'_>, _: &mut Tape) -> Result<Array> {
        self.left(x, pass)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        _: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        if need_dx { self.left(dy, pass).map(Some) } else { Ok(None) }
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
