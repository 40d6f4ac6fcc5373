//! What a network computes with.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the products of a network compute with: convolutions, dense layers, attention, LSTM, adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// As PyTorch with `torch.backends.cuda.matmul.allow_tf32` and `torch.backends.cudnn.allow_tf32`: operands of products of
    /// matrices and of convolutions, forward and backward, are rounded to TF32, which has the exponents of f32 and ten bits
    /// of its fraction; sums and results are f32. Biases, depthwise convolutions and everything else are f32.
    Tf32,
    /// Mixed, as PyTorch's `autocast` with `bfloat16`: operands and outputs of products, and gradients of their inputs, are
    /// rounded to bf16; sums are f32. Norms, softmax, losses, the optimizer and averages are f32, and updates go to f32
    /// parameters. bf16 has the range of f32: losses are not scaled. Unlike there, gradients of parameters, outputs of
    /// norms, sums of residuals, the state of an LSTM and tensors that objectives train beside the network stay f32.
    Bf16,
}

impl Precision {
    /// Whether nothing is rounded.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}
