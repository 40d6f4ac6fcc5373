//! Every level that this machine has, not only its own: each width of a part and each count of rows against chains of
//! fused products, and nothing beside them.

use super::*;
use crate::num::rng::Philox;

/// Rows of a part, and numbers of the left side's rows before those that they belong to.
const LEN: usize = 5;
const FROM: usize = 2;
/// Columns of the product before those of a part.
const FIRST: usize = 3;
/// Numbers between rows of the product, more than a vector has.
const GAP: usize = 17;
/// What lies where nothing is to be written.
const GUARD: f32 = 7.0;
/// Numbers of the widest vector.
const WIDEST: usize = 16;

/// Numbers of a vector, and a product by these.
type Way<L> = (usize, unsafe fn(&L, Part<'_>, &mut Target<'_>, bool));

/// What every machine has, then the levels with fused products that this one has.
fn ways<L: Left>() -> Vec<Way<L>> {
    let base: Way<L> = (Base::LANES, width::<Base, L, 4>);
    #[cfg(target_arch = "x86_64")]
    let fused: [Way<L>; 2] = [(Avx2::LANES, v3::<L>), (Avx512::LANES, v4::<L>)];
    #[cfg(not(target_arch = "x86_64"))]
    let fused: [Way<L>; 0] = [];
    let count = match level() {
        Level::V4 => 2,
        Level::V3 => 1,
        Level::Base => 0,
    };
    std::iter::once(base).chain(fused.into_iter().take(count)).collect()
}

/// `left` holds the rows `a`; `b` are the rows of the part.
fn check<L: Left>(left: &L, a: &[Vec<f32>], b: &[Vec<f32>]) {
    let (cols, width) = (b[0].len(), FIRST + b[0].len());
    let at: Vec<usize> = (0..a.len()).map(|i| i * (width + GAP)).collect();
    for (way, (lanes, product)) in ways::<L>().into_iter().enumerate() {
        let vectors = cols.div_ceil(lanes);
        if vectors > VECTORS {
            continue;
        }
        // What lies beside the columns would show in any sum.
        let mut data = vec![f32::NAN; LEN * vectors * lanes];
        data.chunks_exact_mut(vectors * lanes).zip(b).for_each(|(line, b)| line[..cols].copy_from_slice(b));
        let part = Part { data: &data, vectors, first: FIRST, cols, len: LEN, from: FROM };
        for add in [false, true] {
            let mut c = vec![GUARD; a.len() * (width + GAP)];
            // SAFETY: the sides are as long as the part says, and the machine has the level.
            unsafe { product(left, part, &mut Target::new(&mut c, &at, width), add) };
            for (i, row) in c.chunks_exact(width + GAP).enumerate() {
                for (j, got) in row.iter().enumerate() {
                    if !(FIRST..width).contains(&j) {
                        assert_eq!(*got, GUARD, "beside {cols} columns of row {i}, way {way}");
                        continue;
                    }
                    let sum = (0..LEN).fold(0.0, |sum, p| a[i][FROM + p].mul_add(b[p][j - FIRST], sum));
                    let want = if add { GUARD + sum } else { sum };
                    // Without fused products there is another rounding.
                    let same = if way > 0 { got.to_bits() == want.to_bits() } else { (got - want).abs() < 1e-4 };
                    assert!(same, "row {i}, column {j} of {cols}, way {way}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn every_level_gives_the_same_sums_and_writes_nothing_beside_them() {
    let mut stream = Philox::new(5, "kernel").stream(0, 0);
    let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| stream.normal()).collect() };
    let depth = FROM + LEN;
    for rows in 1..=ROWS + 1 {
        let a: Vec<Vec<f32>> = (0..rows).map(|_| random(depth)).collect();
        let slices: Vec<&[f32]> = a.iter().map(Vec::as_slice).collect();
        let mut tiles = vec![0.0; rows.div_ceil(ROWS) * ROWS * depth];
        for (i, row) in a.iter().enumerate() {
            row.iter().enumerate().for_each(|(p, v)| tiles[(i / ROWS * depth + p) * ROWS + i % ROWS] = *v);
        }
        for cols in 1..=VECTORS * WIDEST {
            let b: Vec<Vec<f32>> = (0..LEN).map(|_| random(cols)).collect();
            check(&Slices::new(&slices, depth), &a, &b);
            check(&Tiles::new(&tiles, rows, depth), &a, &b);
        }
    }
}
