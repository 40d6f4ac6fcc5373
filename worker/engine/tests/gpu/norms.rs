//! Batch-norm and layer norm.

use std::sync::Arc;

use tl_engine::{
    Error, Result,
    gpu::{
        Array, Device, Placed,
        ops::{self, Affine, Slopes},
    },
    nn::{
        self, Act, BatchNorm, BufferId, Builder, Gradients, Grains, Join, Layer, Layout, Packs, ParamId, Pass, Store,
        Tape,
    },
    num::bf16::rounded,
};
use tl_proto::spec::Precision;

use crate::{bf16::coarse, close, device, layers::down, numbers, run, same, shared, up};

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
        same(device, &ops::own_statistics(device, &xs, EPS).unwrap(), &device.download(&stats).unwrap());
        close(device, &ops::normalise(device, &xs, &stats, affine, act).unwrap(), &want.y, 3e-5);

        let dy = up(device, &want.dy, &[rows, c]);
        let slopes = ops::slopes(device, &dy, &xs, &stats, affine, act).unwrap();
        let (mut dgamma, mut dbeta) = (device.zeros(&[c]).unwrap(), device.zeros(&[c]).unwrap());
        ops::scale_gradient(device, &slopes, &stats, &mut dgamma).unwrap();
        ops::shift_gradient(device, &slopes, &mut dbeta).unwrap();
        close(device, &dgamma, &want.flat[..c], 2e-5);
        close(device, &dbeta, &want.flat[c..2 * c], 2e-5);
        let mut slot = device.zeros(&[2 * c + 1]).unwrap();
        // The means lie behind other buffers.
        let buffers = [&[9.0; 5][..], &b.store.buffer_values].concat();
        let buffers = up(device, &buffers, &[buffers.len()]);
        ops::deposit(device, &stats, (&buffers, 5), rows, &mut slot).unwrap();
        close(device, &slot, &want.flat[2 * c..], 1e-6);
        assert!(ops::deposit(device, &stats, (&buffers, 6 + c), rows, &mut slot).is_err());
        let dx = ops::through(device, &dy, &xs, &slopes, &stats, affine, act).unwrap();
        close(device, &dx, &want.dx, 5e-5);
        assert!(ops::through(device, &gamma, &xs, &slopes, &stats, affine, act).is_err());
        assert!(ops::slopes(device, &gamma, &xs, &stats, affine, act).is_err());
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
        // Sums that are nothing leave the statistics alone.
        let none = Slopes { sums: device.zeros(&[2 * c]).unwrap(), count: rows as f64 };
        same(device, &ops::through(device, &dy, &xs, &none, &stats, affine, act).unwrap(), &want.dx);
        same(device, &ops::fixed_back(device, &dy, &xs, &stats, affine, act).unwrap(), &want.dx);
        if act == Act::None {
            same(device, &ops::fixed_back(device, &dy, &dy, &stats, affine, act).unwrap(), &want.dx);
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
fn norms_of_bf16_are_those_of_f32_rounded_once_and_their_sums_are_the_same() {
    let Some(device) = device() else { return };
    let wide = |x: &Array<_>| ops::from_bf16(device, x).unwrap();
    let once = |half: &Array<_>, full: &Array| same(device, &wide(half), &coarse(&device.download(full).unwrap()));
    // Channels by one, by four and by eight, and blocks of rows that end anywhere; of many channels slopes go by two.
    for (rows, c, act) in [
        (1, 1, Act::None),
        (5, 3, Act::Silu),
        (64, 6, Act::Relu),
        (65, 8, Act::Gelu),
        (71, 33, Act::None),
        (200, 10, Act::Relu6),
        (700, 40, Act::Silu),
        (130, 5, Act::Tanh),
        (66, 44, Act::None),
        (70, 12, Act::Relu),
        (33, 24, Act::Gelu),
        (9, 16, Act::Sigmoid),
        (3, 1 << 17, Act::Relu),
    ] {
        let (b, _) = norm(c, act);
        let [gamma, beta] = [0, 1].map(|i| up(device, b.store.param(ParamId(i)), &[c]));
        let affine = Affine { gamma: &gamma, beta: &beta };
        let [half_x, half_dy] = [(7, 0.5), (8, 0.0)].map(|(seed, shift): (u32, f32)| {
            let values: Vec<f32> = numbers(seed, rows * c).iter().map(|v| v + shift).collect();
            ops::to_bf16(device, &up(device, &values, &[rows, c])).unwrap()
        });
        let (x, dy) = (wide(&half_x), wide(&half_dy));

        let moments = ops::moments(device, &x).unwrap();
        let half_moments = ops::moments(device, &half_x).unwrap();
        assert_eq!(device.download(&half_moments).unwrap(), device.download(&moments).unwrap());
        let [mean, var] = [0, 1].map(|i| up(device, b.store.buffer(BufferId(i)), &[c]));
        for stats in [
            ops::statistics(device, &moments, EPS).unwrap(),
            ops::running_statistics(device, &mean, &var, EPS).unwrap(),
        ] {
            let y = ops::normalise(device, &x, &stats, affine, act).unwrap();
            once(&ops::normalise(device, &half_x, &stats, affine, act).unwrap(), &y);
            let slopes = ops::slopes(device, &dy, &x, &stats, affine, act).unwrap();
            let half_slopes = ops::slopes(device, &half_dy, &half_x, &stats, affine, act).unwrap();
            let told = |slopes: &Slopes| (device.download(&slopes.sums).unwrap(), slopes.count);
            assert_eq!(told(&half_slopes), told(&slopes), "{rows} rows of {c}");
            let dx = ops::through(device, &dy, &x, &slopes, &stats, affine, act).unwrap();
            once(&ops::through(device, &half_dy, &half_x, &half_slopes, &stats, affine, act).unwrap(), &dx);
            let fixed = ops::fixed_back(device, &dy, &x, &stats, affine, act).unwrap();
            once(&ops::fixed_back(device, &half_dy, &half_x, &stats, affine, act).unwrap(), &fixed);
            // Slopes in f32 of an input in bf16.
            let mixed = ops::slopes(device, &dy, &half_x, &stats, affine, act).unwrap();
            assert_eq!(told(&mixed), told(&slopes), "{rows} rows of {c}");
            once(&ops::through(device, &dy, &half_x, &mixed, &stats, affine, act).unwrap(), &dx);
            once(&ops::fixed_back(device, &dy, &half_x, &stats, affine, act).unwrap(), &fixed);
            assert!(ops::slopes(device, &half_dy, &x, &stats, affine, act).is_err());
            assert!(ops::through(device, &half_dy, &x, &slopes, &stats, affine, act).is_err());
            assert!(ops::fixed_back(device, &half_dy, &x, &stats, affine, act).is_err());
        }
    }
}

#[test]
fn threads_that_have_several_rows_have_the_channels_of_each() {
    let Some(device) = device() else { return };
    // So many that a thread has two words, of eight and of four channels, of which a row has three, and one of each.
    for (rows, c) in [(175_000, 24), (180_000, 12), (150_000, 7)] {
        let x: Vec<f32> = (0..rows * c).map(|i| (i % 251) as f32 - 125.0).collect();
        let [mean, inverse, gamma, beta] = [1, 2, 3, 4].map(|seed| numbers(seed, c));
        let stats = up(device, &[&mean[..], &inverse, &mean].concat(), &[3 * c]);
        let [scale, shift] = [&gamma, &beta].map(|values| up(device, values, &[c]));
        let affine = Affine { gamma: &scale, beta: &shift };
        let full = up(device, &x, &[rows, c]);
        let half = ops::to_bf16(device, &full).unwrap();
        let scales: Vec<f32> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
        let value = |i: usize| (x[i] - mean[i % c]).mul_add(scales[i % c], beta[i % c]).max(0.0);
        let want: Vec<f32> = (0..x.len()).map(value).collect();
        same(device, &ops::normalise(device, &full, &stats, affine, Act::Relu).unwrap(), &want);
        let low: Vec<f32> = want.iter().map(|v| rounded(*v)).collect();
        same(device, &ops::normalise(device, &half, &stats, affine, Act::Relu).unwrap(), &low);
        let back = ops::fixed_back(device, &half, &half, &stats, affine, Act::None).unwrap();
        let want: Vec<f32> = x.iter().enumerate().map(|(i, v)| rounded(v * scales[i % c])).collect();
        same(device, &back, &want);
    }
}

#[test]
fn deposits_are_made_around_the_running_means_of_their_step() {
    let Some(device) = shared() else { return };
    let (c, shape) = (5, [3, 2, 2, 5]);
    let (b, layer) = norm(c, Act::Relu);
    let (mut store, packs, count) = (b.store, Packs::default(), shape.iter().product());
    let layout = Layout::new(&store, &[ParamId(0), ParamId(1)], &[BufferId(0)]);
    for step in 0..3u32 {
        store.buffer_values.iter_mut().for_each(|v| *v += step as f32);
        packs.begin(&layout, 2);
        for grain in 0..2 {
            let [x, dy] = [7, 77].map(|seed| lying(device, &numbers(seed + step + grain, count), &shape, false));
            let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
            let want = passed(&layer, &pass, &x, &dy);
            assert!(passed(&layer, &Pass { packs: Some(&packs), ..pass }, &x, &dy) == want, "step {step}");
        }
        packs.end(&layout);
    }
}

/// Another grain of the step, which tells twice of whatever this one tells.
struct Other;

impl Grains for Other {
    fn joined(&self, own: Vec<f64>, join: Join) -> Result<Arc<[f64]>> {
        let Join::Fold(fold) = join else { return Err(Error::Internal("norms add up".into())) };
        let twice: Vec<f64> = own.iter().map(|v| 2.0 * v).collect();
        let mut all = own;
        fold(&mut all, &twice);
        Ok(all.into())
    }
}

/// Numbers for a layer, in bf16 or in f32: what bf16 has is the same in either.
fn lying(device: &Arc<Device>, values: &[f32], shape: &[usize], half: bool) -> nn::Array {
    let full = up(device, values, shape);
    if half {
        Placed::new(device.clone(), ops::to_bf16(device, &full).unwrap()).into()
    } else {
        Placed::new(device.clone(), full).into()
    }
}

/// What a norm gives, hands back and learns.
fn passed(layer: &BatchNorm, pass: &Pass<'_>, x: &nn::Array, dy: &nn::Array) -> [Vec<f32>; 3] {
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(pass.layout.unwrap()));
    let y = layer.forward(x, pass, &mut tape).unwrap();
    let dx = layer.backward(dy, pass, &mut tape, &mut grads, true).unwrap().unwrap();
    let half = pass.store.precision == Precision::Bf16;
    for made in [&y, &dx] {
        assert!(matches!(made, nn::Array::Device(numbers) if numbers.is_half() == half), "it lies in the other type");
    }
    grads.come_down().unwrap();
    [down(&y), down(&dx), grads.flat]
}

#[test]
fn a_norm_hands_on_what_bf16_has_of_f32_wherever_its_input_and_its_slope_lie() {
    let Some(device) = shared() else { return };
    for (shape, act) in [
        (&[5, 2, 2, 3][..], Act::None),
        (&[70, 6], Act::Relu),
        (&[3, 5, 9, 8], Act::Silu),
        (&[65, 7], Act::None),
        (&[4, 5, 7, 5], Act::Gelu),
    ] {
        let (b, layer) = norm(shape[shape.len() - 1], act);
        let [full, half] = [Precision::F32, Precision::Bf16].map(|precision| Store { precision, ..b.store.clone() });
        let [x, dy] = [7, 77].map(|seed| coarse(&numbers(seed, shape.iter().product())));
        let (gamma, beta, batch) = (ParamId(0), ParamId(1), [BufferId(0)]);
        let every: [&[ParamId]; 4] = [&[], &[beta], &[gamma], &[gamma, beta]];
        let modes: [(&[BufferId], Option<&dyn Grains>); 3] = [(&[], None), (&batch, None), (&batch, Some(&Other))];
        for trained in every {
            for (means, grains) in modes {
                let layout = Layout::new(&b.store, trained, means);
                let said = |store: &Store, halves: [bool; 2]| {
                    let pass = Pass { layout: Some(&layout), grains, ..Pass::eval(store) };
                    let [x, dy] = [(&x, halves[0]), (&dy, halves[1])].map(|(v, half)| lying(device, v, shape, half));
                    passed(&layer, &pass, &x, &dy)
                };
                let [y, dx, flat] = said(&full, [false, false]);
                let want = [coarse(&y), coarse(&dx), flat];
                for halves in [[true, true], [true, false], [false, true], [false, false]] {
                    assert!(said(&half, halves) == want, "{shape:?} {act:?} {trained:?} {means:?} {halves:?}");
                }
            }
        }
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
