//! Depthwise convolution of images `[n, h, w, c]` with weights `[c, 1, k, k]`, which are f32: of bf16 sums are f32, and what
//! layers go on with is rounded once.

use cudarc::driver::LaunchConfig;

use super::{Element, element::of_type, rows::total_groups, turn};
use crate::gpu::{
    Array, Device, Fault,
    launch::{GROUP, columns, each, fours, launch, small},
};

/// Threads of a block that makes gradients of weights: thirty-two weights, and so many chains in f32 for each.
const LEARNING: (u32, u32, u32) = (32, 16, 1);

/// How windows lie over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windowed {
    /// Their side.
    pub k: usize,
    /// Their distance.
    pub stride: usize,
    /// Zeros above and to the left; how many there are below and to the right follows from the outputs.
    pub before: (usize, usize),
    /// Rows and columns of outputs.
    pub outputs: (usize, usize),
}

impl Windowed {
    /// What the kernels take of it, for images of `h`, `w` and `c`.
    fn numbers(&self, h: usize, w: usize, c: usize) -> Result<[u32; 9], Fault> {
        let (top, left) = self.before;
        let (oh, ow) = self.outputs;
        if self.k == 0 || self.stride == 0 || oh * ow == 0 || top >= self.k || left >= self.k {
            return Err(Fault::shape(format!("{self:?} over images of {h}x{w}")));
        }
        let all = [h, w, c, oh, ow, self.k, self.stride, top, left];
        let mut numbers = [0; 9];
        for (number, n) in numbers.iter_mut().zip(all) {
            *number = small(n)?;
        }
        Ok(numbers)
    }

    fn expect(&self, weights: &Array, c: usize) -> Result<(), Fault> {
        weights.expect(&[c, 1, self.k, self.k])
    }

    /// Weights by tap: those of neighbouring channels are read at once.
    fn by_tap(&self, device: &Device, weights: &Array, c: usize) -> Result<Array, Fault> {
        self.expect(weights, c)?;
        turn(device, weights, [1, c, self.k * self.k])
    }
}

/// The outputs. Weights are taken as they are.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn depthwise<T: Element>(
    device: &Device,
    x: &Array<T>,
    weights: &Array,
    windows: Windowed,
) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    let weights = windows.by_tap(device, weights, c)?;
    let [h, w, c, oh, ow, k, stride, top, left] = windows.numbers(h, w, c)?;
    let mut y = device.fresh::<T>(&[n, windows.outputs.0, windows.outputs.1, x.width()])?;
    let count = y.count();
    launch!(
        device,
        Depthwise,
        of_type!(T, "depthwise"),
        fours(count),
        &mut y.data,
        &x.data,
        &weights.data,
        &((n * windows.outputs.0) as u64),
        &h,
        &w,
        &c,
        &oh,
        &ow,
        &k,
        &stride,
        &top,
        &left
    );
    Ok(y)
}

/// The input's gradient, for images of `h` times `w`.
///
/// # Errors
/// Other shapes.
pub fn depthwise_input<T: Element>(
    device: &Device,
    dy: &Array<T>,
    weights: &Array,
    (h, w): (usize, usize),
    windows: Windowed,
) -> Result<Array<T>, Fault> {
    let [n, oh, ow, c] = dy.images()?;
    dy.expect(&[n, windows.outputs.0, windows.outputs.1, c])?;
    let weights = windows.by_tap(device, weights, c)?;
    let mut dx = device.fresh::<T>(&[n, h, w, c])?;
    let (count, lines) = (dx.count(), (n * h) as u64);
    let [h, w, c, .., k, stride, top, left] = windows.numbers(h, w, c)?;
    launch!(
        device,
        Depthwise,
        of_type!(T, "depthwise_input"),
        fours(count),
        &mut dx.data,
        &dy.data,
        &weights.data,
        &lines,
        &h,
        &w,
        &c,
        &small(oh)?,
        &small(ow)?,
        &k,
        &stride,
        &top,
        &left
    );
    Ok(dx)
}

/// Adds the weights' gradient, of which nothing is rounded.
///
/// # Errors
/// Other shapes.
pub fn depthwise_weights<T: Element>(
    device: &Device,
    dy: &Array<T>,
    x: &Array<T>,
    windows: Windowed,
    dw: &mut Array,
) -> Result<(), Fault> {
    let [n, h, w, c] = x.images()?;
    dy.expect(&[n, windows.outputs.0, windows.outputs.1, c])?;
    windows.expect(dw, c)?;
    let (rows, taps) = (n * windows.outputs.0, windows.k * windows.k);
    let [h, w, channels, oh, ow, k, stride, top, left] = windows.numbers(h, w, c)?;
    let mut sums = device.fresh::<f64>(&[rows.div_ceil(GROUP), taps * c])?;
    launch!(
        device,
        Depthwise,
        of_type!(T, "depthwise_weights"),
        LaunchConfig { block_dim: LEARNING, ..columns(taps * c, sums.rows())? },
        &mut sums.data,
        &dy.data,
        &x.data,
        &(rows as u64),
        &h,
        &w,
        &channels,
        &oh,
        &ow,
        &k,
        &stride,
        &top,
        &left
    );
    let sums = total_groups(device, sums)?;
    let taps = small(taps)?;
    launch!(device, Rows, "add_totals_turned", each(dw.count()), &mut dw.data, &sums.data, &channels, &taps);
    Ok(())
}
