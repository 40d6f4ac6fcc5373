//! Parameters and buffers of a network in flat memory, in the order in which the network names them.

use std::{collections::BTreeMap, ops::Range};

use tl_proto::spec::Precision;

use super::{
    Act, Adapters, BatchNorm, Conv2d, ConvSpec, Depthwise, Early, Embedding, LayerNorm, Linear, Lstm, Mask, Normalize,
    Padding, Patches, SelfAttention,
};
#[cfg(feature = "cuda")]
use crate::gpu::Placed;
use crate::{
    gpu::Place,
    num::{
        fresh::zeros,
        rng::{Philox, Stream, name_id},
    },
};

/// A trainable tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// A tensor that is not trained, such as a running mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// Name, shape and place of one tensor.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As torchvision calls it.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its elements lie.
    pub range: Range<usize>,
    /// Whether weight decay applies to it: to matrices and kernels, not to what is added or scales.
    pub decays: bool,
    /// Whether it is the scale or the shift of a normalisation.
    pub norm: bool,
}

/// All tensors of one network.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Parameters, in order.
    pub params: Vec<Entry>,
    /// Buffers, in order.
    pub buffers: Vec<Entry>,
    /// Elements of the parameters.
    pub values: Vec<f32>,
    /// Elements of the buffers.
    pub buffer_values: Vec<f32>,
    /// What products make of them; the elements themselves are f32 with any.
    pub precision: Precision,
    /// Where layers compute with them; the elements themselves are the host's with any.
    pub place: Place,
}

impl Store {
    /// The same names and shapes, without elements.
    pub fn names(&self) -> Self {
        let (params, buffers, place) = (self.params.clone(), self.buffers.clone(), self.place.clone());
        Self { params, buffers, precision: self.precision, place, ..Self::default() }
    }

    /// The elements of a parameter.
    pub fn param(&self, id: ParamId) -> &[f32] {
        &self.values[self.params[id.0].range.clone()]
    }

    /// The elements of a buffer.
    pub fn buffer(&self, id: BufferId) -> &[f32] {
        &self.buffer_values[self.buffers[id.0].range.clone()]
    }

    /// All but some parameters.
    pub fn without(&self, left_out: &[ParamId]) -> Self {
        let (buffers, buffer_values, place) = (self.buffers.clone(), self.buffer_values.clone(), self.place.clone());
        let mut out = Self { buffers, buffer_values, precision: self.precision, place, ..Self::default() };
        for (_, entry) in self.params.iter().enumerate().filter(|(i, _)| !left_out.contains(&ParamId(*i))) {
            let id = Self::add(&mut out.params, &mut out.values, entry.name.clone(), &entry.shape);
            let range = out.params[id].range.clone();
            out.values[range.clone()].copy_from_slice(&self.values[entry.range.clone()]);
            out.params[id] = Entry { range, ..entry.clone() };
        }
        out
    }

    fn marked(&mut self, affine: [ParamId; 2]) {
        affine.iter().for_each(|p| self.params[p.0].norm = true);
    }

    fn add(list: &mut Vec<Entry>, values: &mut Vec<f32>, name: String, shape: &[usize]) -> usize {
        let start = values.len();
        let len: usize = shape.iter().product();
        values.resize(start + len, 0.0);
        let (shape, decays) = (shape.to_vec(), shape.len() > 1);
        list.push(Entry { name, shape, range: start..start + len, decays, norm: false });
        list.len() - 1
    }
}

/// What a stage trains, and where each gradient lies in the flat buffer.
#[derive(Clone, Debug)]
pub struct Layout {
    slots: Vec<Option<Range<usize>>>,
    stats: Vec<Option<Range<usize>>>,
    len: usize,
    params_len: usize,
}

impl Layout {
    /// Slots for `trained` parameters, and for each batch-norm in `norms` (by its mean's
    /// buffer) two sums per channel and a count.
    pub fn new(store: &Store, trained: &[ParamId], norms: &[BufferId]) -> Self {
        let mut layout = Self {
            slots: vec![None; store.params.len()],
            stats: vec![None; store.buffers.len()],
            len: 0,
            params_len: 0,
        };
        for id in trained {
            layout.slots[id.0] = Some(layout.take(store.params[id.0].range.len()));
        }
        layout.params_len = layout.len;
        for id in norms {
            layout.stats[id.0] = Some(layout.take(2 * store.buffers[id.0].range.len() + 1));
        }
        layout
    }

    fn take(&mut self, len: usize) -> Range<usize> {
        let start = self.len;
        self.len += len;
        start..self.len
    }

    /// Where the gradient of a parameter lies, if it is trained.
    pub fn slot(&self, id: ParamId) -> Option<Range<usize>> {
        self.slots[id.0].clone()
    }

    /// Where the statistics of a batch-norm lie, if it uses those of the grain.
    pub fn stats(&self, mean: BufferId) -> Option<Range<usize>> {
        self.stats[mean.0].clone()
    }

    /// Elements of the whole flat buffer.
    pub fn total_len(&self) -> usize {
        self.len
    }

    /// Elements that are gradients; what follows are statistics.
    pub fn params_len(&self) -> usize {
        self.params_len
    }

    /// Trained parameters in order, with their slots.
    pub fn trained(&self) -> impl Iterator<Item = (ParamId, Range<usize>)> + '_ {
        self.slots.iter().enumerate().filter_map(|(i, r)| Some((ParamId(i), r.clone()?)))
    }

    /// Batch-norms that use the grain's statistics: buffer of the mean, place of the sums.
    pub fn norms(&self) -> impl Iterator<Item = (BufferId, Range<usize>)> + '_ {
        self.stats.iter().enumerate().filter_map(|(i, r)| Some((BufferId(i), r.clone()?)))
    }
}

/// The flat gradient of one grain.
pub struct Gradients<'a> {
    pub(super) layout: &'a Layout,
    /// The elements that were added in the memory of the host.
    pub flat: Vec<f32>,
    /// Which parameters backward has reached.
    pub touched: Vec<bool>,
    /// What has gathered on a GPU and is not in `flat` yet.
    #[cfg(feature = "cuda")]
    pub(super) placed: BTreeMap<ParamId, Placed>,
    /// The same of the sums of batch-norms, by their means.
    #[cfg(feature = "cuda")]
    pub(super) placed_stats: BTreeMap<BufferId, Placed>,
    /// Which runs of `flat` were opened, from where to where.
    pub(super) opened: BTreeMap<usize, usize>,
    /// Who takes what is final while backward goes on.
    pub(super) early: Option<Early<'a>>,
}

impl<'a> Gradients<'a> {
    /// Zeros.
    pub fn new(layout: &'a Layout) -> Self {
        Self { flat: zeros(layout.total_len()), ..Self::unmade(layout) }
    }

    /// The same, whose elements are made when one is first opened: a gradient on a GPU needs none here.
    pub fn unmade(layout: &'a Layout) -> Self {
        Self {
            layout,
            flat: Vec::new(),
            touched: vec![false; layout.slots.len()],
            #[cfg(feature = "cuda")]
            placed: BTreeMap::new(),
            #[cfg(feature = "cuda")]
            placed_stats: BTreeMap::new(),
            opened: BTreeMap::new(),
            early: None,
        }
    }

    /// Where to add the gradient of a parameter; `None` if it is frozen.
    pub fn slot(&mut self, id: ParamId) -> Option<&mut [f32]> {
        let range = self.layout.slot(id)?;
        self.touched[id.0] = true;
        Some(self.open(range))
    }

    /// Where to add the sums of a batch-norm.
    pub fn stats(&mut self, mean: BufferId) -> Option<&mut [f32]> {
        let range = self.layout.stats(mean)?;
        Some(self.open(range))
    }

    fn open(&mut self, range: Range<usize>) -> &mut [f32] {
        if self.flat.is_empty() {
            self.flat = zeros(self.layout.total_len());
        }
        self.opened.insert(range.start, range.end);
        &mut self.flat[range]
    }
}

/// A tensor that an objective trains beside the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    /// Its name, without the part that all of them begin with.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first values.
    pub fill: Fill,
    /// The least and the most that a value of it may be after an update, if there is something.
    pub span: Option<[f32; 2]>,
}

/// First values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// All the same.
    Constant(f32),
    /// Uniform in ± this.
    Uniform(f32),
}

/// What the names of an objective's own tensors begin with.
pub const OWN: &str = "objective.";

/// Creates layers, names their tensors and fills them with their initial values.
pub struct Builder {
    /// What has been created so far.
    pub store: Store,
    rng: Philox,
    eps: f32,
    /// What the network is built for.
    pub(crate) given: Given,
    sites: u32,
    /// How the network's output layer begins: [`Builder::linear`], unless the backbone says otherwise.
    pub(crate) output: fn(&mut Self, &str, (usize, usize)) -> Linear,
    /// Parts of layers whose weights stay.
    pub(super) adapters: Adapters,
    /// Whether layers that are made now may carry one.
    pub(super) adapting: bool,
}

/// What a network is built for, besides its own design.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// Side of the input in pixels.
    pub side: usize,
    /// The shape of a text encoder, where weights have said one.
    pub shape: Option<crate::backbone::Shape>,
    /// What is dropped inside blocks, where the job says it.
    pub dropout: crate::backbone::Inside,
}

impl Builder {
    /// What batch-norms add to a variance where nothing else is said; PyTorch's.
    pub const EPS: f32 = 1e-5;

    /// Initial values are a pure function of seed and name, so ranks need no broadcast.
    pub fn new(seed: u32) -> Self {
        Self {
            store: Store::default(),
            rng: Philox::new(seed, "init"),
            eps: Self::EPS,
            given: Given::default(),
            sites: 0,
            output: Self::linear,
            adapters: Adapters::default(),
            adapting: false,
        }
    }

    /// Batch-norms add this to a variance.
    pub fn with_eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    pub(super) fn param(&mut self, name: String, shape: &[usize], mut init: impl FnMut(&mut Stream) -> f32) -> ParamId {
        let id = Store::add(&mut self.store.params, &mut self.store.values, name, shape);
        let entry = &self.store.params[id];
        let mut stream = self.rng.stream(name_id(&entry.name), 0);
        self.store.values[entry.range.clone()].iter_mut().for_each(|v| *v = init(&mut stream));
        ParamId(id)
    }

    /// A tensor of an objective's own.
    pub fn own(&mut self, own: &Own) -> ParamId {
        self.param(format!("{OWN}{}", own.name), &own.shape, |s| match own.fill {
            Fill::Constant(value) => value,
            Fill::Uniform(bound) => s.range(-bound, bound),
        })
    }

    /// A convolution; weights are Kaiming-normal over the fan out, as torchvision's are, and a bias starts at zero.
    pub fn conv_spec(&mut self, name: &str, spec: ConvSpec) -> Conv2d {
        let std = (2.0 / (spec.cout * spec.kernel.0 * spec.kernel.1) as f32).sqrt();
        self.conv_from(name, spec, |s| s.normal() * std, |_| 0.0)
    }

    /// A convolution with these initial weights and bias.
    fn conv_from(
        &mut self,
        name: &str,
        spec: ConvSpec,
        weight: impl FnMut(&mut Stream) -> f32,
        bias: impl FnMut(&mut Stream) -> f32,
    ) -> Conv2d {
        let (kh, kw) = spec.kernel;
        let w = self.param(format!("{name}.weight"), &[spec.cout, spec.cin, kh, kw], weight);
        let b = spec.bias.then(|| self.param(format!("{name}.bias"), &[spec.cout], bias));
        let adapter = self.conv_adapter(name, (w, b), &spec);
        Conv2d { w, b, spec, adapter }
    }

    /// A square convolution without bias.
    pub fn conv(&mut self, name: &str, (cin, cout): (usize, usize), k: usize, stride: usize, pad: Padding) -> Conv2d {
        self.conv_spec(name, ConvSpec { cin, cout, kernel: (k, k), stride, pad: (pad, pad), bias: false })
    }

    /// A depthwise convolution without bias.
    pub fn depthwise(&mut self, name: &str, c: usize, k: usize, stride: usize, pad: Padding) -> Depthwise {
        let std = (2.0 / (k * k) as f32).sqrt();
        let w = self.param(format!("{name}.weight"), &[c, 1, k, k], |s| s.normal() * std);
        Depthwise { w, c, k, stride, pad }
    }

    /// Batch-norm over channels (or features).
    pub fn norm(&mut self, name: &str, c: usize) -> BatchNorm {
        self.norm_eps(name, c, self.eps)
    }

    /// Batch-norm that adds `eps` to a variance.
    pub fn norm_eps(&mut self, name: &str, c: usize, eps: f32) -> BatchNorm {
        let gamma = self.param(format!("{name}.weight"), &[c], |_| 1.0);
        let beta = self.param(format!("{name}.bias"), &[c], |_| 0.0);
        self.store.marked([gamma, beta]);
        let mut buffer = |what: &str, value: f32| {
            let store = &mut self.store;
            let id = Store::add(&mut store.buffers, &mut store.buffer_values, format!("{name}.{what}"), &[c]);
            store.buffer_values[store.buffers[id].range.clone()].fill(value);
            BufferId(id)
        };
        let (mean, var) = (buffer("running_mean", 0.0), buffer("running_var", 1.0));
        BatchNorm { gamma, beta, mean, var, c, eps, act: Act::None }
    }

    /// A fully connected layer; uniform in ±1/√in, as PyTorch's.
    pub fn linear(&mut self, name: &str, (input, output): (usize, usize)) -> Linear {
        let bound = 1.0 / (input as f32).sqrt();
        let w = self.param(format!("{name}.weight"), &[output, input], |s| s.range(-bound, bound));
        let b = Some(self.param(format!("{name}.bias"), &[output], |s| s.range(-bound, bound)));
        let adapter = self.linear_adapter(name, (w, b), (input, output));
        Linear { w, b, input, output, adapter }
    }

    /// A normalisation of the input by constants, which are buffers; `after` is part of the network.
    pub fn normalize(&mut self, name: &str, mean: &[f32], variance: &[f32], after: &[f32]) -> Normalize {
        let mut constant = |what: &str, values: &[f32]| {
            let store = &mut self.store;
            let name = format!("{name}.{what}");
            let id = Store::add(&mut store.buffers, &mut store.buffer_values, name, &[values.len()]);
            store.buffer_values[store.buffers[id].range.clone()].copy_from_slice(values);
            BufferId(id)
        };
        Normalize { mean: constant("mean", mean), variance: constant("variance", variance), after: after.to_vec() }
    }

    /// Layer normalisation over `c` channels.
    pub fn layer_norm(&mut self, name: &str, c: usize, eps: f32) -> LayerNorm {
        let gamma = self.param(format!("{name}.weight"), &[c], |_| 1.0);
        let beta = self.param(format!("{name}.bias"), &[c], |_| 0.0);
        self.store.marked([gamma, beta]);
        LayerNorm { gamma, beta, c, eps }
    }

    /// Self-attention over `c` channels, by heads and columns of each; names of query, key, value and output.
    pub fn attention(
        &mut self,
        names: [&str; 4],
        c: usize,
        (heads, depth): (usize, usize),
        drop: Mask,
    ) -> SelfAttention {
        let [query, key, value] = [0, 1, 2].map(|i| self.linear(names[i], (c, heads * depth)));
        let out = self.linear(names[3], (heads * depth, c));
        SelfAttention { projections: vec![query, key, value], out, heads, depth, drop }
    }

    /// The same with query, key and value from one layer; its name, and that of the output.
    pub fn attention_fused(
        &mut self,
        names: [&str; 2],
        c: usize,
        (heads, depth): (usize, usize),
        drop: Mask,
    ) -> SelfAttention {
        let projections = vec![self.dense(names[0], (c, 3 * heads * depth))];
        let out = self.dense(names[1], (heads * depth, c));
        SelfAttention { projections, out, heads, depth, drop }
    }

    /// A fully connected layer as vision transformers begin: from N(0, 0.02²), without a bias.
    pub fn dense(&mut self, name: &str, (input, output): (usize, usize)) -> Linear {
        let w = self.param(format!("{name}.weight"), &[output, input], |s| s.normal() * 0.02);
        let b = Some(self.param(format!("{name}.bias"), &[output], |_| 0.0));
        let adapter = self.linear_adapter(name, (w, b), (input, output));
        Linear { w, b, input, output, adapter }
    }

    /// The network's next dropout inside a block.
    pub fn mask(&mut self, p: f32) -> Mask {
        self.sites += 1;
        Mask { p, site: crate::backbone::SITE + self.sites }
    }

    /// Patches of `size` pixels as rows of `c` numbers behind that of the class, for images of `side` pixels. As in timm the
    /// places begin from N(0, 0.02²), the class from next to nothing, and the dense layer as PyTorch's convolutions do:
    /// uniform in ±1/√in, the bias too.
    pub fn patches(&mut self, size: usize, c: usize, side: usize, drop: Mask) -> Patches {
        let grid = side / size;
        let class = self.param("cls_token".into(), &[1, 1, c], |s| s.normal() * 1e-6);
        let position = self.param("pos_embed".into(), &[1, 1 + grid * grid, c], |s| s.normal() * 0.02);
        // What is added to every picture does not decay, as in timm.
        [class, position].iter().for_each(|p| self.store.params[p.0].decays = false);
        let none = Padding::Symmetric(0);
        let spec = ConvSpec { cin: 3, cout: c, kernel: (size, size), stride: size, pad: (none, none), bias: true };
        let bound = 1.0 / ((3 * size * size) as f32).sqrt();
        let conv = self.conv_from("patch_embed.proj", spec, |s| s.range(-bound, bound), |s| s.range(-bound, bound));
        Patches { conv, class, position, grid, drop }
    }

    /// Embeddings of `words` tokens in `c` channels, from N(0, 0.02²) as BERT's; `names` are those of the word, position
    /// and kind tables, empty where there is none, then the rows of the last two; with `eps` a `LayerNorm` follows.
    pub fn embedding(
        &mut self,
        name: &str,
        names: [&str; 3],
        (words, c): (usize, usize),
        (positions, kinds): (usize, usize),
        eps: Option<f32>,
        drop: Mask,
    ) -> Embedding {
        let mut table = |what: &str, rows: usize| {
            let full = format!("{name}.{what}.weight");
            (!what.is_empty()).then(|| self.param(full, &[rows, c], |s| s.normal() * 0.02))
        };
        let word = table(names[0], words);
        let position = table(names[1], positions).map(|p| (p, positions));
        let kind = table(names[2], kinds);
        let word = word.expect("every embedding has words");
        let norm = eps.map(|eps| self.layer_norm(&format!("{name}.LayerNorm"), c, eps));
        Embedding { word, words, c, position, kind, norm, drop }
    }

    /// An LSTM layer; uniform in ±1/√hidden, as PyTorch's.
    pub fn lstm(&mut self, name: &str, input: usize, hidden: usize, last: bool) -> Lstm {
        let bound = 1.0 / (hidden as f32).sqrt();
        let mut table =
            |what: &str, shape: &[usize]| self.param(format!("{name}.{what}_l0"), shape, |s| s.range(-bound, bound));
        let (wi, wh) = (table("weight_ih", &[4 * hidden, input]), table("weight_hh", &[4 * hidden, hidden]));
        let (bi, bh) = (table("bias_ih", &[4 * hidden]), table("bias_hh", &[4 * hidden]));
        Lstm { wi, wh, bi, bh, input, hidden, last }
    }
}
