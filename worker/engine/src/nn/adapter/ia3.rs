//! Factors of activations (IA3; Liu et al., 2022), which start at one.

use rayon::prelude::*;

use super::{
    super::{Array, Builder, Gradients, ParamId, Pass, Saved, Tape, array, host, rows},
    Asked, Part,
};
use crate::{Error, Result};

/// `y = base(x)·l`, or `base(x·l)` for a layer inside a feed-forward block; by channel.
#[derive(Debug)]
pub(in crate::nn) struct Ia3 {
    pub(super) l: ParamId,
    input: bool,
}

/// Numbers of one task.
const TASK: usize = 64;

/// Every channel times its factor.
fn times(x: &Array, l: &[f32]) -> Result<Array> {
    let mut out = host(x)?.to_vec();
    out.par_chunks_mut(TASK * l.len())
        .for_each(|rows| rows.chunks_exact_mut(l.len()).for_each(|r| r.iter_mut().zip(l).for_each(|(v, l)| *v *= l)));
    array(out, x.dims())
}

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
        let l = pass.store.param(self.l);
        let (kept, y) = if self.input {
            (x.clone(), base(&times(x, l)?, tape)?)
        } else {
            let y = base(x, tape)?;
            (y.clone(), times(&y, l)?)
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
        let l = pass.store.param(self.l);
        let kept = tape.pop_array()?;
        let slope = |g: &Array, grads: &mut Gradients| -> Result<()> {
            if let Some(dl) = grads.slot(self.l) {
                let (g, kept) = (host(g)?, host(&kept)?);
                let product: Vec<f32> = g.iter().zip(kept.iter()).map(|(g, v)| g * v).collect();
                rows::add_sums(&product, l.len(), dl);
            }
            Ok(())
        };
        if !self.input {
            slope(dy, grads)?;
            return base(&times(dy, l)?, tape, grads, need_dx);
        }
        let inner = base(dy, tape, grads, true)?;
        let inner = inner.ok_or_else(|| Error::Internal("a layer gave no gradient".into()))?;
        slope(&inner, grads)?;
        if need_dx { Ok(Some(times(&inner, l)?)) } else { Ok(None) }
    }

    pub(super) fn describe(&self, out: &mut String) {
        out.push_str(if self.input { "ia3:input;" } else { "ia3:output;" });
    }
}
