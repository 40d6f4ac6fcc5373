//! Depthwise convolution of images `[n, h, w, c]` with weights `[c, 1, k, k]`.

use super::rows::total;
use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small},
};

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
    /// Whether what is read of images and slopes is rounded to bf16, and what layers go on with.
    pub rounds: bool,
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
}

/// The outputs. Weights are taken as they are.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn depthwise(device: &Device, x: &Array, weights: &Array, windows: Windowed) -> Result<Array, Fault> {
    let [n, h, w, c] = x.images()?;
    windows.expect(weights, c)?;
    let [h, w, c, oh, ow, k, stride, top, left] = windows.numbers(h, w, c)?;
    let mut y = device.fresh::<f32>(&[n, windows.outputs.0, windows.outputs.1, x.width()])?;
    let count = y.count();
    launch!(
        device,
        Depthwise,
        "depthwise",
        each(count),
        &mut y.data,
        &x.data,
        &weights.data,
        &(count as u64),
        &h,
        &w,
        &c,
        &oh,
        &ow,
        &k,
        &stride,
        &top,
        &left,
        &i32::from(windows.rounds)
    );
    Ok(y)
}

/// The input's gradient, for images of `h` times `w`.
///
/// # Errors
/// Other shapes.
pub fn depthwise_input(
    device: &Device,
    dy: &Array,
    weights: &Array,
    (h, w): (usize, usize),
    windows: Windowed,
) -> Result<Array, Fault> {
    let [n, oh, ow, c] = dy.images()?;
    dy.expect(&[n, windows.outputs.0, windows.outputs.1, c])?;
    windows.expect(weights, c)?;
    let mut dx = device.fresh::<f32>(&[n, h, w, c])?;
    let count = dx.count();
    let [h, w, c, .., k, stride, top, left] = windows.numbers(h, w, c)?;
    launch!(
        device,
        Depthwise,
        "depthwise_input",
        each(count),
        &mut dx.data,
        &dy.data,
        &weights.data,
        &(count as u64),
        &h,
        &w,
        &c,
        &small(oh)?,
        &small(ow)?,
        &k,
        &stride,
        &top,
        &left,
        &i32::from(windows.rounds)
    );
    Ok(dx)
}

/// Adds the weights' gradient.
///
/// # Errors
/// Other shapes.
pub fn depthwise_weights(
    device: &Device,
    dy: &Array,
    x: &Array,
    windows: Windowed,
    dw: &mut Array,
) -> Result<(), Fault> {
    let [n, h, w, c] = x.images()?;
    dy.expect(&[n, windows.outputs.0, windows.outputs.1, c])?;
    windows.expect(dw, c)?;
    let (rows, taps) = (n * windows.outputs.0, windows.k * windows.k);
    let [h, w, channels, oh, ow, k, stride, top, left] = windows.numbers(h, w, c)?;
    let mut lines = device.fresh::<f32>(&[rows, taps * c])?;
    launch!(
        device,
        Depthwise,
        "depthwise_weights",
        each(lines.count()),
        &mut lines.data,
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
        &left,
        &i32::from(windows.rounds)
    );
    let sums = total(device, &lines, taps * c)?;
    let taps = small(taps)?;
    launch!(device, Rows, "add_totals_turned", each(dw.count()), &mut dw.data, &sums.data, &channels, &taps);
    Ok(())
}
