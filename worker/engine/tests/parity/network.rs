//! A network of the catalog filled by rule, and one batch to run it on.

use std::collections::BTreeMap;

use candle_core::Tensor;
use tl_engine::{
    backbone::{Network, find},
    data::tokens::Text,
    nn::{self, BufferId, Gradients, Layout, ParamId, Pass, Store, Tape, host},
    objective,
    optim::{self, Group, Moments, Rate},
    weights::Contract,
};
use tl_proto::spec::{HeadSection, OptimizerSection, Precision, StageSection};

use crate::{
    golden::{Figures, Golden},
    rule,
};

/// Learning rate of the golden step.
const RATE: f64 = 1e-3;

/// The logits are divided by this before the loss.
const TEMPERATURE: f64 = 8.0;

/// Which statistics batch-norms use.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    /// The running ones.
    Eval,
    /// Those of the batch.
    Train,
}

/// What one pass forward and backward has found.
pub struct Found {
    /// Row by row.
    pub logits: Vec<f32>,
    /// The mean cross-entropy.
    pub loss: f64,
    layout: Layout,
    flat: Vec<f32>,
}

/// A network, its batch, and the optimizer's memory.
pub struct Net {
    network: Network,
    store: Store,
    norms: Vec<(BufferId, BufferId)>,
    input: Tensor,
    labels: Vec<usize>,
    moments: Moments,
}

impl Net {
    /// The network of a golden file, filled.
    pub fn build(golden: &Golden) -> Self {
        let backbone = find(&golden.backbone).unwrap();
        let side = golden.shape[golden.shape.len() - 1];
        let named = Contract::named("tf", side as u32, Some(&golden.padding)).unwrap();
        let text = golden.encoder.clone().map(|shape| Text::new(side, Some(shape), String::new()));
        let contract = Contract { batch_norm_eps: golden.eps, text, ..named };
        let network = Network::build(backbone, &contract, &HeadSection::default(), golden.classes, 1);
        let mut store = network.initial.clone();
        rule::fill(&mut store);
        let mut norms = Vec::new();
        network.units.iter().for_each(|u| nn::Layer::norms(&u.layer, &mut norms));
        let input = if golden.words > 0 { ids(golden) } else { image(&golden.shape) };
        let labels = rule::labels(golden.shape[0], golden.classes);
        let moments = (optim::find("adamw").init)(store.values.len());
        Self { network, store, norms, input, labels, moments }
    }

    /// From here on products are in bf16.
    pub fn use_bf16(&mut self) {
        self.store.precision = Precision::Bf16;
    }

    /// Forward and backward with every parameter trained, without dropout.
    pub fn pass(&self, mode: Mode) -> Found {
        let trained: Vec<ParamId> = (0..self.store.params.len()).map(ParamId).collect();
        let means: Vec<BufferId> = self.norms.iter().filter(|_| mode == Mode::Train).map(|n| n.0).collect();
        let layout = Layout::new(&self.store, &trained, &means);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&self.store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let forward =
            |x: Tensor, unit: &tl_engine::backbone::Unit| nn::Layer::forward(&unit.layer, &x, &pass, &mut tape);
        let logits = self.network.units.iter().try_fold(self.input.clone(), forward).unwrap();
        let log_p = objective::log_softmax(&(&logits / TEMPERATURE).unwrap()).unwrap();
        let mut dy = host(&objective::exp(&log_p).unwrap()).unwrap().to_vec();
        let log_p = host(&log_p).unwrap();
        let classes = self.network.outputs;
        let share = 1.0 / self.labels.len() as f32;
        let mut loss = 0.0;
        for (i, label) in self.labels.iter().enumerate() {
            dy[i * classes + label] -= 1.0;
            loss -= f64::from(log_p[i * classes + label]) * f64::from(share);
        }
        dy.iter_mut().for_each(|d| *d *= share / TEMPERATURE as f32);
        let mut dy = Some(nn::tensor(dy, logits.dims()).unwrap());
        for (i, unit) in self.network.units.iter().enumerate().rev() {
            let g = dy.take().unwrap();
            dy = nn::Layer::backward(&unit.layer, &g, &pass, &mut tape, &mut grads, i > 0).unwrap();
        }
        let flat = grads.flat;
        let logits = host(&logits).unwrap().to_vec();
        Found { logits, loss, layout, flat }
    }

    /// One step of AdamW, and of the running statistics.
    pub fn update(&mut self, found: &Found, rate: Rate) {
        let spec = OptimizerSection::default();
        let mean = &found.flat;
        let groups: Vec<Group> = found
            .layout
            .trained()
            .map(|(id, gradient)| {
                let entry = &self.store.params[id.0];
                Group { values: entry.range.clone(), gradient, lr_scale: 1.0, decays: entry.shape.len() > 1 }
            })
            .collect();
        (optim::find("adamw").step)(&spec, &mut self.moments, &mut self.store.values, mean, &groups, rate);
        for (mean, var) in &self.norms {
            let Some(sums) = found.layout.stats(*mean) else { continue };
            let range = |id: &BufferId| self.store.buffers[id.0].range.clone();
            let [mean, var] =
                self.store.buffer_values.get_disjoint_mut([range(mean), range(var)]).expect("two buffers");
            nn::update_running(mean, var, &found.flat[sums]);
        }
    }

    /// Each parameter's gradient.
    pub fn flat_gradients<'a>(&self, found: &'a Found) -> BTreeMap<String, &'a [f32]> {
        let one = |(id, slot): (ParamId, _)| (self.store.params[id.0].name.clone(), &found.flat[slot]);
        found.layout.trained().map(one).collect()
    }

    /// Figures of each parameter's gradient.
    pub fn gradients(&self, found: &Found) -> Figures {
        found.layout.trained().map(|(id, slot)| figures(&self.store.params[id.0].name, &found.flat[slot])).collect()
    }

    /// Figures of each parameter.
    pub fn parameters(&self) -> Figures {
        self.store.params.iter().map(|p| figures(&p.name, &self.store.values[p.range.clone()])).collect()
    }

    /// Figures of each running statistic.
    pub fn statistics(&self) -> Figures {
        let ids = self.norms.iter().flat_map(|(mean, var)| [mean, var]);
        ids.map(|id| figures(&self.store.buffers[id.0].name, self.store.buffer(*id))).collect()
    }
}

/// The rule counts in PyTorch's order; the engine wants channels last.
fn image(shape: &[usize]) -> Tensor {
    let [n, channels, height, width] = *shape else { panic!("an image of {shape:?}") };
    let mut pixels = vec![0.0; n * channels * height * width];
    let area = height * width;
    for (i, u) in rule::uniform("input").take(pixels.len()).enumerate() {
        let (sample, channel, pixel) = (i / (channels * area), i / area % channels, i % area);
        pixels[(sample * area + pixel) * channels + channel] = u as f32;
    }
    nn::tensor(pixels, &[n, height, width, channels]).unwrap()
}

/// Token 0 is PyTorch's padding, which learns nothing there; the engine writes -1 behind the end.
fn ids(golden: &Golden) -> Tensor {
    let (n, room) = (golden.shape[0], golden.shape[1]);
    let mut ids: Vec<f32> = rule::classes("input", golden.words - 1).take(n * room).map(|id| (id + 1) as f32).collect();
    ids.chunks_exact_mut(room).zip(&golden.lengths).for_each(|(row, length)| row[*length..].fill(-1.0));
    nn::tensor(ids, &[n, room]).unwrap()
}

fn figures(name: &str, values: &[f32]) -> (String, ([f64; 3], usize)) {
    (name.to_owned(), (rule::figures(name, values), values.len()))
}

/// The rate of the golden step.
pub fn constant() -> Rate {
    RATE.into()
}

/// The engine's cosine at one of several steps.
pub fn cosine(step: usize, of: usize) -> Rate {
    let stage = StageSection { schedule: "cosine".into(), ..StageSection::new("all", 1, &["*"], RATE) };
    optim::schedule::rate(&stage, RATE, step as u64, of as u64)
}
