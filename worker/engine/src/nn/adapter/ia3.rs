//! Factors of activations (IA3; Liu et al., 2022), which start at one.

use rayon::prelude::*;

use super::{
    super::{Array, Builder, Gradients, ParamId, Pass, Saved, Tape, array, host, rows},
    Asked, Part,
};
#[cfg(feature = "cuda")]
use crate::gpu::ops;
use crate::{Error, Result};

/// `y = base(x)·l`, or `base(x·l)` for a layer inside a feed-forward block; by channel.
#[derive(Debug)]
pub(in crate::nn) struct Ia3 {
    pub(super) l: ParamId,
    input: bool,
}

/// Numbers of one task.
const TASK: usize = 64;

impl Ia3 {
    pub(super) fn new(b: &mut Builder, asked: &Asked<'_>, input: bool, channels: usize) -> Self {
        let l = b.param(format!("{}.ia3_l", asked.name), &[channels], |_| 1.0);
        b.placed(asked, Part::Ia3 { l, input });
        Self { l, input }
    }

    pub(super) fn forward(
        &self,
        x: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        base: impl FnOnce(&Array, &mut Tape) -> Result<Array>,
    ) -> Result<Array> {
        let (kept, y) = if self.input {
            (x.clone(), base(&self.times(x, pass)?, tape)?)
        } else {
            let y = base(x, tape)?;
            (y.clone(), self.times(&y, pass)?)
        };
        if pass.records() {
            tape.push(Saved::Array(kept));
        }
        Ok(y)
    }

    pub(super) fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
        base: impl FnOnce(&Array, &mut Tape, &mut Gradients, bool) -> Result<Option<Array>>,
    ) -> Result<Option<Array>> {
        let kept = tape.pop_array()?;
        if !self.input {
            self.learn(dy, &kept, pass, grads)?;
            return base(&self.times(dy, pass)?, tape, grads, need_dx);
        }
        let inner = base(dy, tape, grads, true)?;
        let inner = inner.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))?;
        self.learn(&inner, &kept, pass, grads)?;
        if need_dx { Ok(Some(self.times(&inner, pass)?)) } else { Ok(None) }
    }

    /// Every channel times its factor.
    fn times(&self, x: &Array, pass: &Pass<'_>) -> Result<Array> {
        let l = pass.store.param(self.l);
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            let l = pass.placed_exact(self.l, &[l.len()], x.device())?;
            return Ok(x.full()?.made(|device, x| ops::scale_channels(device, x, l.array()))?.into());
        }
        let mut out = host(x)?.to_vec();
        out.par_chunks_mut(TASK * l.len()).for_each(|rows| {
            rows.chunks_exact_mut(l.len()).for_each(|row| row.iter_mut().zip(l).for_each(|(v, l)| *v *= l));
        });
        array(out, x.dims())
    }

    /// The gradient of the factors: sums of `g` times what was kept.
    fn learn(&self, g: &Array, kept: &Array, pass: &Pass<'_>, grads: &mut Gradients) -> Result<()> {
        let channels = pass.store.param(self.l).len();
        #[cfg(feature = "cuda")]
        if let Array::Device(g) = g {
            let (g, kept) = (g.full()?, kept.placed()?);
            return grads.add_placed(self.l, &[channels], g.device(), |device, dl| {
                ops::add_products(device, g.array(), kept.array(), dl)
            });
        }
        if let Some(dl) = grads.slot(self.l) {
            let (g, kept) = (host(g)?, host(kept)?);
            let product: Vec<f32> = g.iter().zip(kept.iter()).map(|(g, v)| g * v).collect();
            rows::add_sums(&product, channels, dl);
        }
        Ok(())
    }

    pub(super) fn describe(&self, out: &mut String) {
        out.push_str(if self.input { "ia3:input;" } else { "ia3:output;" });
    }
}
