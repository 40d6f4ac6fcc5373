//! AdamW (Loshchilov and Hutter, 2019), as in PyTorch: decay is applied to the value before the step.

use tl_proto::spec::OptimizerSection;

use super::{Group, Moments, Optimizer};

pub(super) const ENTRY: Optimizer = Optimizer { name: "adamw", doc: "Adam with decoupled weight decay", init, step };

fn init(n: usize) -> Moments {
    Moments { first: vec![0.0; n], second: vec![0.0; n], ..Moments::default() }
}

fn step(o: &OptimizerSection, moments: &mut Moments, values: &mut [f32], mean: &[f32], groups: &[Group], lr: f64) {
    let (b1, b2, eps) = (o.beta1 as f32, o.beta2 as f32, o.eps as f32);
    for group in groups {
        let products = moments.products.entry(group.values.start).or_insert([1.0; 2]);
        products[0] *= o.beta1;
        products[1] *= o.beta2;
        let (c1, c2) = (1.0 - products[0], libm::sqrt(1.0 - products[1]) as f32);
        let lr = lr * group.lr_scale;
        let keep = if group.decays { (1.0 - lr * o.weight_decay) as f32 } else { 1.0 };
        let rate = (lr / c1) as f32;
        let at = group.values.clone();
        let state = moments.first[at.clone()].iter_mut().zip(&mut moments.second[at.clone()]);
        for ((value, g), (m, v)) in values[at].iter_mut().zip(&mean[group.gradient.clone()]).zip(state) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *value = *value * keep - rate * *m / (v.sqrt() / c2 + eps);
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
            step(&o, &mut moments, &mut values, &[1.0, 1.0], &[group(0)], 0.1);
        }
        step(&o, &mut moments, &mut values, &[1.0, 1.0], &[group(0), group(1)], 0.1);
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
            step(&o, &mut moments, &mut values, &g, std::slice::from_ref(&group), 0.02);
            for i in 0..2 {
                let g = f64::from(g[i]);
                want[i] -= 0.01 * 0.1 * want[i];
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t as i32 + 1)), v[i] / (1.0 - 0.999f64.powi(t as i32 + 1)));
                want[i] -= 0.01 * mh / (vh.sqrt() + 1e-8);
                assert!(
                    (f64::from(values[i]) - want[i]).abs() < 1e-5,
                    "step {t} element {i}: {} {}",
                    values[i],
                    want[i]
                );
            }
        }
    }
}
