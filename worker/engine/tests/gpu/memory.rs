//! Memory that goes up and comes down, and rows and columns of it.

use tl_engine::gpu::ops::{self, Columns};

use crate::{device, numbers, same, up};

#[test]
fn what_goes_up_comes_down_also_through_memory_that_is_used_again() {
    let Some(device) = device() else { return };
    let mut staging = device.staging(100).unwrap();
    let (a, b) = (numbers(1, 100), numbers(2, 60));
    let first = staging.upload(device, &a, &[10, 10]).unwrap();
    let second = staging.upload(device, &b, &[6, 10]).unwrap();
    same(device, &first, &a);
    same(device, &second, &b);
    assert!(staging.upload(device, &numbers(3, 101), &[101]).is_err());
    let copy = device.copy(&first).unwrap().reshaped(&[4, 25]).unwrap();
    same(device, &copy, &a);
    assert_eq!((copy.rows(), copy.width()), (4, 25));
    device.synchronize().unwrap();
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
