//! A network of the catalog filled by rule, and the batches to run it on.

use std::{collections::BTreeMap, ops::Range};

use rayon::prelude::*;
use tl_engine::{
    backbone::{Network, find},
    data::tokens::Text,
    nn::{self, Array, BufferId, Gradients, Layout, ParamId, Pass, Store, Tape, host},
    objective,
    optim::{self, Moments, Rate},
    weights::Contract,
};
use tl_proto::spec::{HeadSection, OptimizerSection, Precision, StageSection};

use crate::{
    golden::{AdamW, Figures, Golden},
    rule::{self, Fill, Signs},
};

/// Learning rate of several steps; of one, the file says it.
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

/// A network, what its batches are made of, and the optimizer's memory.
pub struct Net<'a> {
    golden: &'a Golden,
    network: Network,
    store: Store,
    norms: Vec<(BufferId, BufferId)>,
    moments: Moments,
    signs: BTreeMap<String, Signs>,
}

impl<'a> Net<'a> {
    /// The network of a golden file, filled as the file says.
    pub fn build(golden: &'a Golden) -> Self {
        Self::filled(golden, &Fill { gain: golden.gain, shifts: golden.shifts.clone(), lifted: false })
    }

    /// The network of a golden file, filled in another way.
    pub fn filled(golden: &'a Golden, fill: &Fill) -> Self {
        let backbone = find(&golden.backbone).unwrap();
        let side = golden.shape[golden.shape.len() - 1];
        let named = Contract::named("tf", side as u32, Some(&golden.padding)).unwrap();
        let text = golden.encoder.clone().map(|shape| Text::new(side, Some(shape), String::new()));
        let contract = Contract { batch_norm_eps: golden.eps, text, ..named };
        let network = Network::build(backbone, &contract, &HeadSection::default(), golden.classes, 1);
        let mut store = network.initial.clone();
        fill.apply(&mut store);
        let mut norms = Vec::new();
        network.units.iter().for_each(|u| nn::Layer::norms(&u.layer, &mut norms));
        let moments = (optim::find("adamw").init)(store.values.len());
        let entries: Vec<_> = store.params.iter().chain(&store.buffers).collect();
        let signs = |e: &&nn::Entry| (e.name.clone(), Signs::new(&e.name, e.range.len()));
        let signs = entries.par_iter().map(signs).collect();
        Self { golden, network, store, norms, moments, signs }
    }

    /// From here on products are in bf16.
    pub fn use_bf16(&mut self) {
        self.store.precision = Precision::Bf16;
    }

    /// Forward and backward with every parameter trained, without dropout, on `samples` of an input.
    pub fn pass(&self, mode: Mode, given: &str, samples: usize) -> Found {
        let input =
            if self.golden.words > 0 { ids(self.golden, given) } else { image(&self.golden.shape, given, samples) };
        let labels = rule::labels(samples, self.golden.classes);
        let trained: Vec<ParamId> = (0..self.store.params.len()).map(ParamId).collect();
        let means: Vec<BufferId> = self.norms.iter().filter(|_| mode == Mode::Train).map(|n| n.0).collect();
        let layout = Layout::new(&self.store, &trained, &means);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&self.store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let forward =
            |x: Array, unit: &tl_engine::backbone::Unit| nn::Layer::forward(&unit.layer, &x, &pass, &mut tape);
        let logits = self.network.units.iter().try_fold(input, forward).unwrap().to_tensor().unwrap();
        let log_p = objective::log_softmax(&(&logits / TEMPERATURE).unwrap()).unwrap();
        let mut dy = host(&objective::exp(&log_p).unwrap()).unwrap().to_vec();
        let log_p = host(&log_p).unwrap();
        let classes = self.network.outputs;
        let share = 1.0 / samples as f32;
        let mut loss = 0.0;
        for (i, label) in labels.iter().enumerate() {
            dy[i * classes + label] -= 1.0;
            loss -= f64::from(log_p[i * classes + label]) * f64::from(share);
        }
        dy.iter_mut().for_each(|d| *d *= share / TEMPERATURE as f32);
        let mut dy = Some(nn::array(dy, logits.dims()).unwrap());
        for (i, unit) in self.network.units.iter().enumerate().rev() {
            let g = dy.take().unwrap();
            dy = nn::Layer::backward(&unit.layer, &g, &pass, &mut tape, &mut grads, i > 0).unwrap();
        }
        let flat = grads.flat;
        let logits = host(&logits).unwrap().to_vec();
        Found { logits, loss, layout, flat }
    }

    /// One step of AdamW in the engine's own groups, and of the running statistics.
    fn update(&mut self, found: &Found, spec: &OptimizerSection, rate: Rate) {
        let scales = vec![1.0; found.layout.trained().count()];
        let groups = optim::groups(&self.store, &found.layout, &scales);
        (optim::find("adamw").step)(spec, &mut self.moments, &mut self.store.values, &found.flat, &groups, rate);
        for (mean, var) in &self.norms {
            let Some(sums) = found.layout.stats(*mean) else { continue };
            let range = |id: &BufferId| self.store.buffers[id.0].range.clone();
            let [mean, var] =
                self.store.buffer_values.get_disjoint_mut([range(mean), range(var)]).expect("two buffers");
            nn::update_running(mean, var, &found.flat[sums]);
        }
    }

    /// The golden step, and figures of what it adds to each parameter.
    pub fn step(&mut self, found: &Found) -> Figures {
        let AdamW { lr, weight_decay, eps } = self.golden.adamw;
        let before = self.store.values.clone();
        self.update(found, &OptimizerSection { weight_decay, eps, ..OptimizerSection::default() }, lr.into());
        let added: Vec<f32> = self.store.values.iter().zip(&before).map(|(a, b)| a - b).collect();
        let params: Vec<_> = self.store.params.iter().map(|p| (p.name.as_str(), p.range.clone())).collect();
        self.figures(&params, &added)
    }

    /// One of `of` steps with defaults and the engine's cosine.
    pub fn step_of(&mut self, found: &Found, step: usize, of: usize) {
        let stage = StageSection { schedule: "cosine".into(), ..StageSection::new("all", 1, &["*"], RATE) };
        let rate = optim::schedule::rate(&stage, RATE, step as u64, of as u64);
        self.update(found, &OptimizerSection::default(), rate);
    }

    /// Each parameter's gradient.
    pub fn flat_gradients<'b>(&self, found: &'b Found) -> BTreeMap<String, &'b [f32]> {
        let one = |(id, slot): (ParamId, _)| (self.store.params[id.0].name.clone(), &found.flat[slot]);
        found.layout.trained().map(one).collect()
    }

    /// Figures of each parameter's gradient.
    pub fn gradients(&self, found: &Found) -> Figures {
        let name = |id: ParamId| self.store.params[id.0].name.as_str();
        let slots: Vec<_> = found.layout.trained().map(|(id, slot)| (name(id), slot)).collect();
        self.figures(&slots, &found.flat)
    }

    /// Figures of each running statistic.
    pub fn statistics(&self) -> Figures {
        let entry = |id: &BufferId| &self.store.buffers[id.0];
        let ids = self.norms.iter().flat_map(|(mean, var)| [mean, var]);
        let places: Vec<_> = ids.map(|id| (entry(id).name.as_str(), entry(id).range.clone())).collect();
        self.figures(&places, &self.store.buffer_values)
    }

    fn figures(&self, places: &[(&str, Range<usize>)], values: &[f32]) -> Figures {
        let figures = |(name, range): &(&str, Range<usize>)| {
            ((*name).to_owned(), (self.signs[*name].figures(&values[range.clone()]), range.len()))
        };
        places.par_iter().map(figures).collect()
    }
}

/// The rule counts in PyTorch's order; the engine wants channels last.
fn image(shape: &[usize], given: &str, n: usize) -> Array {
    let [_, channels, height, width] = *shape else { panic!("an image of {shape:?}") };
    let mut pixels = vec![0.0; n * channels * height * width];
    let area = height * width;
    for (i, u) in rule::uniform(given).take(pixels.len()).enumerate() {
        let (sample, channel, pixel) = (i / (channels * area), i / area % channels, i % area);
        pixels[(sample * area + pixel) * channels + channel] = u as f32;
    }
    nn::array(pixels, &[n, height, width, channels]).unwrap()
}

/// Token 0 is PyTorch's padding, which learns nothing there; the engine writes -1 behind the end.
fn ids(golden: &Golden, given: &str) -> Array {
    let (n, room) = (golden.shape[0], golden.shape[1]);
    let mut ids: Vec<f32> = rule::classes(given, golden.words - 1).take(n * room).map(|id| (id + 1) as f32).collect();
    ids.chunks_exact_mut(room).zip(&golden.lengths).for_each(|(row, length)| row[*length..].fill(-1.0));
    nn::array(ids, &[n, room]).unwrap()
}
