//! Convolutions of images that lie on a GPU: with a kernel of one pixel a product of matrices, else cuDNN's.

use super::{Array, Axis, Conv2d, Geometry, Gradients, Pass};
use crate::{
    Result,
    gpu::{
        Placed,
        ops::{self, Convolution},
    },
};

/// Images of another size: zeros follow the last row and column, or as much is cut off there.
fn sized(x: Placed, size: (usize, usize)) -> Result<Placed> {
    if matches!(*x.array().shape(), [_, h, w, _] if (h, w) == size) {
        return Ok(x);
    }
    Ok(x.made(|device, x| ops::move_image(device, x, (0, 0), size))?)
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
    fn placed_weights(&self, g: &Geometry, pass: &Pass<'_>, at: &Placed) -> Result<Placed> {
        let shape = self.placed_shape(g);
        if self.is_product(g) {
            pass.placed(self.w, &shape, at)
        } else {
            pass.placed_turned(self.w, &shape, at, ops::channels_last)
        }
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
    pub(super) fn placed(&self, x: &Placed, g: &Geometry, pass: &Pass<'_>) -> Result<Placed> {
        let w = self.placed_weights(g, pass, x)?;
        let bias = self.b.map(|b| pass.placed(b, &[self.spec.cout], x)).transpose()?;
        let (x, shape) = (pass.rounded(x.clone())?, [g.n, g.y.outputs, g.x.outputs, self.spec.cout]);
        let mut y = if self.is_product(g) {
            x.made(|device, x| ops::linear(device, x, w.array())?.reshaped(&shape))?
        } else {
            let (how, size) = self.windows(g);
            sized(x, size)?.made(|device, x| ops::conv(device, x, w.array(), how))?
        };
        if let Some(bias) = &bias {
            y.change(|device, y| ops::add_bias(device, y, bias.array()))?;
        }
        pass.rounded(y)
    }

    pub(super) fn placed_backward(
        &self,
        dy: &Placed,
        (x, g): (Option<&Array>, &Geometry),
        pass: &Pass<'_>,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Placed>> {
        let (dy, (how, size)) = (pass.rounded(dy.clone())?, self.windows(g));
        let (inputs, product) = ([g.n, g.y.size, g.x.size, self.spec.cin], self.is_product(g));
        if let Some(x) = x {
            let x = sized(pass.rounded(x.placed()?.clone())?, size)?;
            grads.add_placed(self.w, &self.placed_shape(g), &dy, |device, dw| {
                if product {
                    ops::linear_weights(device, dy.array(), x.array(), dw)
                } else {
                    ops::conv_weights(device, dy.array(), x.array(), how, dw)
                }
            })?;
        }
        if let Some(b) = self.b {
            grads.add_placed(b, &[self.spec.cout], &dy, |device, db| ops::add_sums(device, dy.array(), db))?;
        }
        if !need_dx {
            return Ok(None);
        }
        let w = self.placed_weights(g, pass, &dy)?;
        let dx = if product {
            dy.made(|device, dy| ops::linear_input(device, dy, w.array())?.reshaped(&inputs))?
        } else {
            let from = [g.n, size.0, size.1, self.spec.cin];
            let dx = dy.made(|device, dy| ops::conv_input(device, dy, w.array(), from, how))?;
            sized(dx, (g.y.size, g.x.size))?
        };
        pass.rounded(dx).map(Some)
    }
}
