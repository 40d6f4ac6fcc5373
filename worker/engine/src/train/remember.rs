//! What the head that came with the weights says of a grain's samples, beside what the network said of them as it came: the
//! loss of `[modifiers.lwf]`.

use candle_core::Tensor;

use super::{
    chain::{self, Wanted},
    net::{self, Net},
};
use crate::{
    Error, Result, eval,
    modifier::Remember,
    nn::{Gradients, Pass, Tape, tensor},
};

/// The loss, a sum over the samples, and its gradient at `features` `[n + m, …]`, which the heads take; `said` are the `n`
/// rows of logits of the network as it came, on the samples with labels. Gradients of the old head are added to `grads`.
///
/// # Errors
/// Features of another width than the head's.
pub(super) fn remember(
    net: &Net,
    features: &Tensor,
    said: &Tensor,
    how: Remember,
    pass: &Pass<'_>,
    grads: &mut Gradients<'_>,
) -> Result<(f64, Tensor)> {
    let (old, n, all) = (&net.network.old, said.dim(0)?, features.dim(0)?);
    let mut tape = Tape::default();
    let first = features.narrow(0, 0, n)?.contiguous()?;
    let logits = chain::through(old, first, pass, &mut tape)?;
    let mut loss = 0.0;
    let mut dy = Vec::new();
    for (now, before) in net::rows(&logits)?.iter().zip(net::rows(said)?) {
        let (own, gradient) = apart(now, &before, how);
        loss += own;
        dy.extend(gradient);
    }
    let dy = tensor(dy, logits.dims())?;
    let below = chain::backward(old, Wanted::of(&dy), pass, &mut tape, grads, true)?;
    let mut dx = below.ok_or_else(|| Error::Internal("the old head gave no gradient".into()))?;
    if all > n {
        let mut shape = dx.dims().to_vec();
        shape[0] = all - n;
        dx = Tensor::cat(&[&dx, &tensor(vec![0.0; shape.iter().product()], &shape)?], 0)?;
    }
    Ok((loss, dx.contiguous()?))
}

/// λ·KL(softmax(z₀/T) ‖ softmax(z/T)) of one row, and its gradient λ/T·(softmax(z/T) − softmax(z₀/T)).
fn apart(now: &[f32], before: &[f32], how: Remember) -> (f64, Vec<f32>) {
    let t = how.temperature as f32;
    let soft = |row: &[f32]| eval::softmax(&row.iter().map(|v| v / t).collect::<Vec<f32>>());
    let (p, q) = (soft(now), soft(before));
    // Both are far above the least number, but for differences of logits that no softmax tells apart.
    let log = |v: f64| libm::log(v.max(f64::MIN_POSITIVE));
    let loss = p.iter().zip(&q).map(|(p, q)| q * (log(*q) - log(*p))).fold(0.0, |sum, v| sum + v);
    let gradient = p.iter().zip(&q).map(|(p, q)| (how.weight / how.temperature * (p - q)) as f32);
    (how.weight * loss, gradient.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss_and_both_are_zero_where_nothing_changed() {
        let how = Remember { weight: 0.7, temperature: 2.0 };
        let (now, before) = ([0.3f32, -1.2, 2.0, 0.4], [1.0f32, 0.5, -0.5, 0.2]);
        let (loss, gradient) = apart(&now, &before, how);
        let exps = |row: &[f32]| row.iter().map(|v| (f64::from(*v) / 2.0).exp()).collect::<Vec<_>>();
        let (p, q) = (exps(&now), exps(&before));
        let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
        let want: f64 = (0..4).map(|i| 0.7 * q[i] / sum_q * ((q[i] / sum_q) / (p[i] / sum_p)).ln()).sum();
        assert!((loss - want).abs() < 1e-6, "{loss} {want}");
        for i in 0..4 {
            let moved = |by: f32| {
                let mut row = now;
                row[i] += by;
                apart(&row, &before, how).0
            };
            let slope = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((f64::from(gradient[i]) - slope).abs() < 1e-4, "{i}: {} {slope}", gradient[i]);
        }
        let (loss, gradient) = apart(&before, &before, how);
        assert_eq!((loss, gradient), (0.0, vec![0.0; 4]));
    }
}
