//! Convolutions of images `[n, h, w, c]` with weights `[cout, cin / groups, kh, kw]`, by cuDNN.
//!
//! cuDNN takes the weights of channels-last images channels last too: [`channels_last`] turns them, once for all that they are
//! used for, and their gradient is turned back. What cuDNN writes it does not read before, so it begins as anything.
//!
//! Of bf16 it gives bf16 and nothing else. That is what outputs and gradients of inputs are, but not what a gradient of weights
//! is, which is f32, nor a sum to which a bias is to be added, which is rounded with it: these are products of windows
//! ([`Patches`]). What it does not have of bf16 it makes of the same numbers in f32, and what it does not have of these a
//! product of windows makes, too; but not where channels come in groups.

use std::{ffi::c_void, ops::Range};

use cudarc::{
    cudnn::result,
    driver::{DevicePtr, DevicePtrMut},
};

use super::{Element, Math, Patches, add_turned, fold, turn_run};
use crate::gpu::{
    Array, Device, Fault,
    device::free,
    dnn::{Algorithm, Chosen, Of, Plan, may_be_another, refused},
};

/// Bytes that windows take where a convolution is a product of them.
const ROOM: usize = 256 << 20;

/// How a convolution goes over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Distance of its windows.
    pub stride: usize,
    /// Zeros above and below, and on either side. Where these differ, [`super::move_image`] makes the border before.
    pub pad: (usize, usize),
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Convolution {
    /// For images and weights of these shapes, both channels last; of f32 they may be TF32.
    pub(super) fn plan<T: Element>(&self, tf32: bool, x: [usize; 4], weights: &[usize]) -> Result<Plan, Fault> {
        let [n, h, w, c] = x;
        let outputs = |size: usize, k: usize, pad: usize| {
            (size + 2 * pad).checked_sub(k).map(|room| room / self.stride.max(1) + 1)
        };
        match *weights {
            [cout, kh, kw, cin]
                if self.stride > 0 && self.groups > 0 && cin * self.groups == c && cout % self.groups == 0 =>
            {
                if let (Some(oh), Some(ow)) = (outputs(h, kh, self.pad.0), outputs(w, kw, self.pad.1)) {
                    let Self { stride, pad, groups } = *self;
                    let (w, y) = ([cout, kh, kw, cin], [n, oh, ow, cout]);
                    return Ok(Plan { x, w, y, stride, pad, groups, precision: T::precision(tf32) });
                }
            }
            _ => {}
        }
        Err(Fault::shape(format!("{self:?} of {weights:?} over {x:?}")))
    }
}

/// The dimensions of weights.
fn dims(shape: &[usize]) -> Result<[usize; 4], Fault> {
    <[usize; 4]>::try_from(shape).map_err(|_| Fault::shape(format!("weights of {shape:?}")))
}

/// Weights `[cout, cin / groups, kh, kw]` as cuDNN takes them: `[cout, kh, kw, cin / groups]`.
///
/// # Errors
/// Other dimensions, a full memory, or a GPU that has failed.
pub fn channels_last(device: &Device, weights: &Array) -> Result<Array, Fault> {
    channels_last_run(device, weights, 0..weights.count(), weights.shape())
}

/// The same of some numbers of an array, which are weights of that shape, and of which products take what the type has.
///
/// # Errors
/// As [`channels_last`]; some that are not there, or a shape of another count.
pub fn channels_last_run<T: Element>(
    device: &Device,
    all: &Array,
    run: Range<usize>,
    shape: &[usize],
) -> Result<Array<T>, Fault> {
    let [cout, cin, kh, kw] = dims(shape)?;
    turn_run::<T>(device, all, run, [cout, cin, kh * kw])?.reshaped(&[cout, kh, kw, cin])
}

/// Calls cuDNN with what it wants for a plan: `from` and `with` are read, `to` is written.
#[expect(unsafe_code, reason = "cuDNN takes shapes on trust")]
fn run<T>(
    device: &Device,
    of: Of,
    plan: &Plan,
    (from, with): (&Array<T>, &Array<T>),
    to: &mut Array<T>,
) -> Result<(), Fault> {
    device.expect_own(from)?;
    device.expect_own(with)?;
    device.expect_own(to)?;
    let stream = device.stream();
    stream.context().bind_to_thread()?;
    let mut place = device.dnn()?;
    let Some(dnn) = place.as_mut() else {
        return Err(Fault::shape("cuDNN was opened and is not there"));
    };
    let h = dnn.handle();
    device.afford(|| dnn.prepare(of, plan).map(|_| ()))?;
    let Chosen { described: d, offers, settled } = dnn.prepare(of, plan)?;
    let (one, zero) = (1.0f32, 0.0f32);
    let (one, zero) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
    let mut given_back = false;
    while let Some((algorithm, memory)) = offers.first().copied() {
        let done = {
            let mut scratch = device.fresh::<u8>(&[memory.max(1)])?;
            let (a, _a) = from.data.device_ptr(stream);
            let (b, _b) = with.data.device_ptr(stream);
            let (c, _c) = to.data.device_ptr_mut(stream);
            let (s, _s) = scratch.data.device_ptr_mut(stream);
            // The bindings only note where one of these cannot be waited for.
            stream.context().check_err()?;
            let (a, b, c, s) = (a as *const c_void, b as *const c_void, c as *mut c_void, s as *mut c_void);
            // SAFETY: the arrays have the shapes and the type of the plan, as whoever calls this has checked, and the
            // descriptors say the same.
            unsafe {
                match algorithm {
                    Algorithm::Outputs(how) => {
                        result::convolution_forward(h, one, d.x, a, d.w, b, d.how, how, s, memory, zero, d.y, c)
                    }
                    Algorithm::Inputs(how) => {
                        result::convolution_backward_data(h, one, d.w, b, d.y, a, d.how, how, s, memory, zero, d.x, c)
                    }
                    Algorithm::Weights(how) => {
                        result::convolution_backward_filter(h, one, d.x, b, d.y, a, d.how, how, s, memory, zero, d.w, c)
                    }
                }
            }
        };
        let Err(e) = done else {
            if !*settled {
                tracing::debug!("cuDNN computes {of:?} of {plan:?} by {algorithm:?}");
                offers.truncate(1);
                *settled = true;
            }
            return Ok(());
        };
        let fault = refused(e, free(stream));
        let short = matches!(fault, Fault::Memory);
        // The same algorithm once more, with what was freed and what is spare.
        if short && !std::mem::replace(&mut given_back, true) {
            device.give_back()?;
            continue;
        }
        if short || *settled || !may_be_another(e) {
            return Err(fault);
        }
        tracing::debug!("cuDNN refuses {of:?} of {plan:?} by {algorithm:?}: {fault}");
        // An algorithm that has broken the GPU is told, instead of what all others fail with after it.
        device.synchronize()?;
        offers.remove(0);
    }
    if !*settled {
        tracing::debug!("cuDNN has no algorithm for {of:?} of {plan:?}");
        *settled = true;
    }
    Err(Fault::NoAlgorithm(format!("{of:?} of {plan:?}")))
}

/// The outputs, of weights that are [`channels_last`].
///
/// # Errors
/// Shapes that do not fit, a full memory, or cuDNN is not there, refuses, or has no deterministic algorithm.
pub fn conv<'d, T: Element>(
    math: impl Into<Math<'d>>,
    x: &Array<T>,
    weights: &Array<T>,
    how: Convolution,
) -> Result<Array<T>, Fault> {
    let math = math.into();
    let (device, plan) = (math.device, how.plan::<T>(math.tf32, x.images()?, weights.shape())?);
    let mut y = device.fresh(&plan.y)?;
    let lacking = match run(device, Of::Outputs, &plan, (x, weights), &mut y) {
        Err(lacking @ Fault::NoAlgorithm(_)) => lacking,
        done => return done.map(|()| y),
    };
    // It has no place beside what is made instead.
    drop(y);
    if T::HALF {
        let (x, weights) = (T::widened(device, x)?, T::widened(device, weights)?);
        return T::given(device, conv(device, x.array(), weights.array(), how)?);
    }
    if how.groups == 1 {
        return T::given(device, Patches::of(x, weights.shape(), how, ROOM)?.times(math, weights)?);
    }
    Err(lacking)
}

/// The same with a bias, rounded once. Of bf16 a bias is what bf16 has of it, as that of [`super::linear_biased`].
///
/// # Errors
/// As [`conv`]; another number of channels; groups, of bf16.
pub fn conv_biased<'d, T: Element>(
    math: impl Into<Math<'d>>,
    x: &Array<T>,
    weights: &Array<T>,
    bias: &Array,
    how: Convolution,
) -> Result<Array<T>, Fault> {
    let math = math.into();
    let (device, plan) = (math.device, how.plan::<T>(math.tf32, x.images()?, weights.shape())?);
    let Some(mut y) = T::begun(device, bias, &plan.y)? else {
        return T::add_bias(device, T::wide(device, conv(math, x, weights, how)?)?, bias);
    };
    Patches::of(x, weights.shape(), how, ROOM)?.add_to(math, weights, &mut y)?;
    Ok(y)
}

/// The input's gradient, for an input of `shape` and weights that are [`channels_last`].
///
/// # Errors
/// As [`conv`].
pub fn conv_input<'d, T: Element>(
    math: impl Into<Math<'d>>,
    dy: &Array<T>,
    weights: &Array<T>,
    shape: [usize; 4],
    how: Convolution,
) -> Result<Array<T>, Fault> {
    let math = math.into();
    let (device, plan) = (math.device, how.plan::<T>(math.tf32, shape, weights.shape())?);
    dy.expect(&plan.y)?;
    let mut dx = device.fresh(&plan.x)?;
    let lacking = match run(device, Of::Inputs, &plan, (dy, weights), &mut dx) {
        Err(lacking @ Fault::NoAlgorithm(_)) => lacking,
        done => return done.map(|()| dx),
    };
    // It has no place beside what is made instead.
    drop(dx);
    if T::HALF {
        let (dy, weights) = (T::widened(device, dy)?, T::widened(device, weights)?);
        return T::given(device, conv_input(device, dy.array(), weights.array(), shape, how)?);
    }
    if how.groups == 1 {
        return T::given(device, fold(math, dy, weights, shape, how, ROOM)?);
    }
    Err(lacking)
}

/// Adds the weights' gradient, `[cout, cin / groups, kh, kw]`, of which nothing is rounded.
///
/// # Errors
/// As [`conv`]; groups, of bf16.
pub fn conv_weights<'d, T: Element>(
    math: impl Into<Math<'d>>,
    dy: &Array<T>,
    x: &Array<T>,
    how: Convolution,
    dw: &mut Array,
) -> Result<(), Fault> {
    let ([cout, cin, kh, kw], math) = (dims(dw.shape())?, math.into());
    let (device, weights, lies) = (math.device, [cout, kh, kw, cin], [cout, kh * kw, cin]);
    if !T::HALF {
        let plan = how.plan::<T>(math.tf32, x.images()?, &weights)?;
        dy.expect(&plan.y)?;
        let mut own = device.fresh(&plan.w)?;
        match run(device, Of::Weights, &plan, (dy, x), &mut own) {
            Err(Fault::NoAlgorithm(_)) if how.groups == 1 => {}
            done => {
                done?;
                return add_turned(device, dw, T::widened(device, &own)?.array(), lies);
            }
        }
    }
    let own = Patches::of(x, &weights, how, ROOM)?.learnt(math, dy)?;
    add_turned(device, dw, &own, lies)
}
