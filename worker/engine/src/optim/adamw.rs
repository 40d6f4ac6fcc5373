//! AdamW (Loshchilov and Hutter, 2019), as in PyTorch: decay is applied to the value before the step.

use rayon::prelude::*;
use tl_proto::spec::OptimizerSection;

#[cfg(feature = "cuda")]
use super::Lying;
use super::{Group, Moments, Optimizer, Rate, power};
#[cfg(feature = "cuda")]
use crate::gpu::{Fault, ops};
use crate::num::simd::vectorised;

pub(super) const ENTRY: Optimizer = Optimizer {
    name: "adamw",
    doc: "Adam with decoupled weight decay",
    init,
    step,
    #[cfg(feature = "cuda")]
    placed,
};

fn init(n: usize) -> Moments {
    Moments { first: vec![0.0; n], second: vec![0.0; n], ..Moments::default() }
}

fn step(o: &OptimizerSection, moments: &mut Moments, values: &mut [f32], mean: &[f32], groups: &[Group], rate: Rate) {
    for group in groups {
        let factors = factors(o, moments, group, rate);
        let at = group.values.clone();
        let parts = values[at.clone()].par_chunks_mut(TASK).zip(mean[group.gradient.clone()].par_chunks(TASK));
        let state = moments.first[at.clone()].par_chunks_mut(TASK).zip(moments.second[at].par_chunks_mut(TASK));
        parts.zip(state).for_each(|((values, g), (m, v))| update(values, g, m, v, factors));
    }
}

#[cfg(feature = "cuda")]
fn placed(
    o: &OptimizerSection,
    moments: &mut Moments,
    there: Lying<'_>,
    groups: &[Group],
    rate: Rate,
) -> Result<(), Fault> {
    let Lying { device, mean, values, first, second } = there;
    let second = second.ok_or_else(|| Fault::Shape("AdamW without second moments".into()))?;
    for group in groups {
        let f = factors(o, moments, group, rate);
        let how = ops::AdamW {
            first: (f.b1, f.n1),
            second: (f.b2, f.n2),
            eps: f.eps,
            keep: f.keep,
            rate: f.rate,
            root: f.c2,
        };
        let at = group.gradient.clone();
        ops::adamw(device, [&mut *values, &mut *first, &mut *second], mean, (at.clone(), at), how)?;
    }
    Ok(())
}

/// What is the same for all numbers of a group in one more step of theirs, which is counted.
fn factors(o: &OptimizerSection, moments: &mut Moments, group: &Group, rate: Rate) -> Factors {
    let (b1, b2) = (rate.momentum.unwrap_or(o.beta1), o.beta2);
    // Subtracted in f64: in f32 the weight of a new square would be wrong in its fifth digit.
    let (n1, n2, eps) = ((1.0 - b1) as f32, (1.0 - b2) as f32, o.eps as f32);
    let (b1, b2) = (b1 as f32, b2 as f32);
    let products = moments.products.entry(group.values.start).or_insert([1.0; 2]);
    products[0] *= o.beta1;
    products[1] *= o.beta2;
    let updates = moments.updates.entry(group.values.start).or_default();
    *updates += 1;
    // Where momentum moves, fastai and PyTorch correct by the momentum of the moment, to the power of the steps.
    let c1 = 1.0 - rate.momentum.map_or(products[0], |m| power(m, *updates));
    let c2 = libm::sqrt(1.0 - products[1]) as f32;
    let lr = rate.lr * group.lr_scale;
    let keep = if group.decays { (1.0 - lr * o.weight_decay) as f32 } else { 1.0 };
    let rate = (lr / c1) as f32;
    Factors { b1, n1, b2, n2, eps, keep, rate, c2 }
}

/// Numbers of one task; each is updated by itself.
const TASK: usize = 1 << 14;

/// See [`factors`].
#[derive(Clone, Copy)]
struct Factors {
    b1: f32,
    n1: f32,
    b2: f32,
    n2: f32,
    eps: f32,
    keep: f32,
    rate: f32,
    c2: f32,
}

vectorised! {
    fn update(values: &mut [f32], mean: &[f32], first: &mut [f32], second: &mut [f32], f: Factors) {
        for (((value, g), m), v) in values.iter_mut().zip(mean).zip(first).zip(second) {
            *m = f.b1 * *m + f.n1 * g;
            *v = f.b2 * *v + f.n2 * g * g;
            *value = *value * f.keep - f.rate * *m / (v.sqrt() / f.c2 + f.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch.optim.AdamW keeps a step count per parameter: the first update of one that was frozen until now is
    /// corrected as a first update, whatever others have done before.
    #[test]
    fn what_is_unfrozen_late_starts_its_own_correction() {
        let o = OptimizerSection { weight_decay: 0.0, ..OptimizerSection::default() };
        let (mut values, mut moments) = (vec![0.0f32; 2], init(2));
        let group = |i: usize| Group { values: i..i + 1, gradient: i..i + 1, lr_scale: 1.0, decays: false };
        for _ in 0..50 {
            step(&o, &mut moments, &mut values, &[1.0, 1.0], &[group(0)], 0.1.into());
        }
        step(&o, &mut moments, &mut values, &[1.0, 1.0], &[group(0), group(1)], 0.1.into());
        // A first step of Adam is the rate, whatever the gradient.
        assert!((values[1] + 0.1).abs() < 1e-5, "{values:?}");
    }

    #[test]
    fn two_steps_are_those_of_the_paper_in_f64() {
        let o = OptimizerSection { weight_decay: 0.1, ..OptimizerSection::default() };
        let (mut values, mut moments) = (vec![1.0f32, -2.0], init(2));
        let group = Group { values: 0..2, gradient: 0..2, lr_scale: 0.5, decays: true };
        let (mut want, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
        for (t, g) in [[0.5f32, -1.0], [0.25, 3.0]].into_iter().enumerate() {
            step(&o, &mut moments, &mut values, &g, std::slice::from_ref(&group), 0.02.into());
            for i in 0..2 {
                let g = f64::from(g[i]);
                want[i] -= 0.01 * 0.1 * want[i];
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t as i32 + 1)), v[i] / (1.0 - 0.999f64.powi(t as i32 + 1)));
                want[i] -= 0.01 * mh / (vh.sqrt() + 1e-8);
                assert!(
                    (f64::from(values[i]) - want[i]).abs() < 2e-7,
                    "step {t} element {i}: {} {}",
                    values[i],
                    want[i]
                );
            }
        }
    }

    /// fastai's `adam_step` with its settings of a one-cycle stage, written out in f64: momentum moves, and the
    /// correction is 1 − m_t^t.
    #[test]
    fn momentum_that_moves_is_corrected_as_in_fastai() {
        let o = OptimizerSection { beta2: 0.99, eps: 1e-5, weight_decay: 0.01, ..OptimizerSection::default() };
        let (mut values, mut moments) = (vec![0.5f32], init(1));
        let group = Group { values: 0..1, gradient: 0..1, lr_scale: 1.0, decays: true };
        let (mut want, mut m, mut v) = (0.5f64, 0.0, 0.0);
        for (t, (momentum, g)) in [(0.95, 0.3f32), (0.9, -0.2), (0.85, 0.7), (0.9, 0.1)].into_iter().enumerate() {
            let rate = Rate { lr: 0.01, momentum: Some(momentum) };
            step(&o, &mut moments, &mut values, &[g], std::slice::from_ref(&group), rate);
            let (g, n) = (f64::from(g), t as i32 + 1);
            want *= 1.0 - 0.01 * 0.01;
            m = momentum * m + (1.0 - momentum) * g;
            v = 0.99 * v + 0.01 * g * g;
            let root = (v / (1.0 - 0.99f64.powi(n))).sqrt() + 1e-5;
            want -= 0.01 / (1.0 - momentum.powi(n)) * m / root;
            assert!((f64::from(values[0]) - want).abs() < 1e-6, "step {t}: {} {want}", values[0]);
        }
    }
}
