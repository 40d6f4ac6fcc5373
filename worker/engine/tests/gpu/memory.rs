//! Memory that goes up and comes down, and rows and columns of it.

use tl_engine::gpu::{
    Placed, Staging,
    ops::{self, Columns},
};

use crate::{device, numbers, same, shared, up};

#[test]
fn what_goes_up_comes_down_also_through_memory_that_is_used_again() {
    let Some(device) = device() else { return };
    let (a, b) = (numbers(1, 100), numbers(2, 60));
    let sent = |mut staging: Staging| {
        let first = device.adopt(staging.upload(&a, &[10, 10]).unwrap()).unwrap();
        let second = device.adopt(staging.upload(&b, &[6, 10]).unwrap()).unwrap();
        same(device, &first, &a);
        same(device, &second, &b);
        assert!(staging.upload(&numbers(3, 101), &[101]).is_err());
        first
    };
    sent(device.staging_aside(100).unwrap());
    let first = sent(device.staging(100).unwrap());
    let copy = device.copy(&first).unwrap().reshaped(&[4, 25]).unwrap();
    same(device, &copy, &a);
    assert_eq!((copy.rows(), copy.width()), (4, 25));
    device.synchronize().unwrap();
}

#[test]
fn the_most_that_was_ever_taken_is_known_where_the_driver_counts() {
    let Some(device) = device() else { return };
    let whole = device.zeros::<f32>(&[1 << 20]).unwrap();
    drop(whole);
    device.synchronize().unwrap();
    let counts = device.stream().context().has_async_alloc();
    assert_eq!(device.peak().unwrap().is_some_and(|most| most >= 4 << 20), counts);
}

#[test]
fn rows_are_taken_and_columns_lie_side_by_side() {
    let Some(device) = device() else { return };
    let x = numbers(1, 20 * 3);
    let xs = up(device, &x, &[20, 3]);
    let which = [Some(3), None, Some(19), Some(3)];
    let want = which.iter().flat_map(|r| r.map_or(vec![0.0; 3], |r| x[r * 3..][..3].to_vec())).collect::<Vec<_>>();
    same(device, &ops::take_rows(device, &xs, &which).unwrap(), &want);
    assert!(ops::take_rows(device, &xs, &[Some(20)]).is_err());

    let (wide, other) = (numbers(2, 20 * 7), numbers(3, 20 * 4));
    let (mut to, from) = (up(device, &wide, &[20, 7]), up(device, &other, &[20, 4]));
    let columns = Columns { from: 1, to: 4, width: 3 };
    let value = |add: bool, i: usize| match i % 7 {
        column @ 4.. => other[i / 7 * 4 + column - 3] + if add { wide[i] } else { 0.0 },
        _ => wide[i],
    };
    ops::copy_columns(device, &from, &mut to, columns, true).unwrap();
    same(device, &to, &(0..140).map(|i| value(true, i)).collect::<Vec<_>>());
    ops::copy_columns(device, &from, &mut to, columns, false).unwrap();
    same(device, &to, &(0..140).map(|i| value(false, i)).collect::<Vec<_>>());
    for columns in [Columns { from: 2, ..columns }, Columns { to: 5, ..columns }, Columns { width: 0, ..columns }] {
        assert!(ops::copy_columns(device, &from, &mut to, columns, false).is_err());
    }
}

#[test]
fn columns_are_cut_out_and_matrices_joined() {
    let Some(device) = device() else { return };
    let (a, b) = (numbers(1, 2 * 35 * 3), numbers(2, 2 * 35 * 4));
    let (left, right) = (up(device, &a, &[2, 35, 3]), up(device, &b, &[2, 35, 4]));
    // Alone they are all there is; among others what they leave is zero.
    for (first, width) in [(0, 7), (0, 9), (2, 9)] {
        let joined = ops::join_columns(device, &[&left, &right], first, width).unwrap();
        assert_eq!(joined.shape(), [2, 35, width]);
        let value = |i: usize| match (i % width).checked_sub(first) {
            Some(column @ 0..3) => a[i / width * 3 + column],
            Some(column @ 3..7) => b[i / width * 4 + column - 3],
            _ => 0.0,
        };
        same(device, &joined, &(0..70 * width).map(value).collect::<Vec<_>>());
        let back = ops::cut_columns(device, &joined, first + 3..first + 7).unwrap();
        assert_eq!(back.shape(), [2, 35, 4]);
        same(device, &back, &b);
        assert!(ops::join_columns(device, &[&left, &right], width - 6, width).is_err());
        assert!(ops::cut_columns(device, &joined, width - 1..width + 1).is_err());
        assert!(ops::cut_columns(device, &joined, 1..1).is_err());
    }
    assert!(ops::join_columns::<f32>(device, &[], 0, 7).is_err());
    assert!(ops::join_columns(device, &[&left, &up(device, &b[..4], &[1, 4])], 0, 7).is_err());
}

#[test]
fn matrices_are_turned_and_pixels_left_out_as_their_sizes_say() {
    let Some(device) = device() else { return };
    let x = numbers(1, 2 * 3 * 5 * 2);
    let xs = up(device, &x, &[2, 3, 5, 2]);
    let turned = ops::turn(device, &xs, [2, 15, 2]).unwrap();
    assert_eq!(turned.shape(), [2, 2, 15]);
    same(device, &turned, &(0..60).map(|i| x[i / 30 * 30 + i % 15 * 2 + i / 15 % 2]).collect::<Vec<_>>());
    assert!(ops::turn(device, &xs, [2, 15, 3]).is_err() && ops::turn(device, &xs, [usize::MAX, 15, 2]).is_err());

    // Two rows and three columns of five channels: one before those of the image, and two behind.
    let small = ops::subsample(device, &xs, 5).unwrap();
    assert_eq!(small.shape(), [2, 2, 3, 5]);
    let pixel = |i: usize| (i / 30 * 3 + i / 15 % 2 * 2) * 5 + i / 5 % 3 * 2;
    let value = |i: usize| if (1..3).contains(&(i % 5)) { x[pixel(i) * 2 + i % 5 - 1] } else { 0.0 };
    let want: Vec<f32> = (0..60).map(value).collect();
    same(device, &small, &want);
    let back = ops::subsample_back(device, &small, [3, 5, 2]).unwrap();
    assert_eq!(back.shape(), [2, 3, 5, 2]);
    let kept = |i: usize| i / 10 % 3 != 1 && (i / 2 % 5).is_multiple_of(2);
    same(device, &back, &x.iter().enumerate().map(|(i, v)| if kept(i) { *v } else { 0.0 }).collect::<Vec<_>>());
    assert!(ops::subsample(device, &xs, 1).is_err());
    for other in [[2, 5, 2], [3, 5, 6]] {
        assert!(ops::subsample_back(device, &small, other).is_err());
    }
}

#[test]
fn a_shape_changes_for_one_and_stays_for_others() {
    let Some(device) = shared() else { return };
    let x = numbers(1, 12);
    let here = Placed::new(device.clone(), up(device, &x, &[3, 4]));
    let there = here.clone().reshaped(&[2, 6]).unwrap();
    assert_eq!((here.array().shape(), there.array().shape()), (&[3, 4][..], &[2, 6][..]));
    let alone = here.reshaped(&[12]).unwrap();
    assert_eq!((alone.download().unwrap(), there.download().unwrap()), (x.clone(), x));
    assert!(alone.reshaped(&[13]).is_err());
}
