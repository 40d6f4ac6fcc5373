//! Batch-norm and layer norm.

use tl_engine::{
    gpu::ops::{self, Affine},
    nn::{Act, BatchNorm, BufferId, Builder, ParamId},
};

use crate::{close, device, numbers, run, same, up};

const EPS: f32 = 1e-3;

/// A store whose norm has been trained for a while.
fn norm(c: usize, act: Act) -> (Builder, BatchNorm) {
    let mut b = Builder::new(1);
    let layer = b.norm_eps("n", c, EPS).act(act);
    b.store.values = numbers(5, 2 * c);
    b.store.buffer_values = numbers(6, 2 * c);
    b.store.buffer_values[c..].iter_mut().for_each(|v| *v = v.abs() + 0.5);
    (b, layer)
}

#[test]
fn statistics_of_the_batch_are_those_of_the_cpu_and_so_are_gradients_and_deposits() {
    let Some(device) = device() else { return };
    for (rows, c, act) in
        [(5, 3, Act::None), (64, 33, Act::Relu), (65, 5, Act::Silu), (700, 40, Act::Relu6), (1100, 2, Act::None)]
    {
        let (b, layer) = norm(c, act);
        // A mean that is far larger than the spread.
        let x: Vec<f32> = numbers(7, rows * c).iter().map(|v| v * 0.5 + 30.0).collect();
        let want = run(&layer, &b.store, (&x, &[rows, c]), None, true);
        let [gamma, beta] = [0, 1].map(|i| up(device, b.store.param(ParamId(i)), &[c]));
        let affine = Affine { gamma: &gamma, beta: &beta };
        let xs = up(device, &x, &[rows, c]);
        let moments = ops::moments(device, &xs).unwrap();
        assert_eq!(device.download(&moments).unwrap()[0], rows as f64);
        let stats = ops::statistics(device, &moments, EPS).unwrap();
        close(device, &ops::normalise(device, &xs, &stats, affine, act).unwrap(), &want.y, 3e-5);

        let dy = up(device, &want.dy, &[rows, c]);
        let slopes = ops::slopes(device, &dy, &xs, &stats, affine, act).unwrap();
        let (mut dgamma, mut dbeta) = (device.zeros(&[c]).unwrap(), device.zeros(&[c]).unwrap());
        ops::scale_gradient(device, &slopes, &stats, &mut dgamma).unwrap();
        ops::shift_gradient(device, &slopes, &mut dbeta).unwrap();
        close(device, &dgamma, &want.flat[..c], 2e-5);
        close(device, &dbeta, &want.flat[c..2 * c], 2e-5);
        let mut slot = device.zeros(&[2 * c + 1]).unwrap();
        let [mean, var] = [0, 1].map(|i| up(device, b.store.buffer(BufferId(i)), &[c]));
        let running = ops::running_statistics(device, &mean, &var, EPS).unwrap();
        ops::deposit(device, &stats, &running, rows, &mut slot).unwrap();
        close(device, &slot, &want.flat[2 * c..], 1e-6);
        let dx = ops::through(device, slopes, &xs, &stats, &gamma, rows as f64).unwrap();
        close(device, &dx, &want.dx, 5e-5);
    }
}

#[test]
fn running_statistics_give_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let (rows, c) = (70, 9);
    for act in [Act::None, Act::Relu, Act::Gelu] {
        let (b, layer) = norm(c, act);
        let x = numbers(8, rows * c);
        let want = run(&layer, &b.store, (&x, &[rows, c]), None, false);
        let [gamma, beta] = [0, 1].map(|i| up(device, b.store.param(ParamId(i)), &[c]));
        let affine = Affine { gamma: &gamma, beta: &beta };
        let [mean, var] = [0, 1].map(|i| up(device, b.store.buffer(BufferId(i)), &[c]));
        let (xs, dy) = (up(device, &x, &[rows, c]), up(device, &want.dy, &[rows, c]));
        let stats = ops::running_statistics(device, &mean, &var, EPS).unwrap();
        same(device, &ops::normalise(device, &xs, &stats, affine, act).unwrap(), &want.y);
        let slopes = ops::slopes(device, &dy, &xs, &stats, affine, act).unwrap();
        let (mut dgamma, mut dbeta) = (device.zeros(&[c]).unwrap(), device.zeros(&[c]).unwrap());
        ops::scale_gradient(device, &slopes, &stats, &mut dgamma).unwrap();
        ops::shift_gradient(device, &slopes, &mut dbeta).unwrap();
        close(device, &dgamma, &want.flat[..c], 1e-5);
        close(device, &dbeta, &want.flat[c..], 1e-5);
        same(device, &ops::through_fixed(device, slopes.dz, &stats, &gamma).unwrap(), &want.dx);
        same(device, &ops::fixed_back(device, &dy, Some(&xs), &stats, affine, act).unwrap(), &want.dx);
        match ops::fixed_back(device, &dy, None, &stats, affine, act) {
            Ok(dx) => same(device, &dx, &want.dx),
            Err(_) => assert_ne!(act, Act::None, "without an activation no input is needed"),
        }
    }
}

#[test]
fn moments_of_two_grains_join_to_those_of_both() {
    let Some(device) = device() else { return };
    let (c, rows) = (4, [130, 70]);
    let x: Vec<f32> = numbers(9, 200 * c).iter().map(|v| v + 100.0).collect();
    let moments = |x: &[f32]| {
        let xs = up(device, x, &[x.len() / c, c]);
        device.download(&ops::moments(device, &xs).unwrap()).unwrap()
    };
    let (a, b, all) = (moments(&x[..rows[0] * c]), moments(&x[rows[0] * c..]), moments(&x));
    for i in 1..=c {
        let delta = b[i] - a[i];
        let mean = a[i] + delta * b[0] / 200.0;
        let square = a[c + i] + b[c + i] + delta * delta * a[0] * b[0] / 200.0;
        // The moments of a block are f32.
        assert!((mean - all[i]).abs() < 1e-4 && (square - all[c + i]).abs() < 1e-3 * square, "{i}");
    }
}

#[test]
fn layer_norm_has_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    for (rows, c) in [(1, 1), (9, 16), (70, 45), (8, 384)] {
        let mut b = Builder::new(1);
        let layer = b.layer_norm("n", c, 1e-5);
        b.store.values = numbers(3, 2 * c);
        let x = numbers(4, rows * c);
        let want = run(&layer, &b.store, (&x, &[rows, c]), None, false);
        let [gamma, beta] = [0, 1].map(|i| up(device, b.store.param(ParamId(i)), &[c]));
        let (y, kept) = ops::layer_norm(device, &up(device, &x, &[rows, c]), &gamma, &beta, 1e-5).unwrap();
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &[rows, c]);
        same(device, &ops::layer_norm_back(device, &dy, (&kept.hat, &kept.inverse), &gamma).unwrap(), &want.dx);
        let (mut dgamma, mut dbeta) = (up(device, &vec![1.0; c], &[c]), device.zeros(&[c]).unwrap());
        ops::add_products(device, &dy, &kept.hat, &mut dgamma).unwrap();
        ops::add_sums(device, &dy, &mut dbeta).unwrap();
        close(device, &dgamma, &want.flat[..c].iter().map(|g| g + 1.0).collect::<Vec<_>>(), 1e-5);
        close(device, &dbeta, &want.flat[c..], 1e-5);
    }
}
