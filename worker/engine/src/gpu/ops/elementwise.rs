//! Functions of single numbers, and of numbers and their channel.

use half::bf16;

use super::{Element, element::of_type, number};
use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{fours, launch, small, words},
    },
    nn::Act,
};

/// `f(x)`.
///
/// # Errors
/// The memory is full, or the GPU has failed; so for all that follow.
pub fn activate<T: Element>(device: &Device, act: Act, x: &Array<T>) -> Result<Array<T>, Fault> {
    let (mut y, n, name) = (device.fresh::<T>(x.shape())?, x.count(), of_type!(T, "activate"));
    launch!(device, Elementwise, name, words::<T>(n), &mut y.data, &x.data, &(n as u64), &number(act));
    Ok(y)
}

/// `dy · f′(z)`; a rectifier may be given its output for `z`.
///
/// # Errors
/// Other shapes.
pub fn activate_back<T: Element>(device: &Device, act: Act, z: &Array<T>, dy: &Array<T>) -> Result<Array<T>, Fault> {
    dy.expect(z.shape())?;
    let (mut dx, n, name) = (device.fresh::<T>(z.shape())?, z.count(), of_type!(T, "activate_back"));
    let act = number(act);
    launch!(device, Elementwise, name, words::<T>(n), &mut dx.data, &z.data, &dy.data, &(n as u64), &act);
    Ok(dx)
}

/// `f(a + b)`.
///
/// # Errors
/// Other shapes.
pub fn add_activate<T: Element>(device: &Device, act: Act, a: &Array<T>, b: &Array<T>) -> Result<Array<T>, Fault> {
    b.expect(a.shape())?;
    let (mut y, n, name) = (device.fresh::<T>(a.shape())?, a.count(), of_type!(T, "add_activate"));
    let act = number(act);
    launch!(device, Elementwise, name, words::<T>(n), &mut y.data, &a.data, &b.data, &(n as u64), &act);
    Ok(y)
}

/// `f(a + b)` in f32, whatever the two lie in: nothing is rounded.
///
/// # Errors
/// Other shapes.
pub fn add_mixed<A: Element, B: Element>(
    device: &Device,
    act: Act,
    a: &Array<A>,
    b: &Array<B>,
) -> Result<Array, Fault> {
    b.expect(a.shape())?;
    let name = match (A::HALF, B::HALF) {
        (false, false) => "add_activate",
        (false, true) => "add_mixed",
        (true, true) => "add_halves",
        // Which of them is on the left shows in no bit.
        (true, false) => return add_mixed(device, act, b, a),
    };
    let (mut y, n, act) = (device.fresh::<f32>(a.shape())?, a.count(), number(act));
    // Where both are bf16, so is the first.
    let grid = words::<A>(n);
    launch!(device, Elementwise, name, grid, &mut y.data, &a.data, &b.data, &(n as u64), &act);
    Ok(y)
}

/// `left += right`: a node of the ordered tree (`collective::tree`), and whatever else gathers.
///
/// # Errors
/// Other shapes.
pub fn add_into(device: &Device, left: &mut Array, right: &Array) -> Result<(), Fault> {
    right.expect(left.shape())?;
    let n = left.count();
    launch!(device, Elementwise, "add_into", fours(n), &mut left.data, &right.data, &(n as u64));
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
    launch!(device, Elementwise, "add_into", fours(n), &mut flat.data.slice_mut(run), &x.data, &(n as u64));
    Ok(())
}

/// `sums += x²`.
///
/// # Errors
/// Other shapes.
pub fn add_squares(device: &Device, sums: &mut Array, x: &Array) -> Result<(), Fault> {
    x.expect(sums.shape())?;
    let n = sums.count();
    launch!(device, Elementwise, "add_squares", fours(n), &mut sums.data, &x.data, &(n as u64));
    Ok(())
}

/// `x += bias`, channel by channel.
///
/// # Errors
/// Another number of channels.
pub fn add_bias(device: &Device, x: &mut Array, bias: &Array) -> Result<(), Fault> {
    bias.expect_count(x.width())?;
    let (n, c) = (x.count(), small(x.width())?);
    launch!(device, Elementwise, "add_bias", fours(n), &mut x.data, &bias.data, &(n as u64), &c);
    Ok(())
}

/// `x + bias`, rounded to bf16 once.
///
/// # Errors
/// As [`add_bias`].
pub fn add_bias_rounded(device: &Device, x: &Array, bias: &Array) -> Result<Array<bf16>, Fault> {
    bias.expect_count(x.width())?;
    let (mut y, n, c) = (device.fresh::<bf16>(x.shape())?, x.count(), small(x.width())?);
    launch!(device, Elementwise, "add_bias_bf16", fours(n), &mut y.data, &x.data, &bias.data, &(n as u64), &c);
    Ok(y)
}

/// What bf16 has of a bias, in each row of that shape: sums that are added to it are rounded once, with it, if bf16 has the
/// bias as it is.
///
/// # Errors
/// As [`add_bias`]; a full memory.
pub fn begin_bias(device: &Device, bias: &Array, shape: &[usize]) -> Result<Array<bf16>, Fault> {
    let mut y = device.fresh::<bf16>(shape)?;
    bias.expect_count(y.width())?;
    let (n, c) = (y.count(), small(y.width())?);
    launch!(device, Elementwise, "begin_bias_bf16", fours(n), &mut y.data, &bias.data, &(n as u64), &c);
    Ok(y)
}

/// `x *= factor`.
///
/// # Errors
/// As [`activate`].
pub fn scale(device: &Device, x: &mut Array, factor: f32) -> Result<(), Fault> {
    let n = x.count();
    launch!(device, Elementwise, "scale", fours(n), &mut x.data, &factor, &(n as u64));
    Ok(())
}

/// `x · factor`, channel by channel.
///
/// # Errors
/// Another number of channels.
pub fn scale_channels(device: &Device, x: &Array, factors: &Array) -> Result<Array, Fault> {
    factors.expect_count(x.width())?;
    let (mut y, n, c) = (device.fresh::<f32>(x.shape())?, x.count(), small(x.width())?);
    launch!(device, Elementwise, "scale_channels", fours(n), &mut y.data, &x.data, &factors.data, &(n as u64), &c);
    Ok(y)
}

/// `x /= by`.
///
/// # Errors
/// As [`activate`].
pub fn divide(device: &Device, x: &mut Array, by: f32) -> Result<(), Fault> {
    let n = x.count();
    launch!(device, Elementwise, "divide", fours(n), &mut x.data, &by, &(n as u64));
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
    let factor = &factor.data;
    launch!(device, Elementwise, "normalize", fours(n), &mut y.data, &x.data, &mean.data, factor, &(n as u64), &c);
    Ok(y)
}

/// That there is a number for each image and channel: `[n, c]`, or images of one pixel.
fn by_channel<T>(x: &Array<T>, images: usize, c: usize) -> Result<(), Fault> {
    if (x.rows(), x.width()) != (images, c) {
        return Err(Fault::shape(format!("{images} images of {c} channels and {:?}", x.shape())));
    }
    Ok(())
}

/// Images `[n, h, w, c]` times factors, one for each image and channel.
///
/// # Errors
/// Other shapes.
pub fn gate<T: Element>(device: &Device, x: &Array<T>, gates: &Array<T>) -> Result<Array<T>, Fault> {
    let [images, h, w, c] = x.images()?;
    by_channel(gates, images, c)?;
    let (mut y, n, area, c) = (device.fresh::<T>(x.shape())?, x.count(), small(h * w)?, small(c)?);
    let name = of_type!(T, "gate");
    launch!(device, Elementwise, name, words::<T>(n), &mut y.data, &x.data, &gates.data, &(n as u64), &area, &c);
    Ok(y)
}

/// `dx = dy · gate + mean / (h·w)`, where `means` is the slope of the means that made the gates.
///
/// # Errors
/// Other shapes.
pub fn gate_back<T: Element>(
    device: &Device,
    dy: &Array<T>,
    gates: &Array<T>,
    means: &Array<T>,
) -> Result<Array<T>, Fault> {
    let [images, h, w, c] = dy.images()?;
    by_channel(gates, images, c)?;
    by_channel(means, images, c)?;
    let (mut dx, n, area, c) = (device.fresh::<T>(dy.shape())?, dy.count(), small(h * w)?, small(c)?);
    let share = 1.0 / (h * w) as f32;
    launch!(
        device,
        Elementwise,
        of_type!(T, "gate_back"),
        words::<T>(n),
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
