//! Optimizers, norms of gradients, dropout, rounding, and products.

use tl_engine::{
    gpu::{
        Array, Device,
        ops::{self, AdamW, Dropped, Element, Matrix, Sgd},
    },
    nn::{Builder, DropPath, Dropout, DropoutDraw},
    num::{bf16::rounded, rng::Philox, squared_norm},
    optim::{self, Group, Rate},
};
use tl_proto::spec::OptimizerSection;

use crate::{close, device, numbers, run, same, up};

#[test]
fn updates_of_runs_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let count = 900;
    let groups = [
        Group { values: 10..500, gradient: 0..490, lr_scale: 0.5, decays: true },
        Group { values: 600..897, gradient: 490..787, lr_scale: 1.0, decays: false },
    ];
    for name in ["adamw", "sgd"] {
        let o = OptimizerSection { name: name.into(), weight_decay: 0.1, ..OptimizerSection::default() };
        let optimizer = optim::find(name);
        let (mut values, mut moments) = (numbers(1, count), (optimizer.init)(count));
        let (mut value, mut first) = (up(device, &values, &[count]), device.zeros(&[count]).unwrap());
        let mut second = device.zeros(&[count]).unwrap();
        let mut products = [1.0f64; 2];
        for step in 0..3 {
            let mean = numbers(10 + step, 800);
            let g = up(device, &mean, &[800]);
            (optimizer.step)(&o, &mut moments, &mut values, &mean, &groups, Rate::from(0.02));
            products = [products[0] * o.beta1, products[1] * o.beta2];
            for group in &groups {
                let (lr, at) = (0.02 * group.lr_scale, (group.values.clone(), group.gradient.clone()));
                if name == "sgd" {
                    let decay = if group.decays { o.weight_decay as f32 } else { 0.0 };
                    let how = Sgd { momentum: o.momentum as f32, lr: lr as f32, decay };
                    ops::sgd(device, [&mut value, &mut first], &g, at, how).unwrap();
                    continue;
                }
                let how = AdamW {
                    first: (o.beta1 as f32, (1.0 - o.beta1) as f32),
                    second: (o.beta2 as f32, (1.0 - o.beta2) as f32),
                    eps: o.eps as f32,
                    keep: if group.decays { (1.0 - lr * o.weight_decay) as f32 } else { 1.0 },
                    rate: (lr / (1.0 - products[0])) as f32,
                    root: (1.0 - products[1]).sqrt() as f32,
                };
                ops::adamw(device, [&mut value, &mut first, &mut second], &g, at, how).unwrap();
            }
            same(device, &value, &values);
            same(device, &first, &moments.first);
        }
        if name == "adamw" {
            same(device, &second, &moments.second);
        }
        let how = Sgd { momentum: 0.0, lr: 0.0, decay: 0.0 };
        assert!(ops::sgd(device, [&mut value, &mut first], &second, (800..901, 0..101), how).is_err());
    }
}

#[test]
fn the_norm_of_a_gradient_has_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    for count in [1, 7, 4096, 4097, 150_001] {
        let x = numbers(1, count);
        let norm = ops::squared_norm(device, &up(device, &x, &[count])).unwrap();
        assert_eq!(norm.to_bits(), squared_norm(&x).to_bits(), "{count}: {norm}");
    }
}

#[test]
fn what_is_dropped_is_what_the_cpu_drops() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    let (rng, draws, p) = (Philox::new(3, "dropout"), [5, 1 << 35, 77], 0.3);
    let draw = DropoutDraw { rng, draws: &draws };
    let x = numbers(1, 3 * 50);
    let dropped = Dropped::new(device, rng, 9, p, &draws).unwrap();
    let want = run(&Dropout { p, site: 9 }, &store, (&x, &[3, 50]), Some(draw), false);
    let mut y = up(device, &x, &[3, 50]);
    ops::dropout(device, &mut y, &dropped, &[50; 3]).unwrap();
    same(device, &y, &want.y);
    // A sample's mask begins anew wherever its elements lie.
    let mut ragged = up(device, &x[..77], &[77]);
    ops::dropout(device, &mut ragged, &dropped, &[50, 7, 20]).unwrap();
    let scale = |sample: usize, element: usize| want.y[sample * 50 + element] / x[sample * 50 + element];
    let place = |i: usize| match i {
        0..50 => (0, i),
        50..57 => (1, i - 50),
        _ => (2, i - 57),
    };
    let expected = |i: usize| if scale(place(i).0, place(i).1) == 0.0 { 0.0 } else { x[i] * (1.0 / (1.0 - p)) };
    same(device, &ragged, &(0..77).map(expected).collect::<Vec<_>>());
    assert!(ops::dropout(device, &mut ragged, &dropped, &[50, 7, 21]).is_err());

    let draws: Vec<u64> = (0..40).collect();
    let draw = DropoutDraw { rng, draws: &draws };
    let x = numbers(2, 40 * 6);
    let want = run(&DropPath { p, site: 2 }, &store, (&x, &[40, 2, 3]), Some(draw), false);
    let dropped = Dropped::new(device, rng, 2, p, &draws).unwrap();
    same(device, &ops::drop_path(device, &up(device, &x, &[40, 2, 3]), &dropped).unwrap(), &want.y);
    assert!(want.y.contains(&0.0) && want.y.iter().any(|v| *v != 0.0));
}

#[test]
fn rounding_to_bf16_is_that_of_the_cpu_there_and_back() {
    let Some(device) = device() else { return };
    let mut x = numbers(1, 500);
    let odd = [f32::NAN, f32::INFINITY, -0.0, 3.4e38, 1e-40, 1.003_906_3, 1.011_718_8];
    x[..odd.len()].copy_from_slice(&odd);
    let want: Vec<f32> = x.iter().map(|v| rounded(*v)).collect();
    let xs = up(device, &x, &[500]);
    same(device, &ops::round_bf16(device, &xs).unwrap(), &want);
    let half = ops::to_bf16(device, &xs).unwrap();
    same(device, &ops::from_bf16(device, &half).unwrap(), &want);
}

/// `a·b` in double precision, with either given turned.
fn check<T: Element>(device: &Device, cast: impl Fn(&Array) -> Array<T>, round: fn(f32) -> f32) {
    let (batch, m, n, k) = (2, 3, 4, 5);
    let (a, b, before) = (numbers(1, batch * m * k), numbers(2, batch * k * n), numbers(3, batch * m * n));
    let turned = |x: &[f32], rows: usize, columns: usize| {
        let at = |i: usize| (i / (rows * columns)) * rows * columns + i % rows * columns + i / rows % columns;
        (0..x.len()).map(|i| x[at(i)]).collect::<Vec<f32>>()
    };
    let want: Vec<f32> = (0..batch * m * n)
        .map(|i| {
            let (which, row, column) = (i / (m * n), i / n % m, i % n);
            let product = |d: usize| {
                f64::from(round(a[(which * m + row) * k + d])) * f64::from(round(b[(which * k + d) * n + column]))
            };
            (0..k).map(product).sum::<f64>() as f32
        })
        .collect();
    for (left, right) in [(false, false), (true, false), (false, true), (true, true)] {
        let a = if left { up(device, &turned(&a, m, k), &[batch, k, m]) } else { up(device, &a, &[batch, m, k]) };
        let b = if right { up(device, &turned(&b, k, n), &[batch, n, k]) } else { up(device, &b, &[batch, k, n]) };
        let (a, b) = (cast(&a), cast(&b));
        let (mut first, mut second) = (Matrix::of(&a), Matrix::of(&b));
        first = if left { first.turned() } else { first };
        second = if right { second.turned() } else { second };
        for add in [false, true] {
            let mut c = up(device, &before, &[batch, m, n]);
            ops::product(device, (first, second), (batch, m, n, k), &mut c, add).unwrap();
            let sum = want.iter().zip(&before).map(|(w, b)| if add { w + b } else { *w });
            close(device, &c, &sum.collect::<Vec<_>>(), 1e-5);
        }
        let mut c = device.zeros(&[batch, m, n]).unwrap();
        assert!(ops::product(device, (first, second), (batch + 1, m, n, k), &mut c, false).is_err());
        assert!(ops::product(device, (first, second), (batch, m + 1, n, k), &mut c, false).is_err());
        // What would come round to the beginning again is not inside either.
        for far in [Matrix { step: usize::MAX, ..second }, Matrix { stride: usize::MAX / 2, step: 2, ..second }] {
            assert!(ops::product(device, (first, far), (batch, m, n, k), &mut c, false).is_err());
        }
    }
}

#[test]
fn products_of_turned_and_batched_matrices_are_those_of_the_definition_in_both_types() {
    let Some(device) = device() else { return };
    check(device, |x| device.copy(x).unwrap(), |v| v);
    check(device, |x| ops::to_bf16(device, x).unwrap(), rounded);
}
