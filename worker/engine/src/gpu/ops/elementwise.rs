//! Functions of single numbers, and of numbers and their channel.

use super::number;
use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{each, launch, small},
    },
    nn::Act,
};

/// `f(x)`.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn activate(device: &Device, act: Act, x: &Array) -> Result<Array, Fault> {
    let (mut y, n) = (device.fresh::<f32>(x.shape())?, x.count());
    launch!(device, Elementwise, "activate", each(n), &mut y.data, &x.data, &(n as u64), &number(act));
    Ok(y)
}

/// `dy · f′(z)`; a rectifier may be given its output for `z`.
///
/// # Errors
/// Other shapes.
pub fn activate_back(device: &Device, act: Act, z: &Array, dy: &Array) -> Result<Array, Fault> {
    dy.expect(z.shape())?;
    let (mut dx, n) = (device.fresh::<f32>(z.shape())?, z.count());
    let act = number(act);
    launch!(device, Elementwise, "activate_back", each(n), &mut dx.data, &z.data, &dy.data, &(n as u64), &act);
    Ok(dx)
}

/// `f(a + b)`.
///
/// # Errors
/// Other shapes.
pub fn add_activate(device: &Device, act: Act, a: &Array, b: &Array) -> Result<Array, Fault> {
    b.expect(a.shape())?;
    let (mut y, n) = (device.fresh::<f32>(a.shape())?, a.count());
    let act = number(act);
    launch!(device, Elementwise, "add_activate", each(n), &mut y.data, &a.data, &b.data, &(n as u64), &act);
    Ok(y)
}

/// `left += right`: a node of the ordered tree (`collective::tree`), and whatever else gathers.
///
/// # Errors
/// Other shapes.
pub fn add_into(device: &Device, left: &mut Array, right: &Array) -> Result<(), Fault> {
    right.expect(left.shape())?;
    let n = left.count();
    launch!(device, Elementwise, "add_into", each(n), &mut left.data, &right.data, &(n as u64));
    Ok(())
}

/// The same into the numbers from `first` on: a gradient comes to its place in a flat one.
///
/// # Errors
/// More numbers than there are from there on.
pub fn add_run(device: &Device, flat: &mut Array, first: usize, x: &Array) -> Result<(), Fault> {
    let n = x.count();
    let run = first..first.saturating_add(n);
    flat.expect_run(&run)?;
    launch!(device, Elementwise, "add_into", each(n), &mut flat.data.slice_mut(run), &x.data, &(n as u64));
    Ok(())
}

/// `sums += x²`.
///
/// # Errors
/// Other shapes.
pub fn add_squares(device: &Device, sums: &mut Array, x: &Array) -> Result<(), Fault> {
    x.expect(sums.shape())?;
    let n = sums.count();
    launch!(device, Elementwise, "add_squares", each(n), &mut sums.data, &x.data, &(n as u64));
    Ok(())
}

/// `x += bias`, channel by channel.
///
/// # Errors
/// Another number of channels.
pub fn add_bias(device: &Device, x: &mut Array, bias: &Array) -> Result<(), Fault> {
    bias.expect_count(x.width())?;
    let (n, c) = (x.count(), small(x.width())?);
    launch!(device, Elementwise, "add_bias", each(n), &mut x.data, &bias.data, &(n as u64), &c);
    Ok(())
}

/// `x *= factor`.
///
/// # Errors
/// As [`activate`].
pub fn scale(device: &Device, x: &mut Array, factor: f32) -> Result<(), Fault> {
    let n = x.count();
    launch!(device, Elementwise, "scale", each(n), &mut x.data, &factor, &(n as u64));
    Ok(())
}

/// `x · factor`, channel by channel.
///
/// # Errors
/// Another number of channels.
pub fn scale_channels(device: &Device, x: &Array, factors: &Array) -> Result<Array, Fault> {
    factors.expect_count(x.width())?;
    let (mut y, n, c) = (device.fresh::<f32>(x.shape())?, x.count(), small(x.width())?);
    launch!(device, Elementwise, "scale_channels", each(n), &mut y.data, &x.data, &factors.data, &(n as u64), &c);
    Ok(y)
}

/// `x /= by`.
///
/// # Errors
/// As [`activate`].
pub fn divide(device: &Device, x: &mut Array, by: f32) -> Result<(), Fault> {
    let n = x.count();
    launch!(device, Elementwise, "divide", each(n), &mut x.data, &by, &(n as u64));
    Ok(())
}

/// `(x − mean) · factor`, channel by channel.
///
/// # Errors
/// Another number of channels.
pub fn normalize(device: &Device, x: &Array, mean: &Array, factor: &Array) -> Result<Array, Fault> {
    mean.expect_count(x.width())?;
    factor.expect_count(x.width())?;
    let (mut y, n, c) = (device.fresh::<f32>(x.shape())?, x.count(), small(x.width())?);
    launch!(device, Elementwise, "normalize", each(n), &mut y.data, &x.data, &mean.data, &factor.data, &(n as u64), &c);
    Ok(y)
}

/// That there is a number for each image and channel: `[n, c]`, or images of one pixel.
fn by_channel(x: &Array, images: usize, c: usize) -> Result<(), Fault> {
    if (x.rows(), x.width()) != (images, c) {
        return Err(Fault::shape(format!("{images} images of {c} channels and {:?}", x.shape())));
    }
    Ok(())
}

/// Images `[n, h, w, c]` times factors, one for each image and channel.
///
/// # Errors
/// Other shapes.
pub fn gate(device: &Device, x: &Array, gates: &Array) -> Result<Array, Fault> {
    let [images, h, w, c] = x.images()?;
    by_channel(gates, images, c)?;
    let (mut y, n, area, c) = (device.fresh::<f32>(x.shape())?, x.count(), small(h * w)?, small(c)?);
    launch!(device, Elementwise, "gate", each(n), &mut y.data, &x.data, &gates.data, &(n as u64), &area, &c);
    Ok(y)
}

/// `dx = dy · gate + mean / (h·w)`, where `means` is the slope of the means that made the gates.
///
/// # Errors
/// Other shapes.
pub fn gate_back(device: &Device, dy: &Array, gates: &Array, means: &Array) -> Result<Array, Fault> {
    let [images, h, w, c] = dy.images()?;
    by_channel(gates, images, c)?;
    by_channel(means, images, c)?;
    let (mut dx, n, area, c) = (device.fresh::<f32>(dy.shape())?, dy.count(), small(h * w)?, small(c)?);
    let share = 1.0 / (h * w) as f32;
    launch!(
        device,
        Elementwise,
        "gate_back",
        each(n),
        &mut dx.data,
        &dy.data,
        &gates.data,
        &means.data,
        &share,
        &(n as u64),
        &area,
        &c
    );
    Ok(dx)
}
