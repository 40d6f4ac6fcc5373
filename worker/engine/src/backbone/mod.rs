//! Networks. A new one is a file here and a line in [`ALL`], in [`TEXT`] if it reads text, or in [`STROKES`] if it reads
//! drawings.

mod bert;
mod conv4_64;
mod densenet121;
mod distilbert;
mod efficientnet;
mod efficientnet_b0;
mod efficientnet_b0_keras;
mod embedding_lstm;
mod head;
mod inception;
mod inception_resnet_v2;
mod inception_v3;
mod lenet;
mod lenet_conv;
mod minilm;
mod mobilenet_v2;
mod nasnet_mobile;
mod resnet;
mod resnet101;
mod resnet14_half;
mod resnet152;
mod resnet18;
mod resnet20;
mod resnet34;
mod resnet50;
mod resnet50_keras;
mod small_cnn;
mod stroke_lstm;
#[cfg(test)]
mod tests;
mod text;
mod transformer_small;
mod vgg;
mod vgg16;
mod vgg19;
mod vit_s16;

use tl_proto::{
    catalog::{Entry, entry, number},
    spec::{HeadSection, ModelSection},
};

pub(crate) use efficientnet_b0_keras::DEVIATIONS;
pub(crate) use text::{DISTILBERT, usual_kinds};
pub use text::{DenseAct, Shape};

use crate::{
    nn::{Adapters, BatchNorm, Builder, Given, Layer, Linear, OWN, Own, Padding, ParamId, Plan, Sequential, Store},
    weights::Contract,
};

/// A network that can be built by name.
pub struct Backbone {
    /// Name in the job file.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Side of the input it was designed for, in pixels; for text, the most tokens; for drawings, the usual number of points.
    pub input: u32,
    /// Names of its classifier's tensors start with this.
    pub classifier: &'static str,
    /// What timm calls it, in `config.json` beside its weights; more than one where they differ in what the weights bring.
    pub timm: &'static [&'static str],
    /// What it has between layers, in PyTorch's word (`relu`, `relu6`, `silu`, `gelu`, `tanh`): a contract of weights that
    /// names another is refused.
    pub activation: &'static str,
    /// Whether it is made of a transformer's blocks, which have dropout inside.
    pub blocks: bool,
    /// Builds the units up to the pooled features `[n, features]`, and says how many features there are. Layers are those of
    /// [`crate::nn`]; the first takes images `[n, side, side, 3]` of `b.given.side` pixels, tokens or strokes. A layer without
    /// parameters goes into the unit of one that has some, or at the end into one called `pool`. A unit that is no block of its
    /// own, such as a last norm, is [`Unit::joined`]. Names that begin with `head.` or with `classifier` are the head's.
    pub build: fn(&mut Builder, Same) -> (Vec<Unit>, usize),
}

/// Every backbone for images.
pub const ALL: &[Backbone] = &[
    mobilenet_v2::ENTRY,
    resnet18::ENTRY,
    resnet34::ENTRY,
    resnet50::ENTRY,
    resnet101::ENTRY,
    resnet152::ENTRY,
    resnet20::ENTRY,
    resnet14_half::ENTRY,
    vgg16::ENTRY,
    vgg19::ENTRY,
    densenet121::ENTRY,
    efficientnet_b0::ENTRY,
    inception_v3::ENTRY,
    inception_resnet_v2::ENTRY,
    resnet50_keras::ENTRY,
    efficientnet_b0_keras::ENTRY,
    nasnet_mobile::ENTRY,
    vit_s16::ENTRY,
    small_cnn::ENTRY,
    lenet::ENTRY,
    lenet_conv::ENTRY,
    conv4_64::ENTRY,
];

/// Every backbone for text: its first tensor is the table of tokens.
pub const TEXT: &[Backbone] =
    &[bert::ENTRY, distilbert::ENTRY, minilm::ENTRY, transformer_small::ENTRY, embedding_lstm::ENTRY];

/// Every backbone for drawings: it takes the rows of [`crate::data::drawing::Strokes`].
pub const STROKES: &[Backbone] = &[stroke_lstm::ENTRY];

/// The backbone of a name.
pub fn find(name: &str) -> Option<&'static Backbone> {
    ALL.iter().chain(TEXT).chain(STROKES).find(|b| b.name == name)
}

impl Backbone {
    /// Whether it reads text.
    pub fn reads_text(&self) -> bool {
        TEXT.iter().any(|b| b.name == self.name)
    }

    /// Whether it reads drawings, stroke by stroke.
    pub fn reads_strokes(&self) -> bool {
        STROKES.iter().any(|b| b.name == self.name)
    }
}

/// Whether strided layers pad as TensorFlow's "SAME" does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Same(pub bool);

impl Same {
    /// The padding of a layer that PyTorch pads by `symmetric`.
    pub fn or(self, symmetric: usize) -> Padding {
        if self.0 { Padding::Same } else { Padding::Symmetric(symmetric) }
    }
}

/// The first of the sites that name the random numbers of a backbone's own dropouts; those of a head are below.
pub(crate) const SITE: u32 = 1 << 16;

/// Sites of one head.
const HEAD_SITES: u32 = 1 << 8;

/// What is dropped inside the blocks of a transformer while it is trained, where the job says it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inside {
    /// Probability to drop a number of a row.
    pub hidden: Option<f32>,
    /// Probability to drop one of the attention's.
    pub attention: Option<f32>,
}

impl Inside {
    /// What `[model]` of a job says.
    pub fn of(model: &ModelSection) -> Self {
        let narrow = |p: Option<f64>| p.map(|p| p as f32);
        Self { hidden: narrow(model.dropout), attention: narrow(model.attention_dropout) }
    }

    fn hidden(self, usual: f32) -> f32 {
        self.hidden.unwrap_or(usual)
    }

    fn attention(self, usual: f32) -> f32 {
        self.attention.unwrap_or(usual)
    }
}

/// What a job wants of a network besides its head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Other dropout inside the blocks than is usual.
    pub dropout: Inside,
    /// Parts on layers of the backbone.
    pub plan: Option<&'a Plan>,
    /// Tensors of another network, behind which those of this one lie.
    pub behind: Option<&'a Store>,
}

/// A piece of a network that is frozen or trained as a whole.
pub struct Unit {
    /// Where it lies in the network.
    pub name: String,
    /// What it computes.
    pub layer: Sequential,
    /// Whether it counts with the block before it where rates fall from block to block: a last norm or convolution, more of
    /// a stem, or what comes behind a step between two blocks.
    pub joined: bool,
}

impl Unit {
    fn new(name: impl Into<String>, layer: impl Layer + 'static) -> Self {
        Self::of(name, Sequential::default().with(layer))
    }

    /// Of layers that stand one behind another already.
    fn of(name: impl Into<String>, layer: Sequential) -> Self {
        Self { name: name.into(), layer, joined: false }
    }

    /// The same, counted with the block before it.
    fn joined(self) -> Self {
        Self { joined: true, ..self }
    }

    /// Its parameters.
    pub fn params(&self) -> Vec<ParamId> {
        let mut out = Vec::new();
        self.layer.params(&mut out);
        out
    }
}

/// What the names of the tensors of further heads begin with.
pub const TASKS: &str = "tasks.";

/// A head beside the first, for other classes.
pub struct TaskHead {
    /// Name of its task.
    pub name: String,
    /// Its units; they take what the first unit of the first head takes.
    pub units: Vec<Unit>,
    /// Its classes.
    pub classes: Vec<String>,
}

impl TaskHead {
    /// What the names of its tensors begin with.
    pub fn prefix(name: &str) -> String {
        format!("{TASKS}{name}.")
    }

    /// Its parameters.
    pub fn params(&self) -> Vec<ParamId> {
        self.units.iter().flat_map(Unit::params).collect()
    }
}

/// A backbone with a head, and its tensors.
pub struct Network {
    /// Units in order; those from `head` on are the head.
    pub units: Vec<Unit>,
    /// Index of the first unit of the head.
    pub head: usize,
    /// Classes; 0 for a network that ends with its features.
    pub outputs: usize,
    /// The initial tensors.
    pub initial: Store,
    /// Small parts that are trained in place of the backbone's weights.
    pub adapters: Adapters,
    /// How many features its last layer takes.
    pub width: usize,
    /// How many features the backbone gives.
    pub features: usize,
    /// Heads beside the first.
    pub tasks: Vec<TaskHead>,
    /// How output layers begin.
    output: fn(&mut Builder, &str, (usize, usize)) -> Linear,
    /// What the objective trains beside it.
    pub own: Vec<ParamId>,
    /// At what rate that learns, where it is not the highest of a stage.
    pub own_rate: Option<f64>,
    /// Of that, what may be no less and no more than two numbers after an update.
    pub limits: Vec<(ParamId, [f32; 2])>,
    /// The head that came with the weights, where it goes on beside the new one; it takes what unit `head` takes.
    pub old: Vec<Unit>,
}

impl Network {
    /// Builds `backbone` with a head for `outputs` classes, or without a last layer where there are none; padding and batch-norms are as `contract` says.
    pub fn build(backbone: &Backbone, contract: &Contract, head: &HeadSection, outputs: usize, seed: u32) -> Self {
        Self::build_with(backbone, contract, head, outputs, seed, Asked::default())
    }

    /// The same as a job wants it.
    pub fn build_with(
        backbone: &Backbone,
        contract: &Contract,
        head: &HeadSection,
        outputs: usize,
        seed: u32,
        asked: Asked<'_>,
    ) -> Self {
        let mut b = Builder::new(seed).with_eps(contract.batch_norm_eps);
        let shape = contract.text.as_ref().and_then(|t| t.shape.clone());
        b.store = asked.behind.cloned().unwrap_or_default();
        b.given = Given { side: contract.side(), shape, dropout: asked.dropout };
        asked.plan.cloned().into_iter().for_each(|plan| b.adapt(plan));
        let (mut units, features) = (backbone.build)(&mut b, Same(contract.same()));
        let first = units.len();
        let adapters = b.adapted();
        let output = b.output;
        let wanted = head::Wanted { head, prefix: "", classifier: backbone.classifier, site: 0, output };
        let (own, width) = wanted.units(&mut b, contract, (features, outputs));
        units.extend(own);
        let (tasks, own, own_rate, limits, old) = (Vec::new(), Vec::new(), None, Vec::new(), Vec::new());
        let (head, initial) = (first, b.store);
        Self { units, head, outputs, initial, adapters, width, features, tasks, output, own, own_rate, limits, old }
    }

    /// Adds a head for other classes. Its tensors begin with the name of its task; those of the network stay as they are.
    pub fn with_task(
        mut self,
        backbone: &Backbone,
        contract: &Contract,
        (name, head): (&str, &HeadSection),
        classes: &[String],
        seed: u32,
    ) -> Self {
        let mut b = Builder::new(seed).with_eps(contract.batch_norm_eps);
        b.store = self.initial;
        // Masks of its own: a head has far fewer dropouts than this.
        let site = HEAD_SITES * (self.tasks.len() as u32 + 1);
        let prefix = &TaskHead::prefix(name);
        let wanted = head::Wanted { head, prefix, classifier: backbone.classifier, site, output: self.output };
        let (units, _) = wanted.units(&mut b, contract, (self.features, classes.len()));
        self.tasks.push(TaskHead { name: name.into(), units, classes: classes.to_vec() });
        self.initial = b.store;
        self
    }

    /// The network without the parts that can be worked into its weights: its tensors are those of [`Adapters::merged`].
    pub fn merged(
        self,
        backbone: &Backbone,
        contract: &Contract,
        head: &HeadSection,
        seed: u32,
        dropout: Inside,
    ) -> Self {
        let initial = self.adapters.merged(&self.initial);
        let asked = Asked { dropout, ..Asked::default() };
        Self { initial, ..Self::build_with(backbone, contract, head, self.outputs, seed, asked) }
    }

    /// How many units make the features: all but the layer that classifies them.
    pub fn embeds(&self) -> usize {
        self.units.len() - usize::from(self.outputs > 0)
    }

    /// Adds what an objective trains beside the network.
    pub fn with_own(mut self, own: &[Own], seed: u32) -> Self {
        let mut b = Builder::new(seed);
        b.store = self.initial;
        self.own = own.iter().map(|own| b.own(own)).collect();
        let limits = self.own.iter().zip(own).filter_map(|(id, own)| Some((*id, own.span?)));
        self.limits = limits.collect();
        self.initial = b.store;
        self
    }

    /// Adds the head of `from`, which was built with `head` on the same backbone, with its values; it drops nothing.
    pub fn with_old(mut self, backbone: &Backbone, contract: &Contract, head: &HeadSection, from: &Self) -> Self {
        let mut b = Builder::new(0);
        b.store = self.initial;
        let head = &HeadSection { dropout: Some(0.0), ..head.clone() };
        let prefix = &format!("{OWN}source.");
        let wanted = head::Wanted { head, prefix, classifier: backbone.classifier, site: 0, output: self.output };
        (self.old, _) = wanted.units(&mut b, contract, (self.features, from.outputs));
        self.initial = b.store;
        let Store { params, buffers, values, buffer_values, .. } = &mut self.initial;
        let theirs = &from.initial;
        for (mine, values, list, known) in [
            (params, values, &theirs.params, &theirs.values),
            (buffers, buffer_values, &theirs.buffers, &theirs.buffer_values),
        ] {
            for entry in mine.iter() {
                if let Some(same) = list.iter().find(|e| entry.name.strip_prefix(prefix.as_str()) == Some(&e.name)) {
                    values[entry.range.clone()].copy_from_slice(&known[same.range.clone()]);
                }
            }
        }
        self
    }

    /// Parameters of the head that came with the weights, where it goes on.
    pub fn old_params(&self) -> Vec<ParamId> {
        self.old.iter().flat_map(Unit::params).collect()
    }

    /// Whether a parameter is none of the finished model's: an objective's own, or the old head's.
    pub fn is_beside(&self, id: ParamId) -> bool {
        self.own.contains(&id) || self.old_params().contains(&id)
    }

    /// Parameters of a unit.
    pub fn unit_params(&self, unit: usize) -> Vec<ParamId> {
        self.units[unit].params()
    }
}

/// Adds a convolution and its batch-norm.
fn conv_norm(layers: Sequential, conv: impl Layer + 'static, norm: BatchNorm) -> Sequential {
    layers.with(conv).with(norm)
}

/// What the catalog says of them.
pub fn catalog() -> Vec<Entry> {
    let one = |b: &Backbone| {
        let mut entry = entry(b.name, b.doc);
        if b.blocks {
            let doc = "Probability to drop a number inside a block while it trains; else what `config.json` says";
            entry.params.push(number("dropout", 0.0, 0.0, 0.95, doc));
            entry.params.push(number("attention_dropout", 0.0, 0.0, 0.95, "The same for what attention looks at"));
        }
        entry
    };
    ALL.iter().chain(TEXT).chain(STROKES).map(one).collect()
}
