//! Images to sequences: one row per patch behind a row of its own for the class (Dosovitskiy et al., 2020).

use super::{Array, Conv2d, Gradients, Layer, Mask, ParamId, Pass, Ragged, Tape, array, host, rows};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, Placed, ops};
use crate::{Error, Result};

/// `[n, h, w, 3]` to framed `[n, 2 + patches, c]`: a dense layer on each patch, and to every row that of its place.
#[derive(Debug)]
pub struct Patches {
    /// Its stride is its kernel.
    pub(super) conv: Conv2d,
    pub(super) class: ParamId,
    pub(super) position: ParamId,
    /// Patches of a row and of a column.
    pub(super) grid: usize,
    pub(super) drop: Mask,
}

impl Patches {
    fn ragged(&self, n: usize) -> Ragged {
        let rows = 1 + self.grid * self.grid;
        Ragged { lengths: vec![rows; n], room: rows }
    }

    /// A side that patches do not tile, or another one than the places are for, cannot be read.
    fn fits(&self, h: usize, w: usize) -> Result<()> {
        let size = self.conv.spec.stride;
        let side = size * self.grid;
        if (h, w) == (side, side) && side > 0 {
            return Ok(());
        }
        let near = (h / size).max(1) * size;
        Err(Error::user(
            format!("patches of {size} pixels do not tile an input of {h}x{w}"),
            format!("`model.input` must be a multiple of {size}: {near} or {}", near + size),
        ))
    }

    /// The packed rows of what the patches have become, `[n, grid, grid, c]`: those of the class between, and places added.
    fn rows(&self, made: Array, pass: &Pass<'_>) -> Result<Array> {
        let (n, _, _, c) = made.dims4()?;
        #[cfg(feature = "cuda")]
        if let Array::Device(made) = made {
            return self.placed_rows(made, (n, c), pass).map(Array::from);
        }
        let ragged = self.ragged(n);
        let (made, class, places) = (host(&made)?, pass.store.param(self.class), pass.store.param(self.position));
        let mut out = Vec::with_capacity(ragged.rows() * c);
        for sample in made.chunks_exact(self.grid * self.grid * c) {
            out.extend(class.iter().chain(sample).zip(places).map(|(v, place)| v + place));
        }
        array(out, &[ragged.rows(), c])
    }

    /// Adds the gradients of class and places; gives that of what the patches have become.
    fn rows_backward(&self, dy: Array, n: usize, grads: &mut Gradients) -> Result<Array> {
        let c = dy.dim(1)?;
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return self.placed_rows_backward(dy, (n, c), grads).map(Array::from);
        }
        let g = host(&dy)?;
        let sample = (1 + self.grid * self.grid) * c;
        if let Some(slot) = grads.slot(self.position) {
            rows::add_sums(&g, sample, slot);
        }
        let (mut class, mut rest) = (Vec::with_capacity(n * c), Vec::with_capacity(n * (sample - c)));
        for own in g.chunks_exact(sample) {
            class.extend_from_slice(&own[..c]);
            rest.extend_from_slice(&own[c..]);
        }
        if let Some(slot) = grads.slot(self.class) {
            rows::add_sums(&class, c, slot);
        }
        array(rest, &[n, self.grid, self.grid, c])
    }
}

/// A sample is one line of `(1 + patches)·c` numbers here: its class, then its patches.
#[cfg(feature = "cuda")]
impl Patches {
    fn placed_rows(&self, made: Mixed, (n, c): (usize, usize), pass: &Pass<'_>) -> Result<Placed> {
        let patches = self.grid * self.grid;
        let line = (1 + patches) * c;
        let class = pass.placed_exact(self.class, &[1, c], made.device())?;
        let places = pass.placed_exact(self.position, &[1, line], made.device())?;
        let own = made.reshaped(&[n, patches * c])?.full()?;
        Ok(own.made(|device, own| {
            let mut added = ops::join_columns(device, &[class.array()], 0, line)?;
            ops::add_into(device, &mut added, places.array())?;
            let mut lines = ops::join_columns(device, &[own], c, line)?;
            ops::add_bias(device, &mut lines, &added)?;
            lines.reshaped(&[n * (1 + patches), c])
        })?)
    }

    fn placed_rows_backward(&self, dy: Mixed, (n, c): (usize, usize), grads: &mut Gradients) -> Result<Placed> {
        let line = (1 + self.grid * self.grid) * c;
        let dy = dy.reshaped(&[n, line])?.full()?;
        grads
            .add_placed(self.position, &[line], dy.device(), |device, sums| ops::add_sums(device, dy.array(), sums))?;
        grads.add_placed(self.class, &[c], dy.device(), |device, sums| {
            ops::add_sums(device, &ops::cut_columns(device, dy.array(), 0..c)?, sums)
        })?;
        let shape = [n, self.grid, self.grid, c];
        Ok(dy.made(|device, dy| ops::cut_columns(device, dy, c..line)?.reshaped(&shape))?)
    }
}

impl Layer for Patches {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, _) = x.dims4()?;
        self.fits(h, w)?;
        let rows = self.rows(self.conv.forward(x, pass, tape)?, pass)?;
        let ragged = self.ragged(n);
        ragged.frame(&self.drop.rows(rows, &ragged, pass)?, true)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let (n, _, _) = dy.dims3()?;
        let ragged = self.ragged(n);
        let dy = self.drop.rows(ragged.pack(dy)?, &ragged, pass)?;
        self.conv.backward(&self.rows_backward(dy, n, grads)?, pass, tape, grads, need_dx)
    }

    fn describe(&self, out: &mut String) {
        out.push_str("patches:");
        self.conv.describe(out);
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.class, self.position]);
        self.conv.params(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, Layout, testing},
        num::rng::Philox,
    };

    #[test]
    fn gradients_are_those_of_finite_differences_also_under_dropout() {
        let mut b = Builder::new(1);
        let layer = b.patches(4, 5, 8, Mask { p: 0.3, site: 2 });
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 3.0 + (i % 5) as f32 / 10.0);
        let mut params = Vec::new();
        layer.params(&mut params);
        assert_eq!(params.len(), b.store.params.len());
        let layout = Layout::new(&b.store, &params, &[]);
        let draw = DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[7, 8, 9] };
        for dropout in [None, Some(draw)] {
            testing::check_gradients_under(&layer, &b.store, &[3, 8, 8, 3], &layout, dropout);
        }
    }

    #[test]
    fn an_input_that_patches_do_not_tile_is_refused_with_the_sizes_that_they_do() {
        let mut b = Builder::new(1);
        let layer = b.patches(16, 4, 230, Mask::NONE);
        let x = testing::array(&[1, 230, 230, 3]);
        let error = layer.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap_err().to_string();
        assert!(error.contains("do not tile an input of 230x230"), "{error}");
        assert!(layer.forward(&testing::array(&[1, 224, 224, 3]), &Pass::eval(&b.store), &mut Tape::default()).is_ok());
    }
}
