//! The gradient of a convolution's input as a product of matrices, where cuDNN has no algorithm for it: the way back of
//! [`Patches`](super::Patches).

use super::{
    Convolution, Element, Math, Matrix,
    product::{flat, multiply},
};
use crate::gpu::{
    Array, Fault,
    launch::{each, launch, small},
};

/// The input's gradient, of which nothing is rounded, for an input of `shape` and weights `[cout, kh, kw, cin]`. Slopes times
/// weights are what each window has of its numbers; each number of the input adds up, tap by tap, what the windows over it have.
/// Windows take no more than `room` bytes at a time, or those of one image; this is part of the result, since cuBLAS may add up
/// more rows at a time in another order.
///
/// # Errors
/// Shapes that do not fit, groups, a full memory, or cuBLAS is not there or refuses.
pub fn fold<'d, T: Element>(
    math: impl Into<Math<'d>>,
    dy: &Array<T>,
    weights: &Array<T>,
    shape: [usize; 4],
    how: Convolution,
    room: usize,
) -> Result<Array, Fault> {
    // It is the same in TF32.
    let plan = how.plan::<T>(false, shape, weights.shape())?;
    dy.expect(&plan.y)?;
    if plan.groups != 1 {
        return Err(Fault::shape(format!("windows over {} groups of channels", plan.groups)));
    }
    let ([n, h, w, c], [cout, kh, kw, _], [_, oh, ow, _]) = (plan.x, plan.w, plan.y);
    let (math, outputs, depth, image) = (math.into(), oh * ow, kh * kw * c, h * w * c);
    let step = (room / (outputs * depth * size_of::<f32>()).max(1)).max(1);
    let device = math.device;
    let mut dx = device.fresh::<f32>(&plan.x)?;
    for first in (0..n).step_by(step) {
        let images = first..n.min(first + step);
        let rows = images.len() * outputs;
        let mut windows = device.fresh::<f32>(&[rows, depth])?;
        let slopes = Matrix { first: first * outputs * cout, ..flat(dy) };
        let pair = (slopes, Matrix { stride: depth, ..flat(weights) });
        multiply(math, pair, (1, rows, depth, cout), (&mut windows, 0), false)?;
        let run = images.start * image..images.end * image;
        let count = run.len();
        launch!(
            device,
            Patches,
            "fold",
            each(count),
            &mut dx.data.slice_mut(run),
            &windows.data,
            &(count as u64),
            &small(h)?,
            &small(w)?,
            &small(c)?,
            &small(oh)?,
            &small(ow)?,
            &small(kh)?,
            &small(kw)?,
            &small(plan.stride)?,
            &small(plan.pad.0)?,
            &small(plan.pad.1)?
        );
    }
    Ok(dx)
}
