//! Convolutions of images that lie on a GPU: with a kernel of one pixel a product of matrices, else cuDNN's.

use std::sync::Arc;

use super::{Axis, Conv2d, Geometry, Gradients, Pass, Tape};
use crate::{
    Result,
    gpu::{
        Device, Mixed, Operand, either,
        ops::{self, Convolution},
    },
};

/// Images of another size: zeros follow the last row and column, or as much is cut off there.
fn sized(x: Mixed, size: (usize, usize)) -> Result<Mixed> {
    if matches!(*x.shape(), [_, h, w, _] if (h, w) == size) {
        return Ok(x);
    }
    Ok(either!(&x, |x| x.made(|device, x| ops::move_image(device, x, (0, 0), size)).map(Mixed::from))?)
}

impl Conv2d {
    /// Whether images are rows of pixels to it.
    fn is_product(&self, g: &Geometry) -> bool {
        self.window(*g).is_pixel()
    }

    /// The shape of its weights for a product, or as they are named.
    fn placed_shape(&self, g: &Geometry) -> Vec<usize> {
        let (spec, (kh, kw)) = (&self.spec, self.spec.kernel);
        if self.is_product(g) { vec![spec.cout, spec.cin] } else { vec![spec.cout, spec.cin, kh, kw] }
    }

    /// Its weights as a product or cuDNN takes them.
    fn placed_weights(&self, g: &Geometry, pass: &Pass<'_>, at: &Arc<Device>) -> Result<Operand> {
        let shape = self.placed_shape(g);
        if self.is_product(g) { pass.operand_of(self.w, &shape, at) } else { pass.kernels_of(self.w, &shape, at) }
    }

    /// How cuDNN goes over images, and which size these must have: it has as many zeros behind as in front, and "SAME" may
    /// want one more.
    fn windows(&self, g: &Geometry) -> (Convolution, (usize, usize)) {
        let size = |axis: &Axis, k: usize| {
            let read = (axis.outputs - 1) * axis.stride + k;
            axis.size + read.saturating_sub(axis.size + 2 * axis.before)
        };
        let how = Convolution { stride: self.spec.stride, pad: (g.y.before, g.x.before), groups: 1 };
        (how, (size(&g.y, self.spec.kernel.0), size(&g.x, self.spec.kernel.1)))
    }

    /// What its own weights make of images.
    pub(super) fn placed(&self, x: &Mixed, g: &Geometry, pass: &Pass<'_>, tape: &mut Tape) -> Result<Mixed> {
        let w = self.placed_weights(g, pass, x.device())?;
        let bias = self.b.map(|b| pass.placed(b, &[self.spec.cout], x.device())).transpose()?;
        let (how, size) = self.windows(g);
        let taken = pass.operand(&sized(x.clone(), size)?)?;
        let y = if self.is_product(g) {
            let shape = [g.n, g.y.outputs, g.x.outputs, self.spec.cout];
            taken.linear(&w, bias.as_ref())?.reshaped(&shape)?
        } else {
            taken.conv(&w, bias.as_ref(), how)?
        };
        tape.push_operand(taken, x.shape(), pass, self.w);
        Ok(y)
    }

    pub(super) fn placed_backward(
        &self,
        dy: &Mixed,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Mixed>> {
        let ((inputs, x), slopes) = (tape.pop_operand()?, pass.operand(dy)?);
        let g = &Geometry::new(&self.spec, &inputs)?;
        let ((how, size), product) = (self.windows(g), self.is_product(g));
        if let Some(x) = x {
            grads.add_placed(self.w, &self.placed_shape(g), dy.device(), |_, dw| {
                if product { slopes.linear_weights(&x, dw) } else { slopes.conv_weights(&x, how, dw) }
            })?;
        }
        if let Some(b) = self.b {
            grads.add_placed(b, &[self.spec.cout], dy.device(), |_, db| slopes.add_sums(db))?;
        }
        if !need_dx {
            return Ok(None);
        }
        let w = self.placed_weights(g, pass, dy.device())?;
        if product {
            return Ok(Some(slopes.linear_input(&w)?.reshaped(&inputs)?));
        }
        let dx = slopes.conv_input(&w, [g.n, size.0, size.1, self.spec.cin], how)?;
        sized(dx, (g.y.size, g.x.size)).map(Some)
    }
}
