//! The angles at each sample between all others, against a teacher's, with the gradient. There are n³ of them: they are
//! worked out sample by sample, in the room of a few matrices of n x n, and added up in the order of samples.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    Result,
    nn::{host, tensor},
    num::gemm::{View, gemm},
};

/// Samples whose angles are worked out at a time; what they come to is added in order, whoever was first.
const AT_A_TIME: usize = 16;

/// Huber's loss between the cosines of `own[n, d]` and of `theirs[n, e]`: the mean over all triples of samples. Where two of
/// the three are the same, the cosine is 0 and nothing flows back.
pub(super) fn loss(own: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let (own, theirs) = (own.contiguous()?, theirs.contiguous()?);
    let (n, width) = own.dims2()?;
    let (value, slopes) = {
        let (x, y) = (host(&own)?, host(&theirs)?);
        let (x, y): (Rows<'_>, Rows<'_>) = ((&x[..], width), (&y[..], theirs.dim(1)?));
        let anchors: Vec<usize> = (0..n).collect();
        let (mut value, mut slopes) = (0.0, vec![0.0f64; n * width]);
        for some in anchors.chunks(AT_A_TIME) {
            let found: Vec<(f64, Vec<f32>)> = some.par_iter().map(|anchor| at(*anchor, x, y)).collect();
            for (one, slope) in found {
                value += one;
                slopes.iter_mut().zip(slope).for_each(|(sum, s)| *sum += f64::from(s));
            }
        }
        (value, slopes)
    };
    let all = (n * n * n).max(1) as f64;
    let slopes = tensor(slopes.into_iter().map(|s| (s / all) as f32).collect(), &[n, width])?;
    Ok(own.apply_op1(Known { value: (value / all) as f32, slopes })?)
}

/// Rows of numbers, and how wide they are.
type Rows<'a> = (&'a [f32], usize);

/// The sum over all angles at one sample, and its gradient by every row of `own`.
fn at(anchor: usize, own: Rows<'_>, theirs: Rows<'_>) -> (f64, Vec<f32>) {
    let (directions, lengths) = seen_from(anchor, own);
    let (n, width) = (lengths.len(), own.1);
    let wanted = cosines(&seen_from(anchor, theirs).0, n, theirs.1);
    let mut by = cosines(&directions, n, width);
    let mut sum = 0.0;
    for (own, theirs) in by.iter_mut().zip(&wanted) {
        // Half the square up to one, beyond it straight; the slope is what is near.
        let (off, near) = (*own - theirs, (*own - theirs).clamp(-1.0, 1.0));
        sum += f64::from(near) * (f64::from(off) - 0.5 * f64::from(near));
        *own = near;
    }
    let mut slopes = vec![0.0; n * width];
    gemm(&mut slopes, width, View::rows(&by, n), View::rows(&directions, width), (n, width, n), false);
    let mut back = vec![0.0f64; width];
    for ((slope, direction), length) in slopes.chunks_exact_mut(width).zip(directions.chunks_exact(width)).zip(&lengths)
    {
        if *length == 0.0 {
            slope.fill(0.0);
            continue;
        }
        // Each direction stands in two cosines of each pair, and only turns: along itself nothing flows.
        let along = slope.iter().zip(direction).fold(0.0f64, |sum, (s, d)| sum + f64::from(*s) * f64::from(*d)) as f32;
        for ((s, d), back) in slope.iter_mut().zip(direction).zip(&mut back) {
            *s = 2.0 * (*s - along * d) / length;
            *back -= f64::from(*s);
        }
    }
    let row = &mut slopes[anchor * width..(anchor + 1) * width];
    row.iter_mut().zip(back).for_each(|(s, b)| *s = b as f32);
    (sum, slopes)
}

/// In which direction each row lies, seen from one of them, and how far; what lies at the same place has none.
fn seen_from(anchor: usize, (rows, width): Rows<'_>) -> (Vec<f32>, Vec<f32>) {
    let from = &rows[anchor * width..(anchor + 1) * width];
    let (mut directions, mut lengths) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows.chunks_exact(width) {
        let apart = row.iter().zip(from).map(|(a, b)| a - b);
        let length = apart.clone().fold(0.0f64, |sum, v| sum + f64::from(v) * f64::from(v)).sqrt() as f32;
        directions.extend(apart.map(|v| if length > 0.0 { v / length } else { 0.0 }));
        lengths.push(length);
    }
    (directions, lengths)
}

/// Products of all pairs of rows: `[n, n]`.
fn cosines(directions: &[f32], n: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * n];
    gemm(&mut out, n, View::rows(directions, width), View::transposed(directions, width), (n, n, width), false);
    out
}

/// A number that is known already, with its gradient by what it depends on.
struct Known {
    value: f32,
    slopes: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "angles"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.slopes.broadcast_mul(grad)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::nn::testing;

    /// Tensors of `[n², n]`, which candle differentiates.
    #[expect(clippy::disallowed_methods, reason = "a second opinion")]
    fn by_candle(own: &Tensor, theirs: &Tensor) -> Tensor {
        let cosines = |rows: &Tensor| {
            let apart = rows.unsqueeze(0).unwrap().broadcast_sub(&rows.unsqueeze(1).unwrap()).unwrap();
            let squares = apart.sqr().unwrap().sum_keepdim(2).unwrap();
            let none = squares.detach().eq(0.0).unwrap().to_dtype(squares.dtype()).unwrap();
            let directions = apart.broadcast_div(&(squares + none).unwrap().sqrt().unwrap()).unwrap();
            directions.matmul(&directions.transpose(1, 2).unwrap().contiguous().unwrap()).unwrap()
        };
        let off = cosines(own).sub(&cosines(theirs)).unwrap().abs().unwrap();
        let near = off.minimum(1.0).unwrap();
        ((near.sqr().unwrap() * 0.5).unwrap() + off.sub(&near).unwrap()).unwrap().mean_all().unwrap()
    }

    #[test]
    fn angles_are_those_of_all_triples_at_once() {
        // More samples than are worked out at a time, and cosines that differ by more than one.
        for (n, own, theirs) in [(AT_A_TIME + 3, 5, 7), (3, 2, 2), (1, 2, 2)] {
            let own = Var::from_tensor(&testing::input(&[n, own])).unwrap();
            let theirs = (testing::input(&[n, theirs]) * -3.0).unwrap();
            let (got, want) = (loss(own.as_tensor(), &theirs).unwrap(), by_candle(own.as_tensor(), &theirs));
            testing::assert_close(&got, &want, 1e-5);
            // Times a number, so that what comes from above counts.
            let slopes = |t: &Tensor| (t * 50.0).unwrap().backward().unwrap().get(&own).unwrap().contiguous().unwrap();
            testing::assert_close(&slopes(&got), &slopes(&want), 1e-4);
        }
    }

    #[test]
    fn threads_change_no_bit_and_samples_at_one_place_break_nothing() {
        let n = 2 * AT_A_TIME + 1;
        let mut values = host(&testing::input(&[n, 3])).unwrap().to_vec();
        values.copy_within(0..3, 3);
        let theirs = testing::input(&[n, 4]);
        let bits = |threads: usize| {
            crate::num::pool::build(threads).install(|| {
                let own = Var::from_tensor(&tensor(values.clone(), &[n, 3]).unwrap()).unwrap();
                let got = loss(own.as_tensor(), &theirs).unwrap();
                let slopes = got.backward().unwrap().get(&own).unwrap().contiguous().unwrap();
                let all: Vec<f32> = [host(&got).unwrap().to_vec(), host(&slopes).unwrap().to_vec()].concat();
                assert!(all.iter().all(|v| v.is_finite() && v.abs() < 1e3), "{all:?}");
                all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            })
        };
        assert_eq!(bits(1), bits(3));
    }
}
