//! What several teachers say together: the mean of their softened probabilities, weighted as the job says.

use candle_core::Tensor;

use super::super::{exp, log_softmax};
use crate::{
    Error, Result,
    nn::{host, tensor},
};

/// Probabilities `[n, classes]` and their logarithms, of logits `[n, teachers · classes]` over `temperature`.
pub(super) fn softened(logits: &Tensor, classes: usize, temperature: f64, weights: &[f64]) -> Result<(Tensor, Tensor)> {
    let (n, width) = logits.dims2()?;
    let teachers = width / classes.max(1);
    if teachers <= 1 {
        let log_p = log_softmax(&(logits / temperature)?)?;
        return Ok((exp(&log_p)?, log_p));
    }
    let whole: f64 = weights.iter().sum();
    let mut p = vec![0.0f32; n * classes];
    for teacher in 0..teachers {
        let one = logits.narrow(1, teacher * classes, classes)?.contiguous()?;
        let weight = if whole > 0.0 { weights.get(teacher).map_or(0.0, |w| w / whole) } else { 1.0 / teachers as f64 };
        let one = exp(&log_softmax(&(one / temperature)?)?)?;
        p.iter_mut().zip(host(&one)?.iter()).for_each(|(sum, v)| *sum += weight as f32 * v);
    }
    // What nobody expects counts nothing, and has a logarithm all the same.
    let log_p = p.iter().map(|v| libm::logf(v.max(f32::MIN_POSITIVE))).collect();
    Ok((tensor(p, &[n, classes])?, tensor(log_p, &[n, classes])?))
}

/// Whether the job has a weight for each of its teachers, or none.
///
/// # Errors
/// Another number of weights, or nothing but zeros.
pub(super) fn check(weights: &[f64], teachers: usize) -> Result<()> {
    let hint = "write one for each of `nets.teacher`, `nets.teacher_2` and so on, or none; one at least is above 0";
    if !weights.is_empty() && weights.len() != teachers {
        let message = format!("`objective.teacher_weights` has {} numbers for {teachers} teachers", weights.len());
        return Err(Error::user(message, hint));
    }
    if !weights.is_empty() && weights.iter().all(|w| *w <= 0.0) {
        return Err(Error::user("all of `objective.teacher_weights` are zero", hint));
    }
    Ok(())
}
