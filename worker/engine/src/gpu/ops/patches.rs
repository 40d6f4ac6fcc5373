//! Windows of a convolution side by side, each a row of numbers by tap and channel: what a product of matrices makes a
//! convolution of, where cuDNN would round what comes of it.

use std::ops::Range;

use super::{
    Convolution, Element, Math, Matrix,
    product::{flat, multiply},
};
use crate::gpu::{
    Array, Device, Fault,
    dnn::Plan,
    launch::{each, launch, small},
};

/// Rows of windows are multiples of so many numbers: tensor cores want them aligned.
const ALIGNED: usize = 8;
/// Bytes that a thread moves where channels come in as many.
const WIDE: usize = 16;

/// Windows over images. They are made when they are multiplied, those of some images at a time.
pub struct Patches<'a, T> {
    x: &'a Array<T>,
    plan: Plan,
    /// Windows of an image.
    outputs: usize,
    /// Numbers of a window, and from one to the next.
    depth: usize,
    line: usize,
    /// Images at a time.
    step: usize,
}

impl<'a, T: Element> Patches<'a, T> {
    /// For weights `[cout, kh, kw, cin]`. Windows take no more than `room` bytes at a time, or those of one image; this is
    /// part of the result, since what is learnt of one time after the other is added up.
    ///
    /// # Errors
    /// Shapes that do not fit, and groups.
    pub fn of(x: &'a Array<T>, weights: &[usize], how: Convolution, room: usize) -> Result<Self, Fault> {
        // They are the same in TF32.
        let plan = how.plan::<T>(false, x.images()?, weights)?;
        if plan.groups != 1 {
            return Err(Fault::shape(format!("windows over {} groups of channels", plan.groups)));
        }
        let ([_, kh, kw, cin], outputs) = (plan.w, plan.y[1] * plan.y[2]);
        let depth = kh * kw * cin;
        let line = depth.next_multiple_of(ALIGNED);
        let step = (room / (outputs * line * size_of::<T>()).max(1)).max(1);
        Ok(Self { x, plan, outputs, depth, line, step })
    }

    /// The images, in parts whose windows there is room for.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let (all, step) = (self.plan.x[0], self.step);
        (0..all).step_by(step).map(move |first| first..all.min(first + step))
    }

    /// The windows of some images, `[windows, line]`.
    fn windows(&self, device: &Device, images: Range<usize>) -> Result<Array<T>, Fault> {
        let ([_, h, w, c], [_, _, kw, _], [_, oh, ow, _]) = (self.plan.x, self.plan.w, self.plan.y);
        let mut y = device.fresh::<T>(&[images.len() * self.outputs, self.line])?;
        let image = h * w * c;
        let from = self.x.data.slice(images.start * image..images.end * image);
        let wide = WIDE / size_of::<T>();
        let (per, name) = match c % wide == 0 {
            true => (wide, "patches_16"),
            false => (1, if T::HALF { "patches_2" } else { "patches_4" }),
        };
        let n = y.count() / per;
        launch!(
            device,
            Patches,
            name,
            each(n),
            &mut y.data,
            &from,
            &(n as u64),
            &small(h)?,
            &small(w)?,
            &small(c / per)?,
            &small(oh)?,
            &small(ow)?,
            &small(kw)?,
            &small(self.depth / per)?,
            &small(self.line / per)?,
            &small(self.plan.stride)?,
            &small(self.plan.pad.0)?,
            &small(self.plan.pad.1)?
        );
        Ok(y)
    }

    fn matrix<'b>(&self, of: &'b Array<T>) -> Matrix<'b, T> {
        Matrix { of, first: 0, stride: self.line, step: 0, turned: false }
    }

    /// Each window times the weights: the outputs, of which nothing is rounded.
    ///
    /// # Errors
    /// Weights of another shape, a full memory, or cuBLAS is not there or refuses.
    pub fn times<'d>(&self, math: impl Into<Math<'d>>, weights: &Array<T>) -> Result<Array, Fault> {
        let math = math.into();
        let mut y = math.device.fresh::<f32>(&self.plan.y)?;
        self.multiplied(math, weights, &mut y, false)?;
        Ok(y)
    }

    /// The same on top of what is there, rounded once if that is bf16.
    ///
    /// # Errors
    /// As [`Patches::times`]; an array of another shape.
    pub fn add_to<'d, C: Element>(
        &self,
        math: impl Into<Math<'d>>,
        weights: &Array<T>,
        y: &mut Array<C>,
    ) -> Result<(), Fault> {
        self.multiplied(math.into(), weights, y, true)
    }

    fn multiplied<C: Element>(
        &self,
        math: Math<'_>,
        weights: &Array<T>,
        y: &mut Array<C>,
        add: bool,
    ) -> Result<(), Fault> {
        weights.expect(&self.plan.w)?;
        y.expect(&self.plan.y)?;
        let cout = self.plan.w[0];
        let weights = Matrix { stride: self.depth, turned: true, ..flat(weights) };
        for images in self.parts() {
            let (first, rows) = (images.start * self.outputs * cout, images.len() * self.outputs);
            let windows = self.windows(math.device, images)?;
            let pair = (self.matrix(&windows), weights);
            multiply(math, pair, (1, rows, cout, self.depth), (&mut *y, first), add)?;
        }
        Ok(())
    }

    /// The sum over all outputs of slopes times windows: the gradient of the weights, of which nothing is rounded.
    ///
    /// # Errors
    /// Slopes of another shape; as [`Patches::times`].
    pub fn learnt<'d>(&self, math: impl Into<Math<'d>>, dy: &Array<T>) -> Result<Array, Fault> {
        dy.expect(&self.plan.y)?;
        let (math, cout) = (math.into(), self.plan.w[0]);
        let mut dw = math.device.fresh::<f32>(&self.plan.w)?;
        for images in self.parts() {
            let (first, rows) = (images.start * self.outputs * cout, images.len() * self.outputs);
            let more = images.start > 0;
            let windows = self.windows(math.device, images)?;
            let slopes = Matrix { first, turned: true, ..flat(dy) };
            multiply(math, (slopes, self.matrix(&windows)), (1, cout, self.depth, rows), (&mut dw, 0), more)?;
        }
        Ok(dw)
    }
}
