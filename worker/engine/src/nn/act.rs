//! Rectifiers, with derivative 0 at 0 as in PyTorch.

use candle_core::Tensor;

use super::{Gradients, Layer, Pass, Saved, Tape, host, tensor};
use crate::Result;

/// max(x, 0)
#[derive(Debug)]
pub struct Relu;

/// min(max(x, 0), 6)
#[derive(Debug)]
pub struct Relu6;

fn forward(x: &Tensor, pass: &Pass<'_>, tape: &mut Tape, limit: f32) -> Result<Tensor> {
    let input = host(x)?;
    if pass.records() {
        tape.push(Saved::Mask(input.iter().map(|v| *v > 0.0 && *v < limit).collect()));
    }
    // `max` would turn a NaN into a zero and hide it.
    let out = input
        .iter()
        .map(|v| {
            if *v < 0.0 {
                0.0
            } else if *v > limit {
                limit
            } else {
                *v
            }
        })
        .collect();
    tensor(out, x.dims())
}

fn backward(dy: &Tensor, tape: &mut Tape, need_dx: bool) -> Result<Option<Tensor>> {
    let mask = tape.take(|s| if let Saved::Mask(m) = s { Some(m) } else { None })?;
    if !need_dx {
        return Ok(None);
    }
    let g = host(dy)?;
    let dx = g.iter().zip(mask).map(|(g, open)| if open { *g } else { 0.0 }).collect();
    Ok(Some(tensor(dx, dy.dims())?))
}

macro_rules! rectifier {
    ($name:ident, $limit:expr, $text:literal) => {
        impl Layer for $name {
            fn forward(&self, x: &Tensor, pass: &Pass<'_>, tape: &mut Tape) -> Result<Tensor> {
                forward(x, pass, tape, $limit)
            }

            fn backward(
                &self,
                dy: &Tensor,
                _: &Pass<'_>,
                tape: &mut Tape,
                _: &mut Gradients,
                need_dx: bool,
            ) -> Result<Option<Tensor>> {
                backward(dy, tape, need_dx)
            }

            fn describe(&self, out: &mut String) {
                out.push_str($text);
            }
        }
    };
}
rectifier!(Relu, f32::INFINITY, "relu;");
rectifier!(Relu6, 6.0, "relu6;");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences_away_from_the_kinks() {
        let store = Builder::new(1).store;
        testing::check_gradients(&Relu, &store, &[3, 7]);
        testing::check_gradients(&Relu6, &store, &[3, 7]);
    }

    #[test]
    fn the_derivative_at_a_kink_is_zero_and_nan_stays() {
        let store = Builder::new(1).store;
        let layout = crate::nn::Layout::new(&store, &[], &[]);
        let pass = Pass { store: &store, layout: Some(&layout), dropout: None };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let x = tensor(vec![0.0, 6.0, 3.0, f32::NAN], &[1, 4]).unwrap();
        let y = Relu6.forward(&x, &pass, &mut tape).unwrap();
        assert!(host(&y).unwrap()[3].is_nan());
        let ones = tensor(vec![1.0; 4], &[1, 4]).unwrap();
        let dx = Relu6.backward(&ones, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        assert_eq!(host(&dx).unwrap()[..3], [0.0, 0.0, 1.0]);
    }
}
