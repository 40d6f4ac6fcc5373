//! Low-rank adaptation (Hu et al., 2021), with the initial values, names and shapes of peft.

use std::fmt;

use super::{
    super::{
        Act, Array, Builder, Conv2d, ConvSpec, Dropout, Gradients, Layer, Linear, Padding, ParamId, Pass, Tape, array,
        host, sum::add,
    },
    Asked, Part,
};
#[cfg(feature = "cuda")]
use crate::gpu::ops;
use crate::{Result, num::rng::name_id};

/// `y = base(x) + scale·B·A·drop(x)`, A uniform in ±1/√(fan in), B zero.
pub(in crate::nn) struct Lora {
    a: Box<dyn Layer>,
    b: Box<dyn Layer>,
    scale: f32,
    drop: Option<Dropout>,
}

impl Lora {
    /// A `[rank, input]`, B `[output, rank]`.
    pub(super) fn linear(
        b: &mut Builder,
        asked: &Asked<'_>,
        (input, output): (usize, usize),
        rank: usize,
        scale: f32,
        dropout: f32,
    ) -> Self {
        let [wa, wb] = Self::tables(b, asked, &[rank, input], &[output, rank], scale);
        let plain = |w, input, output| Linear { w, b: None, input, output, adapter: None };
        Self {
            a: Box::new(plain(wa, input, rank)),
            b: Box::new(plain(wb, rank, output)),
            scale,
            drop: Self::dropout(asked.name, dropout),
        }
    }

    /// A is a convolution of the same geometry into `rank` channels, B one of single pixels.
    pub(super) fn conv(
        b: &mut Builder,
        asked: &Asked<'_>,
        spec: &ConvSpec,
        rank: usize,
        scale: f32,
        dropout: f32,
    ) -> Self {
        let (kh, kw) = spec.kernel;
        let [wa, wb] = Self::tables(b, asked, &[rank, spec.cin, kh, kw], &[spec.cout, rank, 1, 1], scale);
        let none = Padding::Symmetric(0);
        let a = ConvSpec { cout: rank, bias: false, ..*spec };
        let up = ConvSpec { cin: rank, cout: spec.cout, kernel: (1, 1), stride: 1, pad: (none, none), bias: false };
        let plain = |w, spec| Conv2d { w, b: None, spec, adapter: None };
        Self { a: Box::new(plain(wa, a)), b: Box::new(plain(wb, up)), scale, drop: Self::dropout(asked.name, dropout) }
    }

    fn tables(b: &mut Builder, asked: &Asked<'_>, down: &[usize], up: &[usize], scale: f32) -> [ParamId; 2] {
        let fan_in: usize = down[1..].iter().product();
        let bound = 1.0 / (fan_in as f32).sqrt();
        let wa = b.param(format!("{}.lora_A.weight", asked.name), down, |s| s.range(-bound, bound));
        let wb = b.param(format!("{}.lora_B.weight", asked.name), up, |_| 0.0);
        b.placed(asked, Part::Lora { a: wa, b: wb, scale });
        [wa, wb]
    }

    /// Its site is made from the layer's name: networks count theirs from below.
    fn dropout(name: &str, p: f32) -> Option<Dropout> {
        (p > 0.0).then(|| Dropout { p, site: name_id(name) as u32 | 1 << 31 })
    }

    pub(super) fn forward(
        &self,
        x: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        base: impl FnOnce(&Array, &mut Tape) -> Result<Array>,
    ) -> Result<Array> {
        let y = base(x, tape)?;
        let x = match &self.drop {
            Some(drop) => drop.forward(x, pass, tape)?,
            None => x.clone(),
        };
        // The scale goes to the narrow side.
        let low = self.scaled(self.a.forward(&x, pass, tape)?)?;
        add(&y, &self.b.forward(&low, pass, tape)?, Act::None)
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
        let low = self.b.backward(dy, pass, tape, grads, true)?;
        let mut change = match low {
            Some(low) => self.a.backward(&self.scaled(low)?, pass, tape, grads, need_dx)?,
            None => None,
        };
        if let Some(drop) = &self.drop {
            let below = change.as_ref().unwrap_or(dy);
            change = drop.backward(below, pass, tape, grads, need_dx)?;
        }
        match (base(dy, tape, grads, need_dx)?, change) {
            (Some(dx), Some(change)) if need_dx => Ok(Some(add(&dx, &change, Act::None)?)),
            _ => Ok(None),
        }
    }

    fn scaled(&self, x: Array) -> Result<Array> {
        if self.scale == 1.0 {
            return Ok(x);
        }
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return Ok(x.into_full()?.changed(|device, x| ops::scale(device, x, self.scale))?.into());
        }
        let out = host(&x)?.iter().map(|v| v * self.scale).collect();
        array(out, x.dims())
    }

    pub(super) fn describe(&self, out: &mut String) {
        out.push_str(&format!("lora:{}:", self.scale));
        self.a.describe(out);
    }

    pub(super) fn params(&self, out: &mut Vec<ParamId>) {
        self.a.params(out);
        self.b.params(out);
    }
}

impl fmt::Debug for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lora").field("scale", &self.scale).finish_non_exhaustive()
    }
}
