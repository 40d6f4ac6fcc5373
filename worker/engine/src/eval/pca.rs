//! The plane in which rows spread most: two principal components by subspace iteration, in f64 and in a fixed order.

use super::matrix::{Matrix, dot, normalise};
use crate::num::rng::Philox;

/// Rounds; what two directions of nearly the same spread come to does not matter to a picture.
const ROUNDS: usize = 60;

/// Rows in the plane, and the part of their variance that it shows.
pub fn plane(rows: &[&[f32]]) -> (Vec<[f32; 2]>, f64) {
    let mut x = Matrix::new(rows.iter().copied());
    let (mean, _) = x.moments();
    x.scale(&mean, &vec![1.0; mean.len()]);
    let mut stream = Philox::new(0, "plane").stream(0, 0);
    let mut axes = [0; 2].map(|_| (0..x.width).map(|_| f64::from(stream.normal())).collect::<Vec<f64>>());
    for _ in 0..ROUNDS {
        for i in 0..2 {
            let mut axis = x.times_t(&x.times(&axes[i]));
            if i == 1 {
                let along = dot(&axis, &axes[0]);
                axis.iter_mut().zip(&axes[0]).for_each(|(a, first)| *a -= along * first);
            }
            normalise(&mut axis);
            axes[i] = axis;
        }
    }
    for axis in &mut axes {
        // Either way round is an axis: the one whose largest number is positive.
        let largest = axis.iter().copied().fold(0.0f64, |a, v| if v.abs() > a.abs() { v } else { a });
        if largest < 0.0 {
            axis.iter_mut().for_each(|v| *v = -*v);
        }
    }
    let [first, second] = axes.map(|axis| x.times(&axis));
    let whole: f64 = x.rows().map(|row| dot(row, row)).sum();
    let shown = dot(&first, &first) + dot(&second, &second);
    let points = first.iter().zip(&second).map(|(a, b)| [*a as f32, *b as f32]).collect();
    (points, if whole > 0.0 { shown / whole } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plane_of_an_ellipsoid_is_that_of_its_long_axes() {
        // Along (3, 4)/5 by ±10, across it by ±2, and in a third direction by ±0.5, around a point far away.
        let mut rows = Vec::new();
        for (i, j, k) in (0..8).map(|b| (b & 1, b >> 1 & 1, b >> 2)) {
            let (a, b, c) = (20.0 * i as f32 - 10.0, 4.0 * j as f32 - 2.0, k as f32 - 0.5);
            rows.push(vec![7.0 + 0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b, c - 3.0]);
        }
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let (points, shown) = plane(&rows);
        assert!(
            points.iter().all(|p| (p[0].abs() - 10.0).abs() < 1e-4 && (p[1].abs() - 2.0).abs() < 1e-4),
            "{points:?}"
        );
        assert!((shown - 104.0 / 104.25).abs() < 1e-9, "{shown}");
        assert!(points[1][0] > 0.0, "the axis points where its largest number is positive");
    }

    #[test]
    fn rows_that_are_all_the_same_are_one_point() {
        let (points, shown) = plane(&[&[1.0, 2.0], &[1.0, 2.0]]);
        assert_eq!((points, shown), (vec![[0.0; 2]; 2], 0.0));
    }
}
