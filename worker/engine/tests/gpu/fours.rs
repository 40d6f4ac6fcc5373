//! Numbers that are read four at a time where they can be, sums of many rows, and random words that come by fours.

use tl_engine::{
    gpu::{
        Array, Device,
        ops::{self, Columns, Dropped, Element, Softmax},
    },
    nn::{Act, Builder, DropPath, DropoutDraw},
    num::{bf16::rounded, math::exp, rng::Philox},
};

use crate::{close, device, fetched, numbers, run, same, up};

#[test]
fn any_count_of_numbers_is_worked_on_to_the_last_and_no_further() {
    let Some(device) = device() else { return };
    for n in (1..=9).chain([1023, 1024, 1026]) {
        let (a, b) = (numbers(1, n), numbers(2, n));
        let (left, right) = (up(device, &a, &[n]), up(device, &b, &[n]));
        let relu: Vec<f32> = a.iter().map(|v| if *v < 0.0 { 0.0 } else { *v }).collect();
        same(device, &ops::activate(device, Act::Relu, &left).unwrap(), &relu);
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        same(device, &ops::add_activate(device, Act::None, &left, &right).unwrap(), &sum);
        let coarse: Vec<f32> = a.iter().map(|v| rounded(*v)).collect();
        same(device, &ops::round_bf16(device, &left).unwrap(), &coarse);
        let half = ops::to_bf16(device, &left).unwrap();
        same(device, &ops::from_bf16(device, &half).unwrap(), &coarse);
        // Where they begin, and what lies around them.
        for first in 0..5 {
            let around = numbers(3, n + 7);
            let mut flat = up(device, &around, &[n + 7]);
            ops::add_run(device, &mut flat, first, &left).unwrap();
            let value = |(i, v): (usize, &f32)| if (first..first + n).contains(&i) { v + a[i - first] } else { *v };
            same(device, &flat, &around.iter().enumerate().map(value).collect::<Vec<_>>());
        }
    }
}

#[test]
fn sums_of_what_lies_in_either_type_are_those_of_f32() {
    let Some(device) = device() else { return };
    for n in (1..=17).chain([1023, 1024, 1026]) {
        let [a, b] = [1, 2].map(|seed| up(device, &numbers(seed, n), &[n]));
        let [half_a, half_b] = [&a, &b].map(|x| ops::to_bf16(device, x).unwrap());
        let [wide_a, wide_b] = [&half_a, &half_b].map(|x| ops::from_bf16(device, x).unwrap());
        for act in [Act::None, Act::Silu] {
            let want = |a: &Array, b: &Array| fetched(device, &ops::add_activate(device, act, a, b).unwrap());
            same(device, &ops::add_mixed(device, act, &a, &b).unwrap(), &want(&a, &b));
            same(device, &ops::add_mixed(device, act, &a, &half_b).unwrap(), &want(&a, &wide_b));
            same(device, &ops::add_mixed(device, act, &half_a, &b).unwrap(), &want(&wide_a, &b));
            same(device, &ops::add_mixed(device, act, &half_a, &half_b).unwrap(), &want(&wide_a, &wide_b));
        }
        let other = up(device, &numbers(3, n + 1), &[n + 1]);
        assert!(ops::add_mixed(device, Act::None, &half_a, &other).is_err());
    }
}

#[test]
fn channels_are_those_of_their_place_whatever_their_number() {
    let Some(device) = device() else { return };
    for c in [1, 2, 3, 4, 7, 8, 12, 33, 64] {
        let (x, own) = (numbers(1, 65 * c), numbers(2, c));
        let (there, factors) = (up(device, &x, &[65, c]), up(device, &own, &[c]));
        let each = |f: fn(f32, f32) -> f32| x.iter().enumerate().map(|(i, v)| f(*v, own[i % c])).collect::<Vec<_>>();
        same(device, &ops::scale_channels(device, &there, &factors).unwrap(), &each(|v, f| v * f));
        let mut sum = device.copy(&there).unwrap();
        ops::add_bias(device, &mut sum, &factors).unwrap();
        same(device, &sum, &each(|v, b| v + b));
        same(device, &ops::add_bias_rounded(device, &there, &factors).unwrap(), &each(|v, b| rounded(v + b)));
        assert!(ops::add_bias_rounded(device, &there, &there).is_err());
    }
}

#[test]
fn sums_of_more_rows_than_a_group_has_are_those_of_all() {
    let Some(device) = device() else { return };
    // Two groups of blocks of rows, and a rest of each.
    let (rows, c) = (64 * 256 + 64 * 3 + 5, 3);
    let x: Vec<f32> = numbers(7, rows * c).iter().map(|v| v + 20.0).collect();
    let xs = up(device, &x, &[rows, c]);
    let of = |channel: usize| x.iter().skip(channel).step_by(c).map(|v| f64::from(*v));
    let joined = ops::moments(device, &xs).unwrap();
    let moments = device.download(&joined).unwrap();
    assert_eq!((moments.len(), moments[0]), (1 + 2 * c, rows as f64));
    let stats = ops::statistics(device, &joined, 1e-3).unwrap();
    same(device, &ops::own_statistics(device, &xs, 1e-3).unwrap(), &device.download(&stats).unwrap());
    for channel in 0..c {
        let mean = of(channel).sum::<f64>() / rows as f64;
        let square = of(channel).map(|v| (v - mean).powi(2)).sum::<f64>();
        let (got_mean, got_square) = (moments[1 + channel], moments[1 + c + channel]);
        assert!((got_mean - mean).abs() < 1e-5, "{got_mean} instead of {mean}");
        assert!((got_square - square).abs() < 1e-4 * square, "{got_square} instead of {square}");
    }
    let want: Vec<f32> = (0..c).map(|channel| of(channel).sum::<f64>() as f32).collect();
    let (mut sums, mut halves) = (device.zeros(&[c]).unwrap(), device.zeros(&[c]).unwrap());
    ops::add_sums(device, &xs, &mut sums).unwrap();
    close(device, &sums, &want, 1e-5);
    ops::add_sums(device, &ops::to_bf16(device, &xs).unwrap(), &mut halves).unwrap();
    let coarse = |channel: usize| x.iter().skip(channel).step_by(c).map(|v| f64::from(rounded(*v))).sum::<f64>();
    close(device, &halves, &(0..c).map(|channel| coarse(channel) as f32).collect::<Vec<_>>(), 1e-5);
}

/// Heads of attention, the draws of three samples, the place of their dropout, and what scores are multiplied with.
const HEADS: usize = 2;
const DRAWS: [u64; 3] = [7, 1 << 40, 9];
const SITE: u32 = 4;
const SCALE: f32 = 0.3;

/// How long samples are, and the room of each: read by fours or not; of no more columns than a thread keeps, of one four more,
/// and of several.
const SQUARES: [([usize; 3], usize); 7] = [
    ([5, 8, 3], 8),
    ([5, 8, 3], 9),
    ([1, 1, 1], 1),
    ([16, 1, 17], 20),
    ([131, 2, 64], 131),
    ([131, 2, 64], 132),
    ([3, 129, 128], 200),
];

/// Squares of `t` rows and columns that have these numbers, in order, where they are real.
fn squares(real: &[f32], lengths: [usize; 3], t: usize, beyond: f32) -> Vec<f32> {
    let (mut all, mut real) = (vec![beyond; 3 * HEADS * t * t], real.iter());
    for (i, square) in all.chunks_exact_mut(t * t).enumerate() {
        let length = lengths[i / HEADS];
        for row in square.chunks_exact_mut(t).take(length) {
            row[..length].iter_mut().zip(&mut real).for_each(|(to, v)| *to = *v);
        }
    }
    all
}

/// A sum as `nn::lanes` has it: sixteen chains, folded by halves.
fn folded(values: impl Iterator<Item = f32>) -> f32 {
    let mut chains = [0.0f32; 16];
    values.enumerate().for_each(|(i, v)| chains[i % 16] += v);
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|i| chains[i] += chains[i + half]);
    }
    chains[0]
}

/// Of scores and slopes that are real: probabilities without what is dropped, and the slopes of scores.
fn looked(s: &[f32], d: &[f32], lengths: [usize; 3], (rng, p): (Philox, f32)) -> [Vec<f32>; 2] {
    let (mut shown, mut slopes, mut first) = (Vec::new(), Vec::new(), 0);
    for (length, draw) in lengths.iter().zip(DRAWS) {
        let mut stream = rng.stream(draw, SITE);
        for _ in 0..HEADS * length {
            let (s, d) = (&s[first..first + length], &d[first..first + length]);
            first += length;
            let most = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = s.iter().map(|s| exp((s - most) * SCALE)).collect();
            let inverse = 1.0 / folded(exps.iter().copied());
            let own: Vec<f32> = exps.iter().map(|e| e * inverse).collect();
            let factors: Vec<f32> =
                own.iter().map(|_| if stream.uniform() < p { 0.0 } else { 1.0 / (1.0 - p) }).collect();
            let d: Vec<f32> = d.iter().zip(&factors).map(|(d, factor)| d * factor).collect();
            let along = folded(d.iter().zip(&own).map(|(d, own)| d * own));
            shown.extend(own.iter().zip(&factors).map(|(own, factor)| own * factor));
            slopes.extend(own.iter().zip(&d).map(|(own, d)| own * (d - along) * SCALE));
        }
    }
    [shown, slopes]
}

/// What is made of scores; then of scores and slopes on the way back.
fn passed<T: Element + Clone + Default + Into<f32>>(
    device: &Device,
    [mut s, mut ds]: [Array<T>; 2],
    how: &Softmax<'_>,
) -> [Vec<f32>; 3] {
    let mut shown = device.copy(&s).unwrap();
    let notes = ops::softmax(device, &mut shown, how).unwrap();
    ops::softmax_back(device, [&mut s, &mut ds], &notes, how).unwrap();
    [&shown, &s, &ds].map(|array| fetched(device, array))
}

#[test]
fn probabilities_have_the_bits_of_the_cpu_there_and_back_in_either_type_whatever_their_room() {
    let Some(device) = device() else { return };
    let rng = Philox::new(5, "dropout");
    for (lengths, t) in SQUARES {
        let counts = device.upload(&lengths.map(|length| length as u32), &[3]).unwrap();
        let count: usize = lengths.iter().map(|length| HEADS * length * length).sum();
        // Of numbers that bf16 has, both types have the same. The largest of all is beyond the end.
        let [s, d] = [1, 2].map(|seed| numbers(seed, count).iter().map(|v| rounded(4.0 * v)).collect::<Vec<_>>());
        for p in [0.0, 0.4] {
            let dropped = Dropped::new(device, rng, SITE, p, &DRAWS).unwrap();
            let how = Softmax { lengths: &counts, scale: SCALE, dropped: (p > 0.0).then_some(&dropped) };
            let [shown, slopes] = looked(&s, &d, lengths, (rng, p));
            assert!(shown.contains(&0.0) == (p > 0.0) || t == 1);
            let want = [&shown, &shown, &slopes].map(|real| squares(real, lengths, t, 0.0));
            let full = [&s, &d].map(|v| up(device, &squares(v, lengths, t, 96.0), &[3 * HEADS, t, t]));
            let half = full.each_ref().map(|array| ops::to_bf16(device, array).unwrap());
            let coarse = want.each_ref().map(|v| v.iter().map(|v| rounded(*v)).collect::<Vec<_>>());
            assert!(passed(device, full, &how) == want, "{lengths:?} in {t}, {p} dropped");
            assert!(passed(device, half, &how) == coarse, "{lengths:?} in {t}, {p} dropped, in bf16");
        }
    }
}

#[test]
fn what_is_left_in_memory_of_its_own_is_what_is_left_in_place_and_is_not_rounded() {
    let Some(device) = device() else { return };
    let dropped = Dropped::new(device, Philox::new(5, "dropout"), SITE, 0.3, &DRAWS).unwrap();
    for elements in [[50, 7, 20], [4, 8, 12], [1024, 3, 5]] {
        let count: usize = elements.iter().sum();
        let x: Vec<f32> = numbers(1, count).iter().map(|v| rounded(*v)).collect();
        let full = up(device, &x, &[count]);
        let (half, mut in_place) = (ops::to_bf16(device, &full).unwrap(), device.copy(&full).unwrap());
        ops::dropout(device, &mut in_place, &dropped, &elements).unwrap();
        let want = fetched(device, &in_place);
        assert!(want.contains(&0.0) && want.iter().any(|v| *v != rounded(*v)));
        same(device, &ops::dropout_from(device, &full, &dropped, &elements).unwrap(), &want);
        same(device, &ops::dropout_from(device, &half, &dropped, &elements).unwrap(), &want);
        same(device, &full, &x);
        same(device, &half, &x);
        assert!(ops::dropout_from(device, &half, &dropped, &[count, 1, 1]).is_err());
        assert!(ops::dropout_from(device, &half, &dropped, &[count]).is_err());
    }
}

#[test]
fn whole_samples_are_dropped_as_the_host_drops_them_however_many_there_are() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    // Samples that begin where fours do or do not, of more than a block has, and more of them than have blocks of their own.
    for (samples, size) in [(5, 1), (9, 6), (40, 8), (4, 1030), (2, 3000), (4100, 3)] {
        let draws: Vec<u64> = (0..samples as u64).map(|i| (i << 33) | i).collect();
        let draw = DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws };
        let x: Vec<f32> = numbers(1, samples * size).iter().map(|v| rounded(*v)).collect();
        // Twice what bf16 has, it has too.
        let want = run(&DropPath { p: 0.5, site: 4 }, &store, (&x, &[samples, size]), Some(draw), false).y;
        let dropped = Dropped::new(device, draw.rng, 4, 0.5, &draws).unwrap();
        let there = up(device, &x, &[samples, size]);
        same(device, &ops::drop_path(device, &there, &dropped).unwrap(), &want);
        let half = ops::to_bf16(device, &there).unwrap();
        same(device, &ops::drop_path(device, &half, &dropped).unwrap(), &want);
    }
}

#[test]
fn columns_are_moved_by_eights_by_fours_or_one_by_one_in_either_type() {
    let Some(device) = device() else { return };
    // The first can be read by eight, the next by four; in each of the others one number is in the way.
    for (from, to, width, source, target) in [
        (8, 16, 24, 32, 40),
        (8, 16, 24, 32, 44),
        (4, 8, 8, 12, 16),
        (3, 8, 8, 12, 16),
        (4, 7, 8, 12, 16),
        (4, 8, 7, 12, 16),
        (4, 8, 8, 13, 16),
        (4, 8, 8, 12, 17),
    ] {
        let coarse = |seed: u32, count: usize| numbers(seed, count).iter().map(|v| rounded(*v)).collect::<Vec<_>>();
        let (x, around) = (coarse(1, 20 * source), coarse(2, 20 * target));
        let value = |(i, around): (usize, &f32)| match (i % target).checked_sub(to) {
            Some(column) if column < width => x[i / target * source + from + column],
            _ => *around,
        };
        let want: Vec<f32> = around.iter().enumerate().map(value).collect();
        let (there, mut full) = (up(device, &x, &[20, source]), up(device, &around, &[20, target]));
        let [half, mut low] = [&there, &full].map(|array| ops::to_bf16(device, array).unwrap());
        let columns = Columns { from, to, width };
        ops::copy_columns(device, &there, &mut full, columns, false).unwrap();
        same(device, &full, &want);
        ops::copy_columns(device, &half, &mut low, columns, false).unwrap();
        same(device, &ops::from_bf16(device, &low).unwrap(), &want);
        // Sums are f32.
        assert!(ops::copy_columns(device, &half, &mut low, columns, true).is_err());
    }
}
