//! Pooling of images `[n, h, w, c]`.

use std::sync::Arc;

use crate::gpu::{
    Array, Device, Fault,
    launch::{columns, each, launch, small},
};

/// The largest of each window of side `k`, and the pixel of its image where it lies. `nn::MaxPool` says which one wins.
///
/// # Errors
/// An image without a window, a full memory, or a GPU that has failed.
pub fn max_pool(device: &Device, x: &Array, k: usize, stride: usize, pad: usize) -> Result<(Array, Array<u32>), Fault> {
    let [n, h, w, c] = x.images()?;
    if h + 2 * pad < k || w + 2 * pad < k || pad >= k || stride == 0 {
        return Err(Fault::shape(format!("images of {h}x{w} in windows of {k}, {stride} apart, in a border of {pad}")));
    }
    let shape = [n, (h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1, c];
    let (mut y, mut chosen) = (device.fresh::<f32>(&shape)?, device.fresh::<u32>(&shape)?);
    let count = y.count();
    launch!(
        device,
        Pool,
        "max_pool",
        each(count),
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
pub fn max_pool_back(
    device: &Device,
    dy: &Array,
    chosen: &Array<u32>,
    shape: [usize; 4],
    k: usize,
    stride: usize,
    pad: usize,
) -> Result<Array, Fault> {
    let ([n, oh, ow, c], [images, h, w, channels]) = (dy.images()?, shape);
    chosen.expect(dy.shape())?;
    if (n, c) != (images, channels) || pad >= k || stride == 0 {
        return Err(Fault::shape(format!("the slope {:?} of a pooling of {shape:?}", dy.shape())));
    }
    let mut dx = device.fresh::<f32>(&shape)?;
    let count = dx.count();
    launch!(
        device,
        Pool,
        "max_pool_back",
        each(count),
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
pub fn average_pool(device: &Device, x: &Array, ys: &[Window], xs: &[Window]) -> Result<Array, Fault> {
    let [n, h, w, c] = x.images()?;
    let (rows, columns) = (table(device, ys, h)?, table(device, xs, w)?);
    let mut y = device.fresh::<f32>(&[n, ys.len(), xs.len(), c])?;
    let count = y.count();
    launch!(
        device,
        Pool,
        "average_pool",
        each(count),
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
pub fn average_pool_back(
    device: &Device,
    dy: &Array,
    (h, w): (usize, usize),
    ys: &[Window],
    xs: &[Window],
) -> Result<Array, Fault> {
    let [n, oh, ow, c] = dy.images()?;
    dy.expect(&[n, ys.len(), xs.len(), c])?;
    let (rows, columns) = (table(device, ys, h)?, table(device, xs, w)?);
    let (y_spans, x_spans) = (device.words(&spans(ys, h)?, &[h, 2])?, device.words(&spans(xs, w)?, &[w, 2])?);
    let mut dx = device.fresh::<f32>(&[n, h, w, c])?;
    let count = dx.count();
    launch!(
        device,
        Pool,
        "average_pool_back",
        each(count),
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
pub fn global_mean(device: &Device, x: &Array) -> Result<Array, Fault> {
    let [n, h, w, c] = x.images()?;
    let mut y = device.fresh::<f32>(&[n, c])?;
    launch!(device, Pool, "global_mean", columns(c, n)?, &mut y.data, &x.data, &small(h * w)?, &small(c)?);
    Ok(y)
}

/// The input's gradient, for images of `h` times `w`.
///
/// # Errors
/// Something else than features.
pub fn global_mean_back(device: &Device, dy: &Array, (h, w): (usize, usize)) -> Result<Array, Fault> {
    let (n, c) = (dy.rows(), dy.width());
    dy.expect(&[n, c])?;
    let mut dx = device.fresh::<f32>(&[n, h, w, c])?;
    let (count, share) = (dx.count(), 1.0 / (h * w) as f32);
    launch!(
        device,
        Pool,
        "global_mean_back",
        each(count),
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
pub fn global_products(device: &Device, x: &Array, y: &Array) -> Result<Array, Fault> {
    let [n, h, w, c] = x.images()?;
    y.expect(x.shape())?;
    let mut out = device.fresh::<f32>(&[n, c])?;
    launch!(
        device,
        Pool,
        "global_products",
        columns(c, n)?,
        &mut out.data,
        &x.data,
        &y.data,
        &small(h * w)?,
        &small(c)?
    );
    Ok(out)
}
