//! Small trained parts on layers whose own weights stay: LoRA and IA3 on dense layers and convolutions, bottlenecks in
//! encoder blocks. Layers ask the [`Builder`] for their part when they are made, so that networks need no line for it.

mod bottleneck;
mod ia3;
mod lora;
mod plan;

pub use bottleneck::{AddNorm, Place};
pub use plan::{Kind, Plan, Target};

use self::{ia3::Ia3, lora::Lora};
use super::{Array, Builder, ConvSpec, Gradients, ParamId, Pass, Store, Tape};
use crate::Result;

/// What a layer carries beside its weights.
#[derive(Debug)]
pub(super) enum Adapter {
    Lora(Lora),
    Ia3(Ia3),
}

impl Adapter {
    /// The layer's output, `base` being what its weights alone make of an input.
    pub(super) fn forward(
        &self,
        x: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        base: impl FnOnce(&Array, &mut Tape) -> Result<Array>,
    ) -> Result<Array> {
        match self {
            Self::Lora(lora) => lora.forward(x, pass, tape, base),
            Self::Ia3(ia3) => ia3.forward(x, pass, tape, base),
        }
    }

    /// The gradient of the layer's input, `base` being the backward of its weights alone.
    pub(super) fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
        base: impl FnOnce(&Array, &mut Tape, &mut Gradients, bool) -> Result<Option<Array>>,
    ) -> Result<Option<Array>> {
        match self {
            Self::Lora(lora) => lora.backward(dy, pass, tape, grads, need_dx, base),
            Self::Ia3(ia3) => ia3.backward(dy, pass, tape, grads, need_dx, base),
        }
    }

    pub(super) fn describe(&self, out: &mut String) {
        match self {
            Self::Lora(lora) => lora.describe(out),
            Self::Ia3(ia3) => ia3.describe(out),
        }
    }

    pub(super) fn params(&self, out: &mut Vec<ParamId>) {
        match self {
            Self::Lora(lora) => lora.params(out),
            Self::Ia3(ia3) => out.push(ia3.l),
        }
    }
}

/// The tensors of one layer's part.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Adds `scale·B·A` to the weights.
    Lora {
        /// `[rank, input…]`
        a: ParamId,
        /// `[output, rank…]`
        b: ParamId,
        /// `α/r`
        scale: f32,
    },
    /// Multiplies outputs, or inputs, channel by channel.
    Ia3 {
        /// `[channels]`
        l: ParamId,
        /// Whether its channels are those of the input.
        input: bool,
    },
}

/// A layer with a part.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub layer: String,
    /// Its weights, outputs first.
    pub weight: ParamId,
    /// Its bias.
    pub bias: Option<ParamId>,
    /// What it carries.
    pub part: Part,
}

/// The parts of a network.
#[derive(Clone, Debug, Default)]
pub struct Adapters {
    /// What was asked for.
    pub plan: Option<Plan>,
    /// Layers whose part can be worked into their weights.
    pub sites: Vec<Site>,
    /// The tensors of all parts, in order: what is trained in place of the weights.
    pub params: Vec<ParamId>,
    /// Those whose gradient is zero before the first update.
    pub late: Vec<ParamId>,
    /// Every layer that could have had a part, in order.
    pub layers: Vec<String>,
    /// Which targets were the name of a layer.
    pub hits: Vec<bool>,
}

impl Adapters {
    /// The tensors with all parts worked into the weights: of a network that has none, with the same outputs but for
    /// rounding. Bottlenecks stay what they are.
    pub fn merged(&self, store: &Store) -> Store {
        let mut whole = store.clone();
        for site in &self.sites {
            site.merge(&mut whole);
        }
        if self.sites.is_empty() { whole } else { whole.without(&self.params) }
    }
}

impl Site {
    /// In f64, and rounded once.
    fn merge(&self, store: &mut Store) {
        let entry = store.params[self.weight.0].clone();
        let outputs = entry.shape[0];
        let width = entry.range.len() / outputs;
        match self.part {
            Part::Lora { a, b, scale } => {
                let (a, b) = (store.param(a).to_vec(), store.param(b).to_vec());
                let rank = b.len() / outputs;
                let rows = store.values[entry.range].chunks_exact_mut(width).zip(b.chunks_exact(rank));
                for (row, b) in rows {
                    let mut change = vec![0.0f64; width];
                    for (b, a) in b.iter().zip(a.chunks_exact(width)) {
                        change.iter_mut().zip(a).for_each(|(c, a)| *c += f64::from(*b) * f64::from(*a));
                    }
                    row.iter_mut().zip(&change).for_each(|(w, c)| *w = (f64::from(*w) + f64::from(scale) * c) as f32);
                }
            }
            Part::Ia3 { l, input } => {
                let l = store.param(l).to_vec();
                let taps = width / entry.shape.get(1).copied().unwrap_or(1).max(1);
                for (o, row) in store.values[entry.range].chunks_exact_mut(width).enumerate() {
                    row.iter_mut().enumerate().for_each(|(i, w)| *w *= if input { l[i / taps] } else { l[o] });
                }
                if let Some(bias) = self.bias.filter(|_| !input) {
                    let range = store.params[bias.0].range.clone();
                    store.values[range].iter_mut().zip(&l).for_each(|(b, l)| *b *= l);
                }
            }
        }
    }
}

/// The layer that a part is made for.
struct Asked<'a> {
    name: &'a str,
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Builder {
    /// From here on, layers that the plan names carry its parts.
    pub fn adapt(&mut self, plan: Plan) {
        self.adapters.hits = vec![false; plan.targets.len()];
        self.adapters.plan = Some(plan);
        self.adapting = true;
    }

    /// Layers from here on carry nothing. What there is so far.
    pub fn adapted(&mut self) -> Adapters {
        self.adapting = false;
        std::mem::take(&mut self.adapters)
    }

    /// What a layer of this name is to carry.
    fn asked(&mut self, name: &str) -> Option<Kind> {
        let Adapters { plan, hits, layers, .. } = &mut self.adapters;
        let plan = plan.as_ref().filter(|_| self.adapting)?;
        layers.push(name.into());
        let mut found = false;
        for (target, hit) in plan.targets.iter().zip(hits) {
            if target.names(name) {
                (*hit, found) = (true, true);
            }
        }
        found.then(|| plan.kind.on(name))
    }

    fn placed(&mut self, asked: &Asked<'_>, part: Part) {
        let (weight, bias) = (asked.weight, asked.bias);
        match part {
            Part::Lora { a, b, .. } => {
                self.adapters.params.extend([a, b]);
                // B starts at zero, and A's gradient is a multiple of it.
                self.adapters.late.push(a);
            }
            Part::Ia3 { l, .. } => self.adapters.params.push(l),
        }
        self.adapters.sites.push(Site { layer: asked.name.into(), weight, bias, part });
    }

    pub(super) fn linear_adapter(
        &mut self,
        name: &str,
        (weight, bias): (ParamId, Option<ParamId>),
        (input, output): (usize, usize),
    ) -> Option<Box<Adapter>> {
        let asked = Asked { name, weight, bias };
        let kind = self.asked(name)?;
        let scale = kind.scale();
        Some(Box::new(match kind {
            Kind::Lora { rank, dropout, .. } => {
                Adapter::Lora(Lora::linear(self, &asked, (input, output), rank, scale, dropout))
            }
            Kind::Ia3 { feedforward, .. } => {
                let inner = feedforward.iter().any(|t| t.names(name));
                Adapter::Ia3(Ia3::new(self, &asked, inner, if inner { input } else { output }))
            }
            Kind::Bottleneck { .. } => return None,
        }))
    }

    pub(super) fn conv_adapter(
        &mut self,
        name: &str,
        (weight, bias): (ParamId, Option<ParamId>),
        spec: &ConvSpec,
    ) -> Option<Box<Adapter>> {
        let asked = Asked { name, weight, bias };
        let kind = self.asked(name)?;
        let scale = kind.scale();
        Some(Box::new(match kind {
            Kind::Lora { rank, dropout, .. } => Adapter::Lora(Lora::conv(self, &asked, spec, rank, scale, dropout)),
            Kind::Ia3 { feedforward, .. } => {
                let inner = feedforward.iter().any(|t| t.names(name));
                Adapter::Ia3(Ia3::new(self, &asked, inner, if inner { spec.cin } else { spec.cout }))
            }
            Kind::Bottleneck { .. } => return None,
        }))
    }
}

#[cfg(test)]
mod tests;
