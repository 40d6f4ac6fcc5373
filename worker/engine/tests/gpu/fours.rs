//! Numbers that are read four at a time where they can be, sums of many rows, and random words that come by fours.

use tl_engine::{
    gpu::{
        Array,
        ops::{self, Columns, Dropped},
    },
    nn::Act,
    num::{bf16::rounded, rng::Philox},
};

use crate::{close, device, fetched, numbers, same, up};

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
    for n in (1..=9).chain([1023, 1024, 1026]) {
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
    let moments = device.download(&ops::moments(device, &xs).unwrap()).unwrap();
    assert_eq!((moments.len(), moments[0]), (1 + 2 * c, rows as f64));
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

#[test]
fn what_is_dropped_of_scores_does_not_depend_on_the_room_that_they_have() {
    let Some(device) = device() else { return };
    let (lengths, heads) = ([5u32, 8, 3], 2);
    let dropped = Dropped::new(device, Philox::new(5, "dropout"), 4, 0.4, &[7, 1 << 40, 9]).unwrap();
    let counts = device.upload(&lengths, &[3]).unwrap();
    // What is real of squares of so many rows and columns, in order.
    let real = |scores: &Array, t: usize| -> Vec<f32> {
        let all = device.download(scores).unwrap();
        let squares = all.chunks_exact(t * t).enumerate();
        squares
            .flat_map(|(i, square)| {
                let length = lengths[i / heads] as usize;
                square.chunks_exact(t).take(length).flat_map(move |row| row[..length].to_vec())
            })
            .collect()
    };
    // Eight are read by fours, nine are not.
    let kept = [8, 9].map(|t| {
        let ones = up(device, &vec![1.001; 6 * t * t], &[6, t, t]);
        let shown = ops::shown_scores::<f32>(device, &ones, Some(&dropped), &counts).unwrap();
        let mut in_place = device.copy(&ones).unwrap();
        ops::dropout_scores(device, &mut in_place, &dropped, &counts).unwrap();
        let want = device.download(&in_place).unwrap();
        same(device, shown.array(), &want);
        let half = ops::shown_scores(device, &ones, Some(&dropped), &counts).unwrap();
        let coarse: Vec<f32> = want.iter().map(|v| rounded(*v)).collect();
        same(device, &ops::from_bf16(device, half.array()).unwrap(), &coarse);
        // Of which nothing is dropped, f32 is what it was.
        let all = ops::shown_scores::<f32>(device, &ones, None, &counts).unwrap();
        assert!(std::ptr::eq(all.array(), &ones));
        real(&in_place, t)
    });
    assert_eq!(kept[0], kept[1]);
    let zeros = kept[0].iter().filter(|v| **v == 0.0).count();
    assert!(zeros > 30 && zeros < kept[0].len() - 60, "{zeros} of {}", kept[0].len());
}

#[test]
fn columns_are_moved_by_fours_or_one_by_one_in_either_type() {
    let Some(device) = device() else { return };
    // The first can be read by four; in each of the others one number is in the way.
    for (from, to, width, source, target) in [
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
