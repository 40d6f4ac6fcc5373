//! Whole branches left out for some samples: stochastic depth (Huang et al., 2016).

use super::{Array, Gradients, Layer, Pass, Tape, array, host, precision::Rounds};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Mixed, either,
    ops::{self, Dropped},
};
use crate::{Error, Result};

/// Zeroes a sample with probability `p` and scales the others by `1/(1−p)`; which, is a function of the sample's draw.
/// The last layer of a residual branch.
#[derive(Debug)]
pub struct DropPath {
    /// Probability.
    pub p: f32,
    /// Which of the network's dropouts this is.
    pub site: u32,
}

fn scaled(x: &Array, scales: &[f32]) -> Result<Vec<f32>> {
    let input = host(x)?;
    let per_sample = input.len() / scales.len().max(1);
    let mut out = vec![0.0; input.len()];
    let samples = out.chunks_exact_mut(per_sample.max(1)).zip(input.chunks_exact(per_sample.max(1)));
    samples.zip(scales).for_each(|((out, x), s)| out.iter_mut().zip(x).for_each(|(o, x)| *o = x * s));
    Ok(out)
}

impl DropPath {
    /// What is left: of values on the way forward, of gradients on the way back. Which samples, is drawn again there.
    fn left(&self, x: &Array, pass: &Pass<'_>) -> Result<Array> {
        let Some(draw) = pass.dropout.filter(|_| self.p > 0.0) else { return Ok(x.clone()) };
        if x.dims().first() != Some(&draw.draws.len()) {
            return Err(Error::Internal("stochastic depth was given another number of samples than draws".into()));
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let dropped = Dropped::new(x.device(), draw.rng, self.site, self.p, draw.draws)?;
            let y = either!(x, |x| x.made(|device, x| ops::drop_path(device, x, &dropped)).map(Mixed::from))?;
            return pass.handed(y).map(Array::from);
        }
        let keep = 1.0 / (1.0 - self.p);
        let drawn = |id: &u64| draw.rng.stream(*id, self.site).uniform();
        let scales: Vec<f32> = draw.draws.iter().map(|id| if drawn(id) < self.p { 0.0 } else { keep }).collect();
        array(pass.precision().product(scaled(x, &scales)?), x.dims())
    }
}

impl Layer for DropPath {
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
        out.push_str("droppath;");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, Layout, testing},
        num::rng::Philox,
    };

    #[test]
    fn a_sample_is_dropped_or_not_whatever_is_beside_it_and_backward_does_the_same() {
        let store = Builder::new(1).store;
        let layout = Layout::new(&store, &[], &[]);
        let layer = DropPath { p: 0.4, site: 7 };
        let draws: Vec<u64> = (0..200).collect();
        let x = testing::array(&[200, 2, 1, 3]);
        let run = |x: &Array, draws: &[u64]| {
            let draw = DropoutDraw { rng: Philox::new(1, "dropout"), draws };
            let pass = Pass { layout: Some(&layout), dropout: Some(draw), ..Pass::eval(&store) };
            let mut tape = Tape::default();
            let y = layer.forward(x, &pass, &mut tape).unwrap();
            let dx = layer.backward(x, &pass, &mut tape, &mut Gradients::new(&layout), true).unwrap().unwrap();
            testing::assert_close(&dx, &y, 0.0);
            y
        };
        let all = run(&x, &draws);
        let some = run(&testing::part(&x, 0, 50, 20), &draws[50..70]);
        testing::assert_close(&some, &testing::part(&all, 0, 50, 20), 0.0);
        let dropped = host(&all).unwrap().chunks(6).filter(|s| s.iter().all(|v| *v == 0.0)).count();
        assert!((50..110).contains(&dropped), "{dropped} of 200");
        let eval = layer.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
        testing::assert_close(&eval, &x, 0.0);
    }
}
