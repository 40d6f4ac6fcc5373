//! Products and convolutions of bf16 memory: sums of f32, rounded once where layers go on with them.

use half::bf16;
use tl_engine::{
    gpu::{
        Array, Device, Mixed, Operand, Placed,
        ops::{self, Convolution, Element, Patches},
    },
    num::bf16::rounded,
};
use tl_proto::spec::Precision;

use crate::{close, device, fetched, is_fake, layers::near, numbers, product, same, shared, up};

/// What bf16 has of numbers.
pub(crate) fn coarse(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| rounded(*v)).collect()
}

/// A sum in another order is rarely rounded to a neighbour.
fn neighbours(device: &Device, got: &Array<bf16>, want: &[f32]) {
    let got = fetched(device, got);
    near(&got, want, 1e-2);
    let others = got.iter().zip(want).filter(|(g, w)| g != w).count();
    assert!(others * 20 < got.len(), "{others} of {}", got.len());
}

#[test]
fn products_are_rounded_once_and_gradients_of_parameters_are_not() {
    let Some(device) = device() else { return };
    for (rows, input, output) in [(37, 19, 11), (64, 48, 40)] {
        let [x, w, dy] =
            [(1, rows * input), (2, output * input), (3, rows * output)].map(|(seed, count)| numbers(seed, count));
        let [xs, ws, dys] = [(&x, input), (&w, input), (&dy, output)]
            .map(|(v, c)| ops::to_bf16(device, &up(device, v, &[v.len() / c, c])).unwrap());
        let [x, w, dy] = [x, w, dy].map(|v| coarse(&v));
        let y = product((rows, output, input), |r, d| x[r * input + d], |d, c| w[c * input + d]);
        neighbours(device, &ops::linear(device, &xs, &ws).unwrap(), &coarse(&y));
        let bias = numbers(4, output);
        let add = |y: &[f32]| coarse(&y.iter().enumerate().map(|(i, v)| v + bias[i % output]).collect::<Vec<_>>());
        let raw = up(device, &bias, &[output]);
        let added = ops::linear_added(device, &xs, &ws, &raw).unwrap();
        neighbours(device, &added, &add(&y));
        assert_ne!(add(&y), add(&coarse(&y)), "twice would be as good");
        // What bf16 has of a bias, on top of which the sums come.
        let rounded = ops::round_bf16(device, &raw).unwrap();
        let want = fetched(device, &ops::linear_added(device, &xs, &ws, &rounded).unwrap());
        assert_ne!(fetched(device, &added), want, "a bias that must not be rounded is");
        for bias in [&raw, &rounded] {
            let made = ops::linear_biased(device, &xs, &ws, bias).unwrap();
            neighbours(device, &made, &want);
            if is_fake(device) {
                same(device, &made, &want);
            }
        }
        assert!(ops::linear_biased(device, &xs, &ws, &up(device, &[1.0; 3], &[3])).is_err());

        let dx = product((rows, input, output), |r, d| dy[r * output + d], |d, c| w[d * input + c]);
        neighbours(device, &ops::linear_input(device, &dys, &ws).unwrap(), &coarse(&dx));
        let dw = product((output, input, rows), |o, r| dy[r * output + o], |r, c| x[r * input + c]);
        let mut learnt = up(device, &vec![1.0; output * input], &[output, input]);
        ops::linear_weights(device, &dys, &xs, &mut learnt).unwrap();
        close(device, &learnt, &dw.iter().map(|v| v + 1.0).collect::<Vec<_>>(), 1e-5);
        let mut sums = device.zeros(&[output]).unwrap();
        ops::add_sums(device, &dys, &mut sums).unwrap();
        close(device, &sums, &product((1, output, rows), |_, _| 1.0, |r, c| dy[r * output + c]), 1e-5);
        assert!(ops::linear(device, &xs, &dys).is_err());
    }
}

#[test]
fn a_batch_of_products_is_given_in_the_type_that_it_takes() {
    let Some(device) = device() else { return };
    let (batch, m, n, k) = (3, 5, 6, 7);
    let [a, b] = [(1, batch * m * k), (2, batch * n * k)].map(|(seed, count)| coarse(&numbers(seed, count)));
    let [left, right] = [(&a, m), (&b, n)].map(|(v, rows)| up(device, v, &[batch, rows, k]));
    let [half_left, half_right] = [&left, &right].map(|x| ops::to_bf16(device, x).unwrap());
    let size = (batch, m, n, k);
    let pair = (ops::Matrix::of(&left), ops::Matrix::of(&right).turned());
    let exact = ops::multiplied(device, pair, size, &[batch, m, n]).unwrap();
    let want: Vec<f32> = (0..batch)
        .flat_map(|i| product((m, n, k), |r, d| a[(i * m + r) * k + d], |d, c| b[(i * n + c) * k + d]))
        .collect();
    close(device, &exact, &want, 1e-6);
    let pair = (ops::Matrix::of(&half_left), ops::Matrix::of(&half_right).turned());
    let halves = ops::multiplied(device, pair, size, &[batch, m, n]).unwrap();
    neighbours(device, &halves, &coarse(&want));
    assert!(ops::multiplied(device, pair, size, &[batch, m, m]).is_err());
}

/// Channels, kernel, stride, border and size of images.
type Case = ((usize, usize), (usize, usize), usize, (usize, usize), (usize, usize));

/// Of few channels, which move one by one, and of as many as move eight at a time.
const CASES: [Case; 5] = [
    ((3, 5), (3, 3), 2, (1, 1), (7, 6)),
    ((8, 16), (3, 3), 1, (1, 1), (6, 5)),
    ((16, 6), (1, 1), 2, (0, 0), (5, 6)),
    ((8, 7), (1, 3), 1, (0, 1), (4, 5)),
    ((2, 4), (5, 2), 3, (2, 0), (8, 7)),
];

#[test]
fn convolutions_are_those_of_f32_rounded_once_and_gradients_of_weights_are_those_of_f32() {
    let Some(device) = device() else { return };
    for ((cin, cout), (kh, kw), stride, pad, (h, w)) in CASES {
        let (how, shape) = (Convolution { stride, pad, groups: 1 }, [3, h, w, cin]);
        let send = |seed: u32, shape: &[usize]| {
            let exact = up(device, &coarse(&numbers(seed, shape.iter().product())), shape);
            let half = ops::to_bf16(device, &exact).unwrap();
            (exact, half)
        };
        let down = |array: &Array| device.download(array).unwrap();
        let ((x, half_x), (weights, half_weights)) = (send(1, &shape), send(2, &[cout, kh, kw, cin]));
        let y = ops::conv(device, &x, &weights, how).unwrap();
        neighbours(device, &ops::conv(device, &half_x, &half_weights, how).unwrap(), &coarse(&down(&y)));

        let bias = up(device, &coarse(&numbers(3, cout)), &[cout]);
        let mut sum = device.copy(&y).unwrap();
        ops::add_bias(device, &mut sum, &bias).unwrap();
        let sum = down(&sum);
        close(device, &ops::conv_biased(device, &x, &weights, &bias, how).unwrap(), &sum, 1e-6);
        let biased = ops::conv_biased(device, &half_x, &half_weights, &bias, how).unwrap();
        assert_eq!(biased.shape(), y.shape());
        neighbours(device, &biased, &coarse(&sum));
        assert!(ops::conv_biased(device, &half_x, &half_weights, &x, how).is_err());

        let (dy, half_dy) = send(4, y.shape());
        let dx = ops::conv_input(device, &dy, &weights, shape, how).unwrap();
        let half_dx = ops::conv_input(device, &half_dy, &half_weights, shape, how).unwrap();
        neighbours(device, &half_dx, &coarse(&down(&dx)));
        let [mut dw, mut learnt] = [0, 1].map(|_| device.zeros(&[cout, cin, kh, kw]).unwrap());
        ops::conv_weights(device, &dy, &x, how, &mut dw).unwrap();
        for _ in 0..2 {
            ops::conv_weights(device, &half_dy, &half_x, how, &mut learnt).unwrap();
        }
        close(device, &learnt, &down(&dw).iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 2e-5);
        assert!(ops::conv_weights(device, &half_x, &half_x, how, &mut learnt).is_err());
    }
}

/// Windows of all images, of two and of one at a time.
fn check_windows<T: Element>(device: &Device, cast: impl Fn(&Array) -> Array<T>) {
    for ((cin, cout), (kh, kw), stride, pad, (h, w)) in CASES {
        let (how, shape, dims) = (Convolution { stride, pad, groups: 1 }, [5, h, w, cin], [cout, kh, kw, cin]);
        let send = |seed: u32, shape: &[usize]| up(device, &coarse(&numbers(seed, shape.iter().product())), shape);
        let (x, weights) = (send(1, &shape), send(2, &dims));
        let y = ops::conv(device, &x, &weights, how).unwrap();
        let dy = send(3, y.shape());
        let mut dw = device.zeros(&[cout, cin, kh, kw]).unwrap();
        ops::conv_weights(device, &dy, &x, how, &mut dw).unwrap();
        let dw = device.download(&ops::channels_last(device, &dw).unwrap()).unwrap();
        let want = device.download(&y).unwrap();
        let (x, weights, dy) = (cast(&x), cast(&weights), cast(&dy));
        let image = want.len() / cout / 5 * (kh * kw * cin).next_multiple_of(8) * size_of::<T>();
        for room in [0, 2 * image, usize::MAX] {
            let windows = Patches::of(&x, &dims, how, room).unwrap();
            let mut sums = windows.times(device, &weights).unwrap();
            close(device, &sums, &want, 1e-5);
            windows.add_to(device, &weights, &mut sums).unwrap();
            close(device, &sums, &want.iter().map(|v| 2.0 * v).collect::<Vec<_>>(), 1e-5);
            assert!(windows.add_to(device, &weights, &mut device.zeros::<f32>(&[want.len()]).unwrap()).is_err());
            let learnt = windows.learnt(device, &dy).unwrap();
            assert_eq!(learnt.shape(), dims);
            close(device, &learnt, &dw, 2e-5);
            assert!(windows.times(device, &dy).is_err() && windows.learnt(device, &x).is_err());
        }
    }
    let x = cast(&up(device, &[1.0; 36], &[1, 3, 3, 4]));
    let how = Convolution { stride: 1, pad: (0, 0), groups: 2 };
    assert!(Patches::of(&x, &[2, 3, 3, 2], how, 0).is_err() && Patches::of(&x, &[2, 3, 3, 3], how, 0).is_err());
}

#[test]
fn windows_side_by_side_make_products_of_convolutions_however_many_there_is_room_for() {
    let Some(device) = device() else { return };
    check_windows(device, |x| device.copy(x).unwrap());
    check_windows(device, |x| ops::to_bf16(device, x).unwrap());
}

#[test]
fn what_is_made_of_a_run_is_what_is_made_of_its_numbers_alone() {
    let Some(device) = shared() else { return };
    for (first, shape) in [(0, [4, 3, 2, 2]), (1, [4, 3, 2, 2]), (3, [2, 35, 1, 40]), (4, [33, 4, 3, 3]), (7, [1; 4])] {
        let count = shape.iter().product::<usize>();
        let (all, run) = (numbers(first as u32, first + count + 3), first..first + count);
        let there = up(device, &all, &[all.len()]);
        let own = up(device, &all[run.clone()], &shape);
        let low = coarse(&all[run.clone()]);
        let half = ops::to_bf16_run(device, &there, run.clone(), &shape).unwrap();
        assert_eq!(half.shape(), shape);
        same(device, &half, &low);
        same(device, &ops::round_bf16_run(device, &there, run.clone(), &shape).unwrap(), &low);

        let turned = fetched(device, &ops::channels_last(device, &own).unwrap());
        let exact = ops::channels_last_run::<f32>(device, &there, run.clone(), &shape).unwrap();
        let half = ops::channels_last_run::<bf16>(device, &there, run.clone(), &shape).unwrap();
        assert_eq!((exact.shape(), half.shape()), (&[shape[0], shape[2], shape[3], shape[1]][..], exact.shape()));
        same(device, &exact, &turned);
        same(device, &half, &coarse(&turned));
        let [rows, columns] = [shape[1], shape[2] * shape[3]];
        // And back, on top of what is there.
        let mut sums = up(device, &vec![0.5; count], &shape);
        ops::add_turned(device, &mut sums, &exact, [shape[0], columns, rows]).unwrap();
        same(device, &sums, &all[run.clone()].iter().map(|v| 0.5 + v).collect::<Vec<_>>());
        assert!(ops::add_turned(device, &mut sums, &there, [shape[0], columns, rows]).is_err());

        for (run, shape) in [(first..first + count + 1, shape), (first + 4..first + 4 + count, shape), (0..0, [0; 4])] {
            assert!(ops::to_bf16_run(device, &there, run.clone(), &shape).is_err());
            assert!(ops::round_bf16_run(device, &there, run.clone(), &shape).is_err());
            assert!(ops::channels_last_run::<bf16>(device, &there, run, &shape).is_err());
        }

        // An operand is the same numbers; the sums of its only row are these.
        let there = Placed::new(device.clone(), there);
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let part = Operand::of_run(&there, run.clone(), &[count], false, precision).unwrap();
            let mut sums = device.zeros(&[count]).unwrap();
            part.add_sums(&mut sums).unwrap();
            assert_eq!(part.is_half(), precision == Precision::Bf16);
            same(device, &sums, if part.is_half() { &low } else { &all[run.clone()] });
            assert!(Operand::of_run(&there, run.clone(), &[count], true, precision).is_err());
        }
    }
}

#[test]
fn what_layers_hand_on_is_rounded_once_for_all_and_widened_as_it_is() {
    let Some(device) = shared() else { return };
    let exact = numbers(1, 12);
    let low = coarse(&exact);
    assert_ne!(exact, low);
    let full = Mixed::from(Placed::new(device.clone(), up(device, &exact, &[3, 4])).with_lengths(&[1, 2]));
    assert_eq!((full.shape(), full.rows(), full.is_half()), (&[3, 4][..], 3, false));
    // Whichever clone is asked.
    let (one, other) = (full.clone().half().unwrap(), full.half().unwrap());
    assert!(std::ptr::eq(one.array(), other.array()));
    let half = full.clone().rounded().unwrap();
    assert!(half.is_half() && std::ptr::eq(half.half().unwrap().array(), one.array()));
    same(device, one.array(), &low);
    assert_eq!([half.download(), half.full().unwrap().download()].map(Result::unwrap), [low.clone(), low.clone()]);
    assert_eq!(full.download().unwrap(), exact);

    // What is lent is the same memory, with what was said of it, and who changes it has a copy.
    let lent = full.full().unwrap();
    assert!(std::ptr::eq(lent.array(), full.full().unwrap().array()));
    assert_eq!(lent.lengths(), Some(&[1, 2][..]));
    // Also in bf16 and back, which is for lengths that it has.
    assert_eq!((one.lengths(), half.full().unwrap().lengths()), (Some(&[1, 2][..]), Some(&[1, 2][..])));
    for (length, fits) in [(256, true), (257, false), (258, true)] {
        let frame = Placed::new(device.clone(), up(device, &exact, &[3, 4])).with_lengths(&[1, length]);
        assert_eq!(Mixed::from(frame).rounded().is_ok(), fits, "{length}");
    }
    let twice = lent.changed(|device, x| ops::scale(device, x, 2.0)).unwrap();
    assert_eq!([full.download(), half.download()].map(Result::unwrap), [exact.clone(), low.clone()]);
    // What nobody else has is changed where it lies.
    let mut own = Mixed::from(twice).into_full().unwrap();
    own.change(|device, x| ops::scale(device, x, 0.5)).unwrap();
    assert_eq!(own.download().unwrap(), exact);
    assert!(full.clone().into_full().unwrap().change(|device, x| ops::scale(device, x, 0.5)).is_err());
    let mut wide = half.clone().into_full().unwrap();
    wide.change(|device, x| ops::scale(device, x, 1.0)).unwrap();
    assert_eq!(wide.download().unwrap(), low);

    for numbers in [full, half] {
        let other = numbers.clone().reshaped(&[2, 6]).unwrap();
        assert_eq!((other.shape(), other.is_half()), (&[2, 6][..], numbers.is_half()));
        assert_eq!(other.download().unwrap(), numbers.download().unwrap());
        assert!(numbers.reshaped(&[13]).is_err());
    }
}

#[test]
fn products_take_either_type_and_give_that_of_their_precision() {
    let Some(device) = shared() else { return };
    let handed = |seed: u32, shape: [usize; 2]| {
        Mixed::from(Placed::new(device.clone(), up(device, &numbers(seed, shape.iter().product()), &shape)))
    };
    let (exact, weights) = (handed(1, [3, 4]), handed(2, [2, 4]));
    let half = exact.clone().rounded().unwrap();
    let wide = Mixed::from(half.full().unwrap());
    let taken = |x: &Mixed, precision: Precision| Operand::of(x, precision).unwrap();
    let product = |x: &Mixed, precision: Precision| {
        let y = taken(x, precision).linear(&taken(&weights, precision), None).unwrap();
        assert_eq!(y.is_half(), precision == Precision::Bf16);
        y.download().unwrap()
    };
    assert_eq!(product(&half, Precision::F32), product(&wide, Precision::F32));
    assert_ne!(product(&half, Precision::F32), product(&exact, Precision::F32));
    let [a, b, c] = [&exact, &half, &wide].map(|x| product(x, Precision::Bf16));
    assert!(a == b && b == c);
    // What the product takes says its precision, and not what it was taken from.
    for (x, w) in [(Precision::F32, Precision::Bf16), (Precision::Bf16, Precision::F32)] {
        assert!(taken(&half, x).linear(&taken(&weights, w), None).is_err());
    }
}
