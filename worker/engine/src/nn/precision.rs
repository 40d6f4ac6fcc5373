//! Mixed precision: the one place that decides what is rounded. A layer asks its [`Pass`] for weights and operands, and hands
//! back what a product gives; a layer that reads a matrix past it fails the gradient check that every layer has.
//!
//! With `bf16`, as with PyTorch's `autocast`:
//! - what a product takes (weights and biases, inputs, gradients of outputs) is rounded to bf16 and summed in f32;
//! - what it gives (outputs, gradients of inputs) is rounded, once, with its bias;
//! - what layers of images make of that is rounded too, outputs and gradients of inputs alike: batch-norms, activations (in
//!   any network), the sum of a residual block and that of the two gradients that meet in front of it, pools, gates (means,
//!   products, and the slopes of both) and stochastic depth. They compute in f32, or add up in f64, and round once;
//! - what only moves numbers (borders, joins and parts of channels, every second pixel) rounds nothing;
//! - layer norms, softmax, residual sums of transformers, embeddings, means of rows, losses, the optimizer and averages are f32,
//!   and so are parameters and statistics.
//!
//! Unlike there
//! - the kind of a layer decides, and not the type of what it is given: a batch-norm rounds what it makes of f32 too;
//! - a batch-norm is rounded once with the activation after it;
//! - f32 are also gradients of parameters, dropout, constant factors and those of IA3, the sum of a layer and what LoRA or a
//!   bottleneck adds to it, sums of branches in a graph of layers, sums of gradients wherever a value is read more than once (but
//!   for that in front of a residual block), the state of an LSTM, and tensors that objectives train beside the network.
//!
//! With `tf32`, as with PyTorch where `allow_tf32` is set, of matrices and of convolutions alike:
//! - what a product takes (weights, inputs, gradients of outputs) is rounded to TF32 and summed in f32;
//! - what it gives is f32;
//! - what is no product of matrices, nor a convolution that is made of such, is f32 throughout: biases and their gradients, and
//!   depthwise convolutions, for which PyTorch has a kernel of its own that does not know TF32.
//!
//! Losses are not scaled: bf16 and TF32 have the exponents of f32, and a factor that is a power of two would change no digit of
//! what is rounded.
//!
//! On a CPU either is for the values, not for speed: numbers stay in f32 memory. On a GPU what is rounded to bf16 lies in memory
//! of bf16, whether a product takes it (`gpu::Operand`) or a layer hands it on (`gpu::Mixed`), and a layer that does not know
//! bf16 takes a copy of it in f32; for TF32 nothing is made there, since tensor cores read f32. They round as they are built to,
//! and cuBLAS and cuDNN may see no use in them: `tf32` allows it, as PyTorch's does.

use std::borrow::Cow;

use rayon::prelude::*;
use tl_proto::spec::Precision;

use super::{ParamId, Pass, Store};
use crate::num::{bf16, tf32};

/// Numbers of one task; no part of the result.
const TASK: usize = 1 << 14;

/// Rounds numbers in place, on this thread.
type Round = fn(&mut [f32]);

/// What a product takes is rounded by the first, what it gives by the second.
fn rounds(precision: Precision) -> [Option<Round>; 2] {
    match precision {
        Precision::F32 => [None, None],
        Precision::Tf32 => [Some(tf32::round), None],
        Precision::Bf16 => [Some(bf16::round), Some(bf16::round)],
    }
}

/// On as many threads as there are.
fn shared(round: Option<Round>, values: &mut [f32]) {
    match round {
        None => {}
        Some(round) if values.len() <= TASK => round(values),
        Some(round) => values.par_chunks_mut(TASK).for_each(round),
    }
}

/// On this thread alone, for tasks that hold much memory: a thread that waits for others would take up another task meanwhile,
/// and hold its memory too.
fn alone(round: Option<Round>, values: &mut [f32]) {
    if let Some(round) = round {
        round(values);
    }
}

/// What a precision does to the numbers of products and of layers of images; nothing in f32, where nothing is copied either.
pub(super) trait Rounds: Sized {
    /// What a product takes.
    fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]>;

    /// The same in place.
    fn take(self, values: &mut [f32]);

    /// The same on this thread alone.
    fn take_here(self, values: &mut [f32]);

    /// What a product gives, or a layer of images hands on, in place.
    fn round(self, values: &mut [f32]);

    /// The same on this thread alone.
    fn round_here(self, values: &mut [f32]);

    /// The same of new memory.
    fn product(self, values: Vec<f32>) -> Vec<f32>;

    /// What layers compute with outside of products of matrices: biases that are added, and depthwise convolutions.
    fn outside(self) -> Self;

    /// Of slopes, and of what products take of them, those whose sum is the gradient of a bias.
    fn summed<'a>(self, slopes: &'a [f32], taken: &'a [f32]) -> &'a [f32];
}

impl Rounds for Precision {
    fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]> {
        if self.is_f32() {
            return Cow::Borrowed(values);
        }
        let mut own = values.to_vec();
        self.take(&mut own);
        Cow::Owned(own)
    }

    fn take(self, values: &mut [f32]) {
        shared(rounds(self)[0], values);
    }

    fn take_here(self, values: &mut [f32]) {
        alone(rounds(self)[0], values);
    }

    fn round(self, values: &mut [f32]) {
        shared(rounds(self)[1], values);
    }

    fn round_here(self, values: &mut [f32]) {
        alone(rounds(self)[1], values);
    }

    fn product(self, mut values: Vec<f32>) -> Vec<f32> {
        self.round(&mut values);
        values
    }

    fn outside(self) -> Self {
        match self {
            Self::F32 | Self::Tf32 => Self::F32,
            Self::Bf16 => Self::Bf16,
        }
    }

    fn summed<'a>(self, slopes: &'a [f32], taken: &'a [f32]) -> &'a [f32] {
        if self.outside().is_f32() { slopes } else { taken }
    }
}

impl Store {
    /// The number of what is made of the same bytes, in the key of cached features: it goes up for all precisions where samples
    /// are preprocessed otherwise than they were, and for one in which layers round elsewhere.
    pub(crate) fn rounding(&self) -> u32 {
        match self.precision {
            Precision::F32 | Precision::Tf32 => 5,
            Precision::Bf16 => 6,
        }
    }
}

impl<'a> Pass<'a> {
    /// What products compute with.
    pub(super) fn precision(&self) -> Precision {
        self.store.precision
    }

    /// A weight of a product, as it takes it.
    pub(super) fn weight(&self, id: ParamId) -> Cow<'a, [f32]> {
        self.precision().operand(self.store.param(id))
    }

    /// A bias of a product, or a weight of a depthwise convolution, as it is taken.
    pub(super) fn outside(&self, id: ParamId) -> Cow<'a, [f32]> {
        self.precision().outside().operand(self.store.param(id))
    }
}

#[cfg(test)]
mod images;
#[cfg(test)]
mod tests;
