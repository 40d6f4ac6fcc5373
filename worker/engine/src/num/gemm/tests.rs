use proptest::prelude::*;

use super::*;
use crate::num::rng::Philox;

fn random(n: usize, site: u32) -> Vec<f32> {
    let mut s = Philox::new(5, "gemm").stream(0, site);
    (0..n).map(|_| s.normal()).collect()
}

/// Every combination of layouts against sums in double precision.
fn check((m, n, k): (usize, usize, usize), gap: usize) {
    let (a, b) = (random(m * k, 1), random(k * n, 2));
    let (mut at, mut bt) = (vec![0.0; m * k], vec![0.0; n * k]);
    (0..k).for_each(|p| (0..m).for_each(|i| at[p * m + i] = a[i * k + p]));
    (0..k).for_each(|p| (0..n).for_each(|j| bt[j * k + p] = b[p * n + j]));
    let ldc = n + gap;
    let mut all: Vec<Vec<f32>> = Vec::new();
    for left in [View::rows(&a, k), View::transposed(&at, m)] {
        for right in [View::rows(&b, n), View::transposed(&bt, k)] {
            for add in [false, true] {
                let mut out = vec![1.0; (m - 1) * ldc + n];
                gemm(&mut out, ldc, left, right, (m, n, k), add);
                for i in 0..m {
                    for j in 0..n {
                        let want: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                        let want = want + if add { 1.0 } else { 0.0 };
                        let got = f64::from(out[i * ldc + j]);
                        assert!((got - want).abs() < 2e-5 * (k as f64).sqrt(), "{i},{j}: {got} against {want}");
                    }
                    assert!(i + 1 == m || out[i * ldc + n..(i + 1) * ldc].iter().all(|v| *v == 1.0), "between rows");
                }
                if !add {
                    all.push(out);
                }
            }
        }
    }
    assert!(all.windows(2).all(|w| w[0] == w[1]), "layout changes no bit");
}

#[test]
fn agrees_with_the_naive_product_in_every_layout() {
    for shape in [(1, 1, 1), (3, 5, 7), (2, 300, 1100), (65, 17, 513), (9, 49, 256), (8, 48, 257), (31, 96, 64)] {
        check(shape, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn agrees_on_random_shapes(m in 1usize..40, n in 1usize..120, k in 1usize..300, gap in 0usize..3) {
        check((m, n, k), gap);
    }
}

#[test]
fn of_no_rows_nothing_comes() {
    let packed = Packed::of(View::rows(&[1.0; 6], 2), 3, 2);
    let mut out = [7.0; 2];
    multiply(&mut out, &[], &[], 3, &packed, false);
    rows_times(&mut [], &[], &packed, 2, false);
    gemm(&mut out, 2, View::rows(&[], 3), View::rows(&[1.0; 6], 2), (0, 2, 3), false);
    assert!(rows_product(&[], &packed, 2).is_empty() && out == [7.0; 2]);
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    for (o, k) in [(1, 64), (10, 512), (77, 1280), (256, 2000)] {
        let (x, w) = (random(70 * k, 3), random(o * k, 4));
        let all = linear(&x, &w, (70, o, k));
        for rows in [1, 2, 3, 17, 64, 65] {
            let some = linear(&x[k..], &w, (rows, o, k));
            assert_eq!(some, all[o..o * (rows + 1)], "o={o} k={k} rows={rows}");
        }
    }
}

#[test]
fn the_gradient_of_weights_does_not_depend_on_threads() {
    let (rows, o, k) = (700, 50, 70);
    let (dy, x) = (random(rows * o, 1), random(rows * k, 2));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut dw = vec![0.5; o * k];
        pool.install(|| outer(&mut dw, &dy, &x, (rows, o, k)));
        dw
    };
    let one = run(1);
    assert!([2, 3, 8].iter().all(|t| run(*t) == one));
    let want: f64 = (0..rows).map(|r| f64::from(dy[r * o + 7]) * f64::from(x[r * k + 9])).sum();
    assert!((f64::from(one[7 * k + 9]) - want - 0.5).abs() < 1e-3);
}
