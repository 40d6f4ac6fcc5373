//! A small step of training on a GPU, against the same step on the host: that it computes, and computes right.

use std::{sync::Arc, time::Instant};

use super::{Device, Placed};
use crate::{
    Error, Result,
    nn::{
        self, Act, Activation, BufferId, Builder, GlobalAvgPool, Gradients, Layer, Layout, Padding, Pass, Sequential,
        Store, Tape, host,
    },
    num::{pool, rng::Philox},
};

/// How far apart two numbers may lie, relative to one more than the host's: their sums have other orders.
const APART: f32 = 1e-4;

/// What the step goes through, and the shape of what comes in: the place for every kind of layer that most jobs have, so
/// that no library is missing to them that the step does without.
fn network(b: &mut Builder) -> (Sequential, [usize; 4]) {
    let layers = Sequential::default()
        .with(b.linear("pixels", (3, 16)))
        .with(Activation(Act::Gelu))
        .with(b.conv("conv", (16, 12), 3, 2, Padding::Symmetric(1)))
        .with(b.norm("norm", 12).act(Act::Silu))
        .with(GlobalAvgPool)
        .with(b.linear("hidden", (12, 24)))
        .with(Activation(Act::Silu))
        .with(b.linear("classes", (24, 10)));
    (layers, [6, 9, 11, 3])
}

/// What a step gives: outputs, the gradient of the input, and those of the weights, behind which norms leave their sums.
type Given = [Vec<f32>; 3];

/// What the numbers of each are.
const NAMES: [&str; 3] = ["an output", "a gradient of an input", "a gradient of a weight"];

struct Step {
    layers: Sequential,
    store: Store,
    layout: Layout,
    x: Vec<f32>,
    shape: [usize; 4],
}

/// Always the same numbers.
fn normal(purpose: &str, count: usize) -> Vec<f32> {
    let mut stream = Philox::new(0, purpose).stream(0, 0);
    (0..count).map(|_| stream.normal()).collect()
}

impl Step {
    /// Everything is trained, and norms take the statistics of the batch.
    fn new() -> Self {
        let mut b = Builder::new(1);
        let (layers, shape) = network(&mut b);
        let (mut params, mut norms) = (Vec::new(), Vec::new());
        layers.params(&mut params);
        layers.norms(&mut norms);
        let norms: Vec<BufferId> = norms.iter().map(|norm| norm.0).collect();
        let layout = Layout::new(&b.store, &params, &norms);
        Self { layers, store: b.store, layout, x: normal("input", shape.iter().product()), shape }
    }

    /// Forward and backward where `lay` puts what comes in.
    fn run(&self, lay: impl Fn(Vec<f32>, &[usize]) -> Result<nn::Array>) -> Result<Given> {
        let pass = Pass { layout: Some(&self.layout), ..Pass::eval(&self.store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&self.layout));
        let y = self.layers.forward(&lay(self.x.clone(), &self.shape)?, &pass, &mut tape)?;
        let dy = lay(normal("slope", y.count()), y.dims())?;
        let dx = self.layers.backward(&dy, &pass, &mut tape, &mut grads, true)?;
        let dx = dx.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))?;
        grads.come_down()?;
        let down = |array: &nn::Array| Ok::<_, Error>(host(&array.to_tensor()?)?.to_vec());
        Ok([down(&y)?, down(&dx)?, grads.flat])
    }
}

/// Runs it on the host once and on a GPU twice; the seconds of the second time, in which nothing is compiled.
///
/// # Errors
/// A library is missing or refuses, the GPU gives other numbers than the host, or other bits the second time.
pub fn step(device: &Arc<Device>) -> Result<f64> {
    let step = Step::new();
    let want = pool::run(|| step.run(nn::array))?;
    let there = |values: Vec<f32>, shape: &[usize]| -> Result<nn::Array> {
        Ok(Placed::new(device.clone(), device.upload(&values, shape)?).into())
    };
    let got = step.run(there)?;
    compare(&got, &want)?;
    let started = Instant::now();
    let again = step.run(there)?;
    let seconds = started.elapsed().as_secs_f64();
    if again != got {
        return Err(Error::Internal("a step of training gives other bits the second time".into()));
    }
    Ok(seconds)
}

fn compare(got: &Given, want: &Given) -> Result<()> {
    for ((got, want), name) in got.iter().zip(want).zip(NAMES) {
        if got.len() != want.len() {
            return Err(Error::Internal(format!("a GPU gives {} numbers instead of {}", got.len(), want.len())));
        }
        for (got, want) in got.iter().zip(want) {
            let apart = (got - want).abs();
            if apart.is_nan() || apart > APART * (1.0 + want.abs()) {
                return Err(Error::Internal(format!(
                    "{name} in a step of training is {got} and should be {want}, as on the host"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_goes_through_what_each_library_computes_and_learns_with_the_statistics_of_the_batch() {
        let (mut said, step) = (String::new(), Step::new());
        step.layers.describe(&mut said);
        // cuBLAS, cuDNN, and kernels of ours.
        for kind in ["linear:", "conv:12:(3, 3):", "norm:", "gelu;"] {
            assert!(said.contains(kind), "{kind} {said}");
        }
        assert_eq!(step.layout.norms().count(), 1);
        assert_eq!(step.layout.trained().count(), step.store.params.len());
    }

    #[test]
    fn numbers_that_lie_apart_are_named_and_so_are_those_that_are_none() {
        let step = Step::new();
        let want = step.run(nn::array).unwrap();
        assert!(want.iter().flatten().all(|v| v.is_finite()) && want.iter().all(|part| !part.is_empty()));
        compare(&want, &want).unwrap();
        for (part, name) in NAMES.iter().enumerate() {
            let other = |change: fn(f32) -> f32| {
                let mut got = want.clone();
                let last = got[part].len() - 1;
                got[part][last] = change(got[part][last]);
                compare(&got, &want).map_err(|e| e.to_string())
            };
            other(|v| v + 1e-6).unwrap();
            assert!(other(|v| v + v.abs() + 1.0).unwrap_err().contains(name));
            assert!(other(|_| f32::NAN).unwrap_err().contains("is NaN and should be"));
        }
        let mut short = want.clone();
        short[1].pop();
        assert!(compare(&short, &want).is_err());
    }
}
