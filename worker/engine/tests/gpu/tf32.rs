//! Products and convolutions that take f32 as TF32 has it: sums and what they come to are f32. A fake GPU rounds to the nearest;
//! a real one as it is built to, and it may multiply f32 as it is, so that less can be said of it.

use tl_engine::{
    gpu::{
        Array, Device, Mixed, Operand, Placed,
        ops::{self, Convolution, Math, Matrix, Patches},
    },
    nn::{Builder, ConvSpec, Layer, Layout, Padding, Pass, Store},
    num::tf32::rounded,
};
use tl_proto::spec::Precision;

use crate::{
    close, device,
    image_layers::{here, passed, there},
    is_fake,
    layers::down,
    numbers, product, same, shared, up,
};

/// The same GPU, on which TF32 will do.
fn tf32(device: &Device) -> Math<'_> {
    Math { device, tf32: true }
}

/// What TF32 has of numbers.
fn coarse(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| rounded(*v)).collect()
}

/// The sum of how far numbers are from each other.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum()
}

/// Compares with what comes of rounded operands, and makes sure that it is not what comes of exact ones.
fn comes_to(device: &Device, got: &Array, want: &[f32], exact: &[f32]) {
    let (rounding, off) = (apart(want, exact), apart(&device.download(got).unwrap(), want));
    assert!(rounding > 0.0, "rounding does not show");
    assert!(off < bound(device) * rounding, "{off} apart, where rounding makes {rounding}");
}

/// How far numbers may be from those that are known, in what rounding to the nearest makes of them.
fn bound(device: &Device) -> f64 {
    if is_fake(device) { 0.02 } else { 8.0 }
}

#[test]
fn products_take_what_tf32_has_and_give_f32() {
    let Some(device) = device() else { return };
    for (rows, input, output) in [(37, 19, 11), (64, 48, 40)] {
        let forward =
            |x: &[f32], w: &[f32]| product((rows, output, input), |r, d| x[r * input + d], |d, c| w[c * input + d]);
        let back =
            |dy: &[f32], w: &[f32]| product((rows, input, output), |r, d| dy[r * output + d], |d, c| w[d * input + c]);
        let learnt =
            |dy: &[f32], x: &[f32]| product((output, input, rows), |o, r| dy[r * output + o], |r, c| x[r * input + c]);
        let [x, w, dy] = [(1, rows * input), (2, output * input), (3, rows * output)].map(|(seed, n)| numbers(seed, n));
        let [low_x, low_w, low_dy] = [&x, &w, &dy].map(|v| coarse(v));
        let [xs, ws, dys] = [(&x, input), (&w, input), (&dy, output)].map(|(v, c)| up(device, v, &[v.len() / c, c]));

        let y = ops::linear(tf32(device), &xs, &ws).unwrap();
        comes_to(device, &y, &forward(&low_x, &low_w), &forward(&x, &w));
        let mut y = device.download(&y).unwrap();
        assert_ne!(y, coarse(&y), "what it gives is rounded");
        // A bias is added as it is.
        let bias = numbers(4, output);
        let made = ops::linear_biased(tf32(device), &xs, &ws, &up(device, &bias, &[output])).unwrap();
        y.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % output]);
        close(device, &made, &y, 1e-6);

        let dx = ops::linear_input(tf32(device), &dys, &ws).unwrap();
        comes_to(device, &dx, &back(&low_dy, &low_w), &back(&dy, &w));
        let mut dw = device.zeros(&[output, input]).unwrap();
        ops::linear_weights(tf32(device), &dys, &xs, &mut dw).unwrap();
        comes_to(device, &dw, &learnt(&low_dy, &low_x), &learnt(&dy, &x));
        // Who does not ask for it has f32 as it is.
        close(device, &ops::linear(device, &xs, &ws).unwrap(), &forward(&x, &w), 1e-5);
    }
}

#[test]
fn batches_of_products_do_too_and_bf16_stays_what_it_is() {
    let Some(device) = device() else { return };
    let (batch, m, n, k) = (3, 5, 6, 7);
    let [a, b] = [(1, batch * m * k), (2, batch * n * k)].map(|(seed, count)| numbers(seed, count));
    let [left, right] = [(&a, m), (&b, n)].map(|(v, rows)| up(device, v, &[batch, rows, k]));
    let of = |a: &[f32], b: &[f32]| -> Vec<f32> {
        let one = |i: usize| product((m, n, k), |r, d| a[(i * m + r) * k + d], |d, c| b[(i * n + c) * k + d]);
        (0..batch).flat_map(one).collect()
    };
    let pair = (Matrix::of(&left), Matrix::of(&right).turned());
    let made = ops::multiplied(tf32(device), pair, (batch, m, n, k), &[batch, m, n]).unwrap();
    comes_to(device, &made, &of(&coarse(&a), &coarse(&b)), &of(&a, &b));

    let [left, right] = [&left, &right].map(|x| ops::to_bf16(device, x).unwrap());
    let pair = (Matrix::of(&left), Matrix::of(&right).turned());
    let [plain, other] = [Math::from(device), tf32(device)]
        .map(|math| ops::multiplied(math, pair, (batch, m, n, k), &[batch, m, n]).unwrap());
    let plain = device.download(&ops::from_bf16(device, &plain).unwrap()).unwrap();
    same(device, &ops::from_bf16(device, &other).unwrap(), &plain);
}

#[test]
fn convolutions_take_what_tf32_has_also_where_they_are_products_of_windows() {
    let Some(device) = device() else { return };
    // The fake has no algorithm for windows seven apart: all of it is made without.
    for (cin, cout, kernel, stride) in [(3, 5, (3, 3), 2), (8, 16, (3, 3), 1), (3, 5, (3, 3), 7)] {
        let (shape, how) = ([2, 9, 8, cin], Convolution { stride, pad: (1, 1), groups: 1 });
        let dims = [cout, kernel.0, kernel.1, cin];
        let (x, w) = (numbers(1, shape.iter().product()), numbers(2, dims.iter().product()));
        let ways = |x: &[f32], w: &[f32]| (up(device, x, &shape), up(device, w, &dims));
        let ((x, w), (low_x, low_w)) = (ways(&x, &w), ways(&coarse(&x), &coarse(&w)));
        let get = |array: &Array| device.download(array).unwrap();
        let (plain, want) = (ops::conv(device, &x, &w, how).unwrap(), ops::conv(device, &low_x, &low_w, how).unwrap());
        comes_to(device, &ops::conv(tf32(device), &x, &w, how).unwrap(), &get(&want), &get(&plain));
        let windows = Patches::of(&x, &dims, how, usize::MAX).unwrap();
        comes_to(device, &windows.times(tf32(device), &w).unwrap(), &get(&want), &get(&plain));

        let bias = up(device, &numbers(3, cout), &[cout]);
        let biased = |math: Math<'_>, x: &Array, w: &Array| ops::conv_biased(math, x, w, &bias, how).unwrap();
        let (want, exact) = (biased(Math::from(device), &low_x, &low_w), biased(Math::from(device), &x, &w));
        comes_to(device, &biased(tf32(device), &x, &w), &get(&want), &get(&exact));

        let dy = numbers(4, plain.count());
        let (low_dy, dy) = (up(device, &coarse(&dy), plain.shape()), up(device, &dy, plain.shape()));
        let learnt = |math: Math<'_>, dy: &Array, x: &Array| {
            let mut dw = device.zeros(&[cout, cin, kernel.0, kernel.1]).unwrap();
            ops::conv_weights(math, dy, x, how, &mut dw).unwrap();
            dw
        };
        let (want, exact) = (learnt(Math::from(device), &low_dy, &low_x), learnt(Math::from(device), &dy, &x));
        comes_to(device, &learnt(tf32(device), &dy, &x), &get(&want), &get(&exact));
        let back = |math: Math<'_>, dy: &Array, w: &Array| ops::conv_input(math, dy, w, shape, how).unwrap();
        let (want, exact) = (back(Math::from(device), &low_dy, &low_w), back(Math::from(device), &dy, &w));
        comes_to(device, &back(tf32(device), &dy, &w), &get(&want), &get(&exact));
    }
}

#[test]
fn operands_of_two_precisions_are_not_multiplied() {
    let Some(device) = shared() else { return };
    let x = Mixed::from(Placed::new(device.clone(), up(device, &numbers(1, 16), &[4, 4])));
    let all = [Precision::F32, Precision::Tf32, Precision::Bf16].map(|p| Operand::of(&x, p).unwrap());
    for (i, left) in all.iter().enumerate() {
        for (j, right) in all.iter().enumerate() {
            assert_eq!(left.linear(right, None).is_ok(), i == j);
        }
    }
    // Numbers of f32 are lent, and nobody else sees them in TF32.
    let sum = |operand: &Operand| operand.linear(operand, None).unwrap().download().unwrap();
    assert_eq!(sum(&all[0]), sum(&Operand::of(&x, Precision::F32).unwrap()));
    if is_fake(device) {
        assert!(sum(&all[0]) != sum(&all[1]) && sum(&all[1]) != sum(&all[2]));
    }
}

/// What a layer gives, the gradient of its input, and those of its parameters, in one memory or the other.
fn ran(layer: &dyn Layer, store: &Store, (x, shape): (&[f32], &[usize]), on_gpu: bool) -> [Vec<f32>; 3] {
    let mut params = Vec::new();
    layer.params(&mut params);
    let layout = Layout::new(store, &params, &[]);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(store) };
    let passed = match on_gpu {
        true => passed(layer, &pass, (x, shape), true, there),
        false => passed(layer, &pass, (x, shape), true, here),
    };
    [down(&passed.y), down(passed.dx.as_ref().unwrap()), passed.flat]
}

#[test]
fn layers_round_where_the_host_rounds() {
    let Some(device) = device() else { return };
    let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
    let none = (Padding::Symmetric(0), Padding::Symmetric(0));
    let spec = ConvSpec { cin: 6, cout: 5, kernel: (3, 3), stride: 1, pad, bias: true };
    let mut b = Builder::new(3);
    let dense = b.linear("l", (6, 7));
    let convolutions = [
        b.conv_spec("a", spec),
        b.conv_spec("b", ConvSpec { kernel: (1, 1), pad: none, ..spec }),
        b.conv_spec("c", ConvSpec { stride: 2, bias: false, ..spec }),
    ];
    let depthwise = b.depthwise("d", 6, 3, 2, Padding::Same);
    b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 3) as f32 * 0.1);
    let (x, shape) = (numbers(1, 2 * 7 * 8 * 6), [2, 7, 8, 6]);
    let within = |precision| Store { precision, ..b.store.clone() };
    let [exact, low] = [Precision::F32, Precision::Tf32].map(within);
    let layers = convolutions.iter().map(|c| c as &dyn Layer).chain([&dense as &dyn Layer]);
    for layer in layers {
        let [plain, want] = [&exact, &low].map(|store| ran(layer, store, (&x, &shape), false));
        let got = ran(layer, &low, (&x, &shape), true);
        for ((plain, want), got) in plain.iter().zip(&want).zip(&got) {
            let (rounding, off) = (apart(plain, want), apart(got, want));
            let most = bound(device) * rounding;
            assert!(rounding > 0.0 && off < most, "{off} apart, where rounding makes {rounding}");
        }
    }
    // No product of matrices is part of it: outputs and slopes have the host's bits in f32.
    let (want, got) = (ran(&depthwise, &exact, (&x, &shape), false), ran(&depthwise, &low, (&x, &shape), true));
    assert_eq!(got[..2], want[..2]);
}
