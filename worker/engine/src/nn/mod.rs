//! Layers that are explicit about what they save and where their gradients go.
//!
//! `forward` pushes what backward needs on a [`Tape`]; `backward` pops it, adds parameter gradients to the flat
//! [`Gradients`] and hands back the gradient of its input only if somebody wants it. candle's autograd works above the
//! last layer only, for losses.

mod act;
mod adapter;
mod array;
mod attention;
mod average;
mod border;
mod container;
mod conv;
mod depthwise;
mod drop_path;
mod dropout;
mod each_row;
mod early;
mod embedding;
mod encoder;
mod flat;
mod gate;
mod grains;
mod graph;
mod lanes;
mod layer_norm;
mod linear;
mod lstm;
mod mask;
mod norm;
mod packs;
mod patches;
mod pixelwise;
#[cfg(feature = "cuda")]
mod placed;
mod pool;
mod precision;
mod rows;
mod sequence;
mod store;
mod sum;
#[cfg(test)]
pub(crate) mod testing;

use std::ops::Deref;
#[cfg(feature = "cuda")]
use std::sync::Arc;

use candle_core::{Device, Storage, Tensor};

pub use act::{Act, Activation, Relu};
pub use adapter::{Adapters, AddNorm, Kind, Part, Place, Plan, Site, Target};
pub use array::{Array, OnHost, array};
pub use attention::SelfAttention;
pub use average::AvgPool;
pub use border::Border;
pub use container::{Residual, Sequential, Shortcut};
pub use conv::{Conv2d, ConvSpec, Padding};
pub use depthwise::Depthwise;
pub use drop_path::DropPath;
pub use dropout::Dropout;
pub use each_row::EachRow;
use early::Early;
pub use early::Taker;
pub use embedding::Embedding;
pub use encoder::{EncoderBlock, Order};
pub use flat::Flat;
pub use gate::Gate;
pub use grains::{Grains, Join};
pub use graph::{Graph, Value};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use lstm::Lstm;
pub use mask::Mask;
pub use norm::{BatchNorm, update_running};
pub use packs::Packs;
use packs::Way;
pub use patches::Patches;
pub use pixelwise::{FlattenChannels, Normalize, Scale};
pub use pool::{GlobalAvgPool, MaxPool};
pub use sequence::{DRAW_BITS, Pool, Ragged};
pub(crate) use store::Given;
pub use store::{BufferId, Builder, Entry, Fill, Gradients, Layout, OWN, Own, ParamId, Store};

#[cfg(feature = "cuda")]
use crate::gpu;
use crate::{Error, Result, num::rng::Philox};

/// What a pass over a network may read.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Parameters and buffers.
    pub store: &'a Store,
    /// What is trained and which batch-norms use the grain's statistics; `None` evaluates.
    pub layout: Option<&'a Layout>,
    /// Randomness of dropout; `None` drops nothing.
    pub dropout: Option<DropoutDraw<'a>>,
    /// The other grains of the step, if batch-norms in training take the statistics of them all.
    pub grains: Option<&'a dyn Grains>,
    /// Weights of the store, packed or sent to a GPU, that earlier passes have left; `None` makes what it needs and leaves
    /// nothing.
    pub packs: Option<&'a Packs>,
}

impl<'a> Pass<'a> {
    /// A pass that only evaluates.
    pub fn eval(store: &'a Store) -> Self {
        Self { store, layout: None, dropout: None, grains: None, packs: None }
    }

    /// The same, which leaves what it sends to a GPU to the next one: of the same values.
    pub fn again(store: &'a Store, packs: &'a Packs) -> Self {
        Self { packs: Some(packs), ..Self::eval(store) }
    }

    /// The same with other draws, where there are any.
    fn with_draws<'b>(&'b self, draws: &'b [u64]) -> Pass<'b> {
        Pass { dropout: self.dropout.map(|d| DropoutDraw { draws, ..d }), ..*self }
    }

    fn records(&self) -> bool {
        self.layout.is_some()
    }

    fn trains(&self, id: ParamId) -> bool {
        self.layout.is_some_and(|l| l.slot(id).is_some())
    }
}

/// Names the random numbers of dropout: one id per sample of the grain.
#[derive(Clone, Copy)]
pub struct DropoutDraw<'a> {
    /// The family.
    pub rng: Philox,
    /// `epoch · N + position` of each sample, so that neither batch size nor ranks change a mask.
    pub draws: &'a [u64],
}

/// What one layer keeps for its backward.
#[derive(Clone)]
pub enum Saved {
    /// What went in or came out.
    Array(Array),
    /// Numbers.
    Values(Vec<f32>),
    /// Indices.
    Indices(Vec<u32>),
    /// Indices that lie on a GPU.
    #[cfg(feature = "cuda")]
    PlacedIndices(Arc<gpu::Array<u32>>),
    /// What a product has taken there of an input, and the shape of the input.
    #[cfg(feature = "cuda")]
    Operand(gpu::Operand, Vec<usize>),
    /// The shape of an input.
    Shape(Vec<usize>),
}

/// What the layers of one grain have kept, last in first out.
#[derive(Clone, Default)]
pub struct Tape(Vec<Saved>);

impl Tape {
    fn push(&mut self, saved: Saved) {
        self.0.push(saved);
    }

    /// Takes what the layer above has kept, if it is of the kind that this layer keeps.
    fn take<T>(&mut self, pick: impl FnOnce(Saved) -> Option<T>) -> Result<T> {
        let saved = self.0.pop().ok_or_else(|| Error::Internal("backward without a forward".into()))?;
        pick(saved).ok_or_else(|| Error::Internal("the tape holds something else".into()))
    }

    fn pop_array(&mut self) -> Result<Array> {
        self.take(|s| if let Saved::Array(a) = s { Some(a) } else { None })
    }

    fn pop_values(&mut self) -> Result<Vec<f32>> {
        self.take(|s| if let Saved::Values(v) = s { Some(v) } else { None })
    }

    fn pop_shape(&mut self) -> Result<Vec<usize>> {
        self.take(|s| if let Saved::Shape(s) = s { Some(s) } else { None })
    }

    /// Keeps an input: all of it if the weights learn from it, else its shape.
    fn push_input(&mut self, x: &Array, pass: &Pass<'_>, weights: ParamId) {
        if pass.records() {
            self.push(if pass.trains(weights) { Saved::Array(x.clone()) } else { Saved::Shape(x.dims().to_vec()) });
        }
    }

    /// The shape of an input, and the input itself if it was kept.
    fn pop_input(&mut self) -> Result<(Vec<usize>, Option<Array>)> {
        self.take(|s| match s {
            Saved::Array(x) => Some((x.dims().to_vec(), Some(x))),
            Saved::Shape(shape) => Some((shape, None)),
            _ => None,
        })
    }
}

/// One layer, or a container of layers.
pub trait Layer: Send + Sync {
    /// `x`: images `[n, h, w, c]`, features `[n, c]`, or tokens `[n, t, c]`; f32, or on a GPU also bf16.
    ///
    /// # Errors
    /// A shape that does not fit.
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array>;

    /// The gradient of the input, if `need_dx`; gradients of trained parameters are *added* to `grads`.
    ///
    /// # Errors
    /// A tape that was not written by this layer's forward.
    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>>;

    /// How many layers a person would count.
    fn leaves(&self) -> usize {
        1
    }

    /// Kind and hyper-parameters, for the key of cached features: equal text and equal weights mean equal outputs.
    fn describe(&self, out: &mut String);

    /// Parameters of this layer, in order.
    fn params(&self, _out: &mut Vec<ParamId>) {}

    /// Running statistics of this layer (mean, variance), in order.
    fn norms(&self, _out: &mut Vec<(BufferId, BufferId)>) {}
}

/// The elements of a contiguous tensor or array of the host's.
///
/// # Errors
/// Something else; numbers of a GPU.
pub fn host<T: OnHost>(t: &T) -> Result<impl Deref<Target = [f32]> + '_> {
    struct Host<G> {
        guard: G,
        start: usize,
        len: usize,
    }
    impl<G: Deref<Target = Storage>> Deref for Host<G> {
        type Target = [f32];
        fn deref(&self) -> &[f32] {
            match &*self.guard {
                Storage::Cpu(candle_core::CpuStorage::F32(v)) => &v[self.start..self.start + self.len],
                _ => unreachable!("checked below"),
            }
        }
    }
    let (guard, layout) = t.on_host()?.storage_and_layout();
    if !matches!(&*guard, Storage::Cpu(candle_core::CpuStorage::F32(_))) || !layout.is_contiguous() {
        return Err(Error::Internal("a layer was given something else than contiguous f32 on the CPU".into()));
    }
    let (start, len) = (layout.start_offset(), layout.shape().elem_count());
    Ok(Host { guard, start, len })
}

/// A tensor that owns `data`.
pub fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}
