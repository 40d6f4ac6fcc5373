//! Pooling of images `[n, h, w, c]`: of bf16 sums are f32 or f64, and what they come to is rounded once.

use std::sync::Arc;

use super::{Element, element::of_type};
use crate::gpu::{
    Array, Device, Fault,
    launch::{columns, fours, launch, small},
};

/// The largest of each window of side `k`, and the pixel of its image where it lies. `nn::MaxPool` says which one wins.
///
/// # Errors
/// An image without a window, a full memory, or a GPU that has failed.
pub fn max_pool<T: Element>(
    device: &Device,
    x: &Array<T>,
    k: usize,
    stride: usize,
    pad: usize,
) -> Result<(Array<T>, Array<u32>), Fault> {
    let [n, h, w, c] = x.images()?;
    if h + 2 * pad < k || w + 2 * pad < k || pad >= k || stride == 0 {
        return Err(Fault::shape(format!("images of {h}x{w} in windows of {k}, {stride} apart, in a border of {pad}")));
    }
    let shape = [n, (h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1, c];
    let (mut y, mut chosen) = (device.fresh::<T>(&shape)?, device.fresh::<u32>(&shape)?);
    let count = y.count();
    launch!(
        device,
        Pool,
        of_type!(T, "max_pool"),
        fours(count),
        &mut y.data,
        &mut chosen.data,
        &x.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(shape[1])?,
        &small(shape[2])?,
        &small(k)?,
        &small(stride)?,
        &small(pad)?
    );
    Ok((y, chosen))
}

/// The input's gradient, for an input of `shape`.
///
/// # Errors
/// Other shapes.
pub fn max_pool_back<T: Element>(
    device: &Device,
    dy: &Array<T>,
    chosen: &Array<u32>,
    shape: [usize; 4],
    k: usize,
    stride: usize,
    pad: usize,
) -> Result<Array<T>, Fault> {
    let ([n, oh, ow, c], [images, h, w, channels]) = (dy.images()?, shape);
    chosen.expect(dy.shape())?;
    if (n, c) != (images, channels) || pad >= k || stride == 0 {
        return Err(Fault::shape(format!("the slope {:?} of a pooling of {shape:?}", dy.shape())));
    }
    let mut dx = device.fresh::<T>(&shape)?;
    let count = dx.count();
    launch!(
        device,
        Pool,
        of_type!(T, "max_pool_back"),
        fours(count),
        &mut dx.data,
        &dy.data,
        &chosen.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(oh)?,
        &small(ow)?,
        &small(k)?,
        &small(stride)?,
        &small(pad)?
    );
    Ok(dx)
}

/// The pixels of a window in one direction, and how many it is divided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its pixels; windows begin and end in their order.
    pub pixels: std::ops::Range<usize>,
    /// Its share of the divisor.
    pub count: usize,
}

/// As `average_pool` takes them: first pixel, pixel behind the last, divisor.
fn table(device: &Device, windows: &[Window], size: usize) -> Result<Arc<Array<u32>>, Fault> {
    let mut table = Vec::with_capacity(3 * windows.len());
    for w in windows {
        if w.pixels.end > size || w.count == 0 {
            return Err(Fault::shape(format!("the window {w:?} of {size} pixels")));
        }
        table.extend([small(w.pixels.start)?, small(w.pixels.end)?, small(w.count)?]);
    }
    device.words(&table, &[windows.len(), 3])
}

/// For each pixel the first window that holds it, and the one behind the last.
fn spans(windows: &[Window], size: usize) -> Result<Vec<u32>, Fault> {
    let mut spans = Vec::with_capacity(2 * size);
    for pixel in 0..size {
        let holds = |w: &Window| w.pixels.contains(&pixel);
        let first = windows.iter().position(holds).unwrap_or(0);
        let behind = windows.iter().rposition(holds).map_or(0, |last| last + 1);
        if windows.iter().take(behind).skip(first).any(|w| !holds(w)) {
            return Err(Fault::shape("the windows of a pooling are in no order"));
        }
        spans.extend([small(first)?, small(behind)?]);
    }
    Ok(spans)
}

/// Means of windows, given for each direction.
///
/// # Errors
/// Windows that leave the image, a full memory, or a GPU that has failed.
pub fn average_pool<T: Element>(
    device: &Device,
    x: &Array<T>,
    ys: &[Window],
    xs: &[Window],
) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    let (rows, columns) = (table(device, ys, h)?, table(device, xs, w)?);
    let mut y = device.fresh::<T>(&[n, ys.len(), xs.len(), c])?;
    let count = y.count();
    launch!(
        device,
        Pool,
        of_type!(T, "average_pool"),
        fours(count),
        &mut y.data,
        &x.data,
        &rows.data,
        &columns.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(ys.len())?,
        &small(xs.len())?
    );
    Ok(y)
}

/// The input's gradient, for images of `h` times `w`.
///
/// # Errors
/// Other shapes, and windows in another order than that of their pixels.
pub fn average_pool_back<T: Element>(
    device: &Device,
    dy: &Array<T>,
    (h, w): (usize, usize),
    ys: &[Window],
    xs: &[Window],
) -> Result<Array<T>, Fault> {
    let [n, oh, ow, c] = dy.images()?;
    dy.expect(&[n, ys.len(), xs.len(), c])?;
    let (rows, columns) = (table(device, ys, h)?, table(device, xs, w)?);
    let (y_spans, x_spans) = (device.words(&spans(ys, h)?, &[h, 2])?, device.words(&spans(xs, w)?, &[w, 2])?);
    let mut dx = device.fresh::<T>(&[n, h, w, c])?;
    let count = dx.count();
    launch!(
        device,
        Pool,
        of_type!(T, "average_pool_back"),
        fours(count),
        &mut dx.data,
        &dy.data,
        &rows.data,
        &columns.data,
        &y_spans.data,
        &x_spans.data,
        &(count as u64),
        &small(h)?,
        &small(w)?,
        &small(c)?,
        &small(oh)?,
        &small(ow)?
    );
    Ok(dx)
}

/// Means over height and width: `[n, c]`.
///
/// # Errors
/// Something else than images, a full memory, or a GPU that has failed.
pub fn global_mean<T: Element>(device: &Device, x: &Array<T>) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    let (mut y, name) = (device.fresh::<T>(&[n, c])?, of_type!(T, "global_mean"));
    launch!(device, Pool, name, columns(c, n)?, &mut y.data, &x.data, &small(h * w)?, &small(c)?);
    Ok(y)
}

/// The input's gradient, for images of `h` times `w`.
///
/// # Errors
/// Something else than features.
pub fn global_mean_back<T: Element>(device: &Device, dy: &Array<T>, (h, w): (usize, usize)) -> Result<Array<T>, Fault> {
    let (n, c) = (dy.rows(), dy.width());
    dy.expect(&[n, c])?;
    let mut dx = device.fresh::<T>(&[n, h, w, c])?;
    let (count, share) = (dx.count(), 1.0 / (h * w) as f32);
    launch!(
        device,
        Pool,
        of_type!(T, "global_mean_back"),
        fours(count),
        &mut dx.data,
        &dy.data,
        &share,
        &(count as u64),
        &small(h * w)?,
        &small(c)?
    );
    Ok(dx)
}

/// Σ x·y of each image and channel: the slope of a gate, `[n, c]`.
///
/// # Errors
/// Other shapes.
pub fn global_products<T: Element>(device: &Device, x: &Array<T>, y: &Array<T>) -> Result<Array<T>, Fault> {
    let [n, h, w, c] = x.images()?;
    y.expect(x.shape())?;
    let mut out = device.fresh::<T>(&[n, c])?;
    launch!(
        device,
        Pool,
        of_type!(T, "global_products"),
        columns(c, n)?,
        &mut out.data,
        &x.data,
        &y.data,
        &small(h * w)?,
        &small(c)?
    );
    Ok(out)
}
