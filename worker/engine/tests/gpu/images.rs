//! Pooling, convolutions, and images that move.

use half::bf16;
use tl_engine::{
    gpu::{
        Array, Device, Fault,
        ops::{self, Columns, Convolution, Window, Windowed},
    },
    nn::{AvgPool, Border, Builder, ConvSpec, FlattenChannels, GlobalAvgPool, MaxPool, Padding, ParamId},
    num::bf16::rounded,
};

use crate::{close, device, is_fake, numbers, run, same, up};

/// Numbers that bf16 has, in f32 and in bf16.
fn halves(device: &Device, seed: u32, shape: &[usize]) -> (Array, Array<bf16>) {
    let half = ops::to_bf16(device, &up(device, &numbers(seed, shape.iter().product()), shape)).unwrap();
    (ops::from_bf16(device, &half).unwrap(), half)
}

/// Refuses anything but what bf16 has of numbers.
fn rounded_once(device: &Device, got: &Array<bf16>, want: &Array) {
    assert_eq!(got.shape(), want.shape());
    let want = device.download(&ops::round_bf16(device, want).unwrap()).unwrap();
    same(device, &ops::from_bf16(device, got).unwrap(), &want);
}

#[test]
fn the_largest_of_windows_and_their_slopes_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    for (shape, k, stride, pad) in [
        ([2, 6, 7, 3], 3, 2, 1),
        ([1, 4, 4, 2], 2, 2, 0),
        ([2, 5, 9, 35], 3, 1, 1),
        ([1, 8, 7, 2], 2, 3, 0),
        ([2, 5, 6, 8], 3, 2, 1),
    ] {
        let mut x = numbers(1, shape.iter().product());
        // A tie, and a NaN.
        x.iter_mut().step_by(3).for_each(|v| *v = 1.0);
        x[shape[3]] = f32::NAN;
        let want = run(&MaxPool { k, stride, pad }, &store, (&x, &shape), None, false);
        let (y, chosen) = ops::max_pool(device, &up(device, &x, &shape), k, stride, pad).unwrap();
        assert_eq!(y.shape(), want.shape);
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &want.shape);
        same(device, &ops::max_pool_back(device, &dy, &chosen, shape, k, stride, pad).unwrap(), &want.dx);
    }
    assert!(ops::max_pool(device, &up(device, &[1.0; 4], &[1, 2, 2, 1]), 3, 1, 0).is_err());
}

#[test]
fn means_of_windows_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    let window = |pixels: std::ops::Range<usize>, count| Window { pixels, count };
    // A window of three, two apart, in a border of one that counts; and a grid of three that repeats a small image.
    let sliding = |size: usize| -> Vec<Window> {
        let outputs = (size + 2 - 3) / 2 + 1;
        (0..outputs).map(|o| window((o * 2).saturating_sub(1)..(o * 2 + 2).min(size), 3)).collect()
    };
    let grid = |size: usize| -> Vec<Window> {
        let pixels = |o: usize| o * size / 3..((o + 1) * size).div_ceil(3);
        (0..3).map(|o| window(pixels(o), pixels(o).len())).collect()
    };
    let slides = AvgPool::Sliding { k: 3, stride: 2, pad: Padding::Symmetric(1), counts_border: true };
    for (shape, layer, ys, xs) in [
        ([2, 5, 6, 3], slides, sliding(5), sliding(6)),
        ([2, 5, 6, 12], slides, sliding(5), sliding(6)),
        ([2, 2, 7, 35], AvgPool::Grid(3), grid(2), grid(7)),
        ([2, 2, 7, 36], AvgPool::Grid(3), grid(2), grid(7)),
    ] {
        let x = numbers(1, shape.iter().product());
        let want = run(&layer, &store, (&x, &shape), None, false);
        let y = ops::average_pool(device, &up(device, &x, &shape), &ys, &xs).unwrap();
        assert_eq!(y.shape(), want.shape);
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &want.shape);
        same(device, &ops::average_pool_back(device, &dy, (shape[1], shape[2]), &ys, &xs).unwrap(), &want.dx);
    }
    let image = up(device, &[1.0; 4], &[1, 2, 2, 1]);
    assert!(ops::average_pool(device, &image, &[window(0..3, 3)], &[window(0..2, 2)]).is_err());
}

#[test]
fn means_and_products_over_whole_images_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    // Fewer pixels than eight chains ask for at once, as many, and more; channels of one block, and of several.
    for (h, w, c) in [(5, 4, 37), (5, 4, 40), (8, 16, 3), (17, 17, 2), (13, 40, 66), (16, 16, 65)] {
        let (shape, area) = ([3, h, w, c], h * w);
        let [x, other] = [1, 2].map(|seed| numbers(seed, 3 * area * c).iter().map(|v| rounded(*v)).collect::<Vec<_>>());
        let want = run(&GlobalAvgPool, &store, (&x, &shape), None, false);
        let [xs, others] = [&x, &other].map(|values| up(device, values, &shape));
        let means = ops::global_mean(device, &xs).unwrap();
        close(device, &means, &want.y, 1e-6);
        let dy = up(device, &want.dy, &[3, c]);
        same(device, &ops::global_mean_back(device, &dy, (h, w)).unwrap(), &want.dx);
        // Eight chains of every eighth pixel, joined in order.
        let sums = |value: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let sum = |image: usize, channel: usize| {
                let mut chains = [0.0; 8];
                (0..area).for_each(|p| chains[p % 8] += value((image * area + p) * c + channel));
                chains.iter().sum::<f64>()
            };
            (0..3 * c).map(|i| sum(i / c, i % c)).collect()
        };
        let plain = sums(&|i| f64::from(x[i]));
        same(device, &means, &plain.iter().map(|sum| (sum / area as f64) as f32).collect::<Vec<_>>());
        let products = ops::global_products(device, &xs, &others).unwrap();
        let want = sums(&|i| f64::from(x[i]) * f64::from(other[i]));
        same(device, &products, &want.iter().map(|sum| *sum as f32).collect::<Vec<_>>());
        let [half, half_other] = [&xs, &others].map(|array| ops::to_bf16(device, array).unwrap());
        rounded_once(device, &ops::global_mean(device, &half).unwrap(), &means);
        rounded_once(device, &ops::global_products(device, &half, &half_other).unwrap(), &products);
    }
}

#[test]
fn pools_of_bf16_are_those_of_f32_rounded_once() {
    let Some(device) = device() else { return };
    for (shape, k, stride, pad) in [
        ([2, 6, 7, 3], 3, 2, 1),
        ([1, 4, 4, 8], 2, 2, 0),
        ([2, 5, 9, 36], 3, 1, 1),
        ([1, 8, 7, 2], 2, 3, 0),
        ([2, 5, 6, 1], 3, 2, 1),
        ([2, 5, 6, 16], 3, 2, 1),
    ] {
        let (x, half) = halves(device, 1, &shape);
        let (y, chosen) = ops::max_pool(device, &x, k, stride, pad).unwrap();
        let (low, same_chosen) = ops::max_pool(device, &half, k, stride, pad).unwrap();
        rounded_once(device, &low, &y);
        assert_eq!(device.download(&same_chosen).unwrap(), device.download(&chosen).unwrap());
        let (dy, half_dy) = halves(device, 2, y.shape());
        let dx = ops::max_pool_back(device, &dy, &chosen, shape, k, stride, pad).unwrap();
        let low = ops::max_pool_back(device, &half_dy, &chosen, shape, k, stride, pad).unwrap();
        rounded_once(device, &low, &dx);

        let windows = |size: usize, outputs: usize| -> Vec<Window> {
            let pixels = |o: usize| (o * stride).saturating_sub(pad)..(o * stride + k - pad).min(size);
            (0..outputs).map(|o| Window { pixels: pixels(o), count: pixels(o).len() }).collect()
        };
        let [_, h, w, c] = shape;
        let (ys, xs) = (windows(h, y.shape()[1]), windows(w, y.shape()[2]));
        let means = ops::average_pool(device, &x, &ys, &xs).unwrap();
        rounded_once(device, &ops::average_pool(device, &half, &ys, &xs).unwrap(), &means);
        let dx = ops::average_pool_back(device, &dy, (h, w), &ys, &xs).unwrap();
        rounded_once(device, &ops::average_pool_back(device, &half_dy, (h, w), &ys, &xs).unwrap(), &dx);

        rounded_once(device, &ops::global_mean(device, &half).unwrap(), &ops::global_mean(device, &x).unwrap());
        let (other, half_other) = halves(device, 3, &shape);
        let products = ops::global_products(device, &x, &other).unwrap();
        rounded_once(device, &ops::global_products(device, &half, &half_other).unwrap(), &products);
        let (dy, half_dy) = halves(device, 4, &[shape[0], c]);
        let dx = ops::global_mean_back(device, &dy, (h, w)).unwrap();
        rounded_once(device, &ops::global_mean_back(device, &half_dy, (h, w)).unwrap(), &dx);
    }
}

/// Channels, the side of windows, their distance and border, and the height and width of images.
type Case = (usize, usize, usize, Padding, (usize, usize));

/// Of channels that go by eight, by four, and one by one; of outputs that go by four in their rows or do not; and of more rows
/// than are added up in one group.
const DEPTHWISE: [Case; 11] = [
    (3, 3, 1, Padding::Symmetric(1), (5, 6)),
    (35, 3, 2, Padding::Same, (6, 7)),
    (36, 3, 2, Padding::Same, (6, 7)),
    (2, 5, 2, Padding::Same, (7, 8)),
    (8, 5, 2, Padding::Symmetric(2), (7, 8)),
    (4, 3, 1, Padding::Same, (1, 1)),
    (16, 3, 1, Padding::Same, (4, 8)),
    (24, 5, 1, Padding::Same, (3, 13)),
    (8, 3, 2, Padding::Symmetric(1), (4, 17)),
    (1, 7, 3, Padding::Same, (5, 26)),
    (3, 3, 1, Padding::Symmetric(1), (150, 3)),
];

/// What weights `[c, 1, k, k]` learn: of each row of outputs a chain in f32, and of 256 rows eight chains of every eighth one in
/// f64, which are joined in order.
fn learnt(x: &[f32], dy: &[f32], [n, h, w, c]: [usize; 4], windows: Windowed) -> Vec<f32> {
    let Windowed { k, stride, before: (top, left), outputs: (oh, ow) } = windows;
    let pixel = |output: usize, tap: usize, before: usize, size: usize| {
        (output * stride + tap).checked_sub(before).filter(|pixel| *pixel < size)
    };
    let row = |row: usize, channel: usize, tap: usize| -> f32 {
        let Some(py) = pixel(row % oh, tap / k, top, h) else { return 0.0 };
        let first = (row / oh * h + py) * w;
        let pairs = (0..ow).filter_map(|ox| Some((row * ow + ox, first + pixel(ox, tap % k, left, w)?)));
        pairs.fold(0.0, |sum, (output, input)| dy[output * c + channel].mul_add(x[input * c + channel], sum))
    };
    let sum = |channel: usize, tap: usize| {
        let groups = (0..n * oh).step_by(256).map(|first| {
            let mut chains = [0.0; 8];
            (first..(first + 256).min(n * oh)).for_each(|at| chains[at % 8] += f64::from(row(at, channel, tap)));
            chains.iter().sum::<f64>()
        });
        groups.sum::<f64>() as f32
    };
    (0..c * k * k).map(|i| sum(i / (k * k), i % (k * k))).collect()
}

#[test]
fn depthwise_convolutions_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    for (c, k, stride, pad, (h, w)) in DEPTHWISE {
        let mut b = Builder::new(1);
        let layer = b.depthwise("c", c, k, stride, pad);
        let x = numbers(1, 2 * h * w * c);
        let want = run(&layer, &b.store, (&x, &[2, h, w, c]), None, false);
        let ((top, oh), (left, ow)) = (pad.plan(h, k, stride), pad.plan(w, k, stride));
        let windows = Windowed { k, stride, before: (top, left), outputs: (oh, ow) };
        let (xs, weights) = (up(device, &x, &[2, h, w, c]), up(device, &b.store.values, &[c, 1, k, k]));
        let y = ops::depthwise(device, &xs, &weights, windows).unwrap();
        assert_eq!(y.shape(), want.shape);
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &want.shape);
        same(device, &ops::depthwise_input(device, &dy, &weights, (h, w), windows).unwrap(), &want.dx);
        let mut dw = device.zeros(&[c, 1, k, k]).unwrap();
        ops::depthwise_weights(device, &dy, &xs, windows, &mut dw).unwrap();
        close(device, &dw, &want.flat, 1e-5);
        same(device, &dw, &learnt(&x, &want.dy, [2, h, w, c], windows));
    }
}

#[test]
fn depthwise_convolutions_of_bf16_are_those_of_f32_rounded_once_and_their_weights_learn_the_same() {
    let Some(device) = device() else { return };
    for (c, k, stride, pad, (h, w)) in DEPTHWISE {
        let ((top, oh), (left, ow)) = (pad.plan(h, k, stride), pad.plan(w, k, stride));
        let windows = Windowed { k, stride, before: (top, left), outputs: (oh, ow) };
        let weights = up(device, &numbers(3, c * k * k), &[c, 1, k, k]);
        let (x, half) = halves(device, 1, &[2, h, w, c]);
        let y = ops::depthwise(device, &x, &weights, windows).unwrap();
        rounded_once(device, &ops::depthwise(device, &half, &weights, windows).unwrap(), &y);
        let (dy, half_dy) = halves(device, 2, y.shape());
        let dx = ops::depthwise_input(device, &dy, &weights, (h, w), windows).unwrap();
        rounded_once(device, &ops::depthwise_input(device, &half_dy, &weights, (h, w), windows).unwrap(), &dx);
        let [mut dw, mut learnt] = [0, 1].map(|_| device.zeros(&[c, 1, k, k]).unwrap());
        ops::depthwise_weights(device, &dy, &x, windows, &mut dw).unwrap();
        ops::depthwise_weights(device, &half_dy, &half, windows, &mut learnt).unwrap();
        same(device, &learnt, &device.download(&dw).unwrap());
    }
}

#[test]
fn convolutions_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    for (cin, cout, kernel, stride, pad, (h, w)) in [
        (3, 5, (3, 3), 2, (1, 1), (7, 6)),
        (9, 4, (1, 1), 1, (0, 0), (3, 5)),
        (8, 6, (1, 3), 1, (0, 1), (4, 5)),
        (4, 2, (3, 1), 2, (1, 0), (5, 5)),
    ] {
        let mut b = Builder::new(1);
        let both = (Padding::Symmetric(pad.0), Padding::Symmetric(pad.1));
        let layer = b.conv_spec("c", ConvSpec { cin, cout, kernel, stride, pad: both, bias: false });
        let shape = [2, h, w, cin];
        let x = numbers(1, 2 * h * w * cin);
        let want = run(&layer, &b.store, (&x, &shape), None, false);
        let how = Convolution { stride, pad, groups: 1 };
        let weights = [cout, cin, kernel.0, kernel.1];
        let (xs, ws) = (up(device, &x, &shape), up(device, b.store.param(ParamId(0)), &weights));
        let ws = ops::channels_last(device, &ws).unwrap();
        assert_eq!(ws.shape(), [cout, kernel.0, kernel.1, cin]);
        let y = ops::conv(device, &xs, &ws, how).unwrap();
        assert_eq!(y.shape(), want.shape);
        close(device, &y, &want.y, 1e-5);
        let dy = up(device, &want.dy, &want.shape);
        close(device, &ops::conv_input(device, &dy, &ws, shape, how).unwrap(), &want.dx, 1e-5);
        // The second time by the algorithm that was chosen, added to what is there.
        let mut dw = device.zeros(&weights).unwrap();
        for _ in 0..2 {
            ops::conv_weights(device, &dy, &xs, how, &mut dw).unwrap();
        }
        close(device, &dw, &want.flat.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 2e-5);
    }
}

#[test]
fn a_convolution_comes_to_the_same_bits_each_time() {
    let Some(device) = device() else { return };
    for (cin, kernel, stride, pad) in [(16, 3, 1, 1), (16, 3, 2, 1), (16, 1, 2, 0), (3, 7, 2, 3)] {
        let (shape, how) = ([4, 12, 13, cin], Convolution { stride, pad: (pad, pad), groups: 1 });
        let x = up(device, &numbers(1, shape.iter().product()), &shape);
        let own = [8, cin, kernel, kernel];
        let w = up(device, &numbers(2, own.iter().product()), &own);
        let w = ops::channels_last(device, &w).unwrap();
        let once = || {
            let (y, mut dw) = (ops::conv(device, &x, &w, how).unwrap(), device.zeros(&own).unwrap());
            ops::conv_weights(device, &y, &x, how, &mut dw).unwrap();
            let dx = ops::conv_input(device, &y, &w, shape, how).unwrap();
            [y, dw, dx].map(|array| device.download(&array).unwrap())
        };
        assert_eq!(once(), once(), "{kernel}x{kernel}, {stride} apart");
    }
}

#[test]
fn what_cudnn_has_no_algorithm_for_is_a_product_of_windows() {
    let Some(device) = device() else { return };
    // The fake has none for windows seven apart.
    let (shape, how) = ([2, 9, 8, 3], Convolution { stride: 7, pad: (1, 1), groups: 1 });
    let (mut b, both) = (Builder::new(1), (Padding::Symmetric(1), Padding::Symmetric(1)));
    let spec = ConvSpec { cin: 3, cout: 5, kernel: (3, 3), stride: 7, pad: both, bias: false };
    let layer = b.conv_spec("c", spec);
    let x = numbers(1, shape.iter().product());
    let want = run(&layer, &b.store, (&x, &shape), None, false);
    let (xs, dy) = (up(device, &x, &shape), up(device, &want.dy, &want.shape));
    let ws = ops::channels_last(device, &up(device, b.store.param(ParamId(0)), &[5, 3, 3, 3])).unwrap();
    close(device, &ops::conv(device, &xs, &ws, how).unwrap(), &want.y, 1e-5);
    let [x16, w16] = [&xs, &ws].map(|array| ops::to_bf16(device, array).unwrap());
    let wide = |array: Array<bf16>| ops::from_bf16(device, &array).unwrap();
    close(device, &wide(ops::conv(device, &x16, &w16, how).unwrap()), &want.y, 2e-2);
    let mut dw = device.zeros(&[5, 3, 3, 3]).unwrap();
    ops::conv_weights(device, &dy, &xs, how, &mut dw).unwrap();
    close(device, &dw, &want.flat, 1e-5);
    close(device, &ops::conv_input(device, &dy, &ws, shape, how).unwrap(), &want.dx, 1e-5);
    let dy16 = ops::to_bf16(device, &dy).unwrap();
    close(device, &wide(ops::conv_input(device, &dy16, &w16, shape, how).unwrap()), &want.dx, 2e-2);
}

#[test]
fn windows_give_the_input_its_gradient_back() {
    let Some(device) = device() else { return };
    for (cin, cout, kernel, stride, pad, (h, w)) in [
        (3, 5, (3, 3), 2, (1, 1), (7, 6)),
        // Behind the last window there are pixels that none covers.
        (4, 2, (3, 2), 3, (0, 1), (8, 9)),
        (9, 4, (1, 1), 1, (0, 0), (3, 5)),
        // Windows that lie beyond the border.
        (2, 3, (1, 1), 2, (2, 2), (3, 3)),
        (2, 3, (5, 3), 1, (2, 1), (4, 4)),
    ] {
        let mut b = Builder::new(1);
        let both = (Padding::Symmetric(pad.0), Padding::Symmetric(pad.1));
        let layer = b.conv_spec("c", ConvSpec { cin, cout, kernel, stride, pad: both, bias: false });
        let (shape, how) = ([3, h, w, cin], Convolution { stride, pad, groups: 1 });
        let want = run(&layer, &b.store, (&numbers(1, 3 * h * w * cin), &shape), None, false);
        let ws = up(device, b.store.param(ParamId(0)), &[cout, cin, kernel.0, kernel.1]);
        let (ws, dy) = (ops::channels_last(device, &ws).unwrap(), up(device, &want.dy, &want.shape));
        // All images at a time, two and one, and one after the other.
        let image = size_of::<f32>() * want.dy.len() / 3 / cout * kernel.0 * kernel.1 * cin;
        for room in [usize::MAX, 2 * image, 0] {
            close(device, &ops::fold(device, &dy, &ws, shape, how, room).unwrap(), &want.dx, 1e-5);
        }
        assert!(ops::fold(device, &dy, &ws, [2, h, w, cin], how, 0).is_err());
    }
}

#[test]
fn groups_of_a_convolution_do_not_see_each_other() {
    let Some(device) = device() else { return };
    let (shape, how) = ([2, 4, 5, 6], Convolution { stride: 1, pad: (1, 1), groups: 2 });
    let (x, w, alone) = (numbers(1, 240), numbers(2, 4 * 3 * 9), Convolution { groups: 1, ..how });
    let xs = up(device, &x, &shape);
    let weights = |w: &[f32], cout| ops::channels_last(device, &up(device, w, &[cout, 3, 3, 3])).unwrap();
    assert!(ops::conv(device, &xs, &weights(&w, 4), alone).is_err());
    let y = match ops::conv(device, &xs, &weights(&w, 4), how) {
        Err(Fault::NoAlgorithm(_)) if !is_fake(device) => {
            eprintln!("left out: this cuDNN has no algorithm for groups, which no network asks of it");
            return;
        }
        y => y.unwrap(),
    };
    for group in 0..2 {
        let (mut part, mut own) = (device.zeros(&[2, 4, 5, 3]).unwrap(), device.zeros(&[2, 4, 5, 2]).unwrap());
        ops::copy_columns(device, &xs, &mut part, Columns { from: 3 * group, to: 0, width: 3 }, false).unwrap();
        ops::copy_columns(device, &y, &mut own, Columns { from: 2 * group, to: 0, width: 2 }, false).unwrap();
        let want = ops::conv(device, &part, &weights(&w[group * 54..][..54], 2), alone).unwrap();
        close(device, &own, &device.download(&want).unwrap(), 1e-5);
    }
}

#[test]
fn channels_are_turned_and_images_moved_as_on_the_cpu() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    let shape = [2, 9, 5, 33];
    let x = numbers(1, 2 * 9 * 5 * 33);
    let want = run(&FlattenChannels, &store, (&x, &shape), None, false);
    same(device, &ops::turn(device, &up(device, &x, &shape), [2, 45, 33]).unwrap(), &want.y);
    let same_border = Border::Same { k: 5, stride: 2 };
    for c in [3, 8] {
        // Five rows and six columns become nine each: two rows above, and one column to the left.
        let (x, shape) = (&x[..2 * 5 * 6 * c], [2, 5, 6, c]);
        let want = run(&same_border, &store, (x, &shape), None, false);
        let ((down, _), (right, _)) = (Padding::Same.plan(5, 5, 2), Padding::Same.plan(6, 5, 2));
        let by = (down as i32, right as i32);
        let y = ops::move_image(device, &up(device, x, &shape), by, (want.shape[1], want.shape[2])).unwrap();
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &want.shape);
        same(device, &ops::move_image(device, &dy, (-by.0, -by.1), (5, 6)).unwrap(), &want.dx);
    }
}

#[test]
fn images_of_bf16_move_and_lose_pixels_as_those_of_f32_do() {
    let Some(device) = device() else { return };
    for c in [3, 8, 16] {
        let (x, half) = halves(device, 1, &[2, 5, 6, c]);
        for (by, size) in [((2, 1), (9, 9)), ((-1, -1), (5, 6)), ((0, 0), (4, 7))] {
            let moved = ops::move_image(device, &x, by, size).unwrap();
            rounded_once(device, &ops::move_image(device, &half, by, size).unwrap(), &moved);
        }
        // Those in front of its channels go by eight, by four, or not.
        for channels in [c, c + 3, c + 4, c + 8, c + 16] {
            let y = ops::subsample(device, &x, channels).unwrap();
            rounded_once(device, &ops::subsample(device, &half, channels).unwrap(), &y);
            let (dy, half_dy) = halves(device, 2, y.shape());
            let dx = ops::subsample_back(device, &dy, [5, 6, c]).unwrap();
            rounded_once(device, &ops::subsample_back(device, &half_dy, [5, 6, c]).unwrap(), &dx);
        }
    }
}
