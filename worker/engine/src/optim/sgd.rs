//! SGD with momentum, as in PyTorch: decay is added to the gradient, the first step has no history.

use tl_proto::spec::OptimizerSection;

#[cfg(feature = "cuda")]
use super::Lying;
use super::{Group, Moments, Optimizer, Rate};
#[cfg(feature = "cuda")]
use crate::gpu::{Fault, ops};

pub(super) const ENTRY: Optimizer = Optimizer {
    name: "sgd",
    doc: "gradient descent with momentum",
    init,
    step,
    #[cfg(feature = "cuda")]
    placed,
};

fn init(n: usize) -> Moments {
    Moments { first: vec![0.0; n], ..Moments::default() }
}

fn step(o: &OptimizerSection, moments: &mut Moments, values: &mut [f32], mean: &[f32], groups: &[Group], rate: Rate) {
    for group in groups {
        let (momentum, lr, decay) = factors(o, group, rate);
        let at = group.values.clone();
        let state = values[at.clone()].iter_mut().zip(&mut moments.first[at]);
        for ((value, m), g) in state.zip(&mean[group.gradient.clone()]) {
            *m = momentum * *m + (g + decay * *value);
            *value -= lr * *m;
        }
    }
}

#[cfg(feature = "cuda")]
fn placed(o: &OptimizerSection, _: &mut Moments, there: Lying<'_>, groups: &[Group], rate: Rate) -> Result<(), Fault> {
    let Lying { device, mean, values, first, .. } = there;
    for group in groups {
        let (momentum, lr, decay) = factors(o, group, rate);
        let at = group.gradient.clone();
        let how = ops::Sgd { momentum, lr, decay };
        ops::sgd(device, [&mut *values, &mut *first], mean, (at.clone(), at), how)?;
    }
    Ok(())
}

/// What is kept of the momentum so far, the rate, and what decay adds to the gradient.
fn factors(o: &OptimizerSection, group: &Group, rate: Rate) -> (f32, f32, f32) {
    let momentum = rate.momentum.unwrap_or(o.momentum) as f32;
    let lr = (rate.lr * group.lr_scale) as f32;
    let decay = if group.decays { o.weight_decay as f32 } else { 0.0 };
    (momentum, lr, decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn momentum_gathers_as_in_pytorch() {
        // torch.optim.SGD(lr=0.1, momentum=0.9) from 1.0 with gradient 1 twice: 0.9, then 0.9 - 0.1·1.9 = 0.71.
        let o = OptimizerSection { weight_decay: 0.0, ..OptimizerSection::default() };
        let (mut values, mut moments) = (vec![1.0f32], init(1));
        let group = Group { values: 0..1, gradient: 0..1, lr_scale: 1.0, decays: true };
        step(&o, &mut moments, &mut values, &[1.0], std::slice::from_ref(&group), 0.1.into());
        step(&o, &mut moments, &mut values, &[1.0], std::slice::from_ref(&group), 0.1.into());
        assert!((values[0] - 0.71).abs() < 1e-6);
    }
}
