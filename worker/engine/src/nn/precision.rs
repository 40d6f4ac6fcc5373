//! Mixed precision: the one place that decides what products round. A layer asks its [`Pass`] for weights and operands,
//! and hands back what a product gives; a layer that reads a matrix past it fails the gradient check that every layer has.
//!
//! With `bf16`, as with PyTorch's `autocast`:
//! - what a product takes (weights and biases, inputs, gradients of outputs) is rounded to bf16 and summed in f32;
//! - what it gives (outputs, gradients of inputs) is rounded, once, with its bias;
//! - parameters, norms, softmax, losses, the optimizer and averages are f32.
//!
//! Unlike there, f32 is also what else is no product: gradients of parameters, outputs of norms, sums of residuals, the
//! state of an LSTM, and tensors that objectives train beside the network.
//!
//! Losses are not scaled: bf16 has the exponents of f32, and a factor that is a power of two would change no digit of what is
//! rounded.
//!
//! On a CPU this is for the values, not for speed: numbers stay in f32 memory. On a GPU what products take lies in memory of
//! bf16 (`gpu::Operand`), and what they give in f32 again.

use std::borrow::Cow;

use rayon::prelude::*;
use tl_proto::spec::Precision;

use super::{ParamId, Pass};
use crate::num::bf16;

/// Numbers of one task; no part of the result.
const TASK: usize = 1 << 14;

/// What a precision does to the numbers of a product; nothing in f32, where nothing is copied either.
pub(super) trait Rounds {
    /// What a product takes.
    fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]>;

    /// What a product gives, in place.
    fn round(self, values: &mut [f32]);

    /// The same on this thread alone, for tasks that hold much memory: a thread that waits for others would take up
    /// another task meanwhile, and hold its memory too.
    fn round_here(self, values: &mut [f32]);

    /// The same of new memory.
    fn product(self, values: Vec<f32>) -> Vec<f32>;
}

impl Rounds for Precision {
    fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]> {
        match self {
            Self::F32 => Cow::Borrowed(values),
            Self::Bf16 => Cow::Owned(self.product(values.to_vec())),
        }
    }

    fn round(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::Bf16 if values.len() <= TASK => bf16::round(values),
            Self::Bf16 => values.par_chunks_mut(TASK).for_each(bf16::round),
        }
    }

    fn round_here(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::Bf16 => bf16::round(values),
        }
    }

    fn product(self, mut values: Vec<f32>) -> Vec<f32> {
        self.round(&mut values);
        values
    }
}

impl<'a> Pass<'a> {
    /// What products compute with.
    pub(super) fn precision(&self) -> Precision {
        self.store.precision
    }

    /// A weight or a bias of a product, as it takes it.
    pub(super) fn weight(&self, id: ParamId) -> Cow<'a, [f32]> {
        self.precision().operand(self.store.param(id))
    }
}

#[cfg(test)]
mod tests;
