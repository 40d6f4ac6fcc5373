//! What the engine's layers, optimizers and reductions compute, on a GPU: one function each, which checks shapes, makes the
//! arrays that it gives, and starts kernels. What each number is, the layer of the same name in `nn` says; arrays lie as
//! theirs do.
//!
//! **Bits.** What is computed number by number, or in the CPU's order, has the CPU's bits: activations, normalisation by
//! given statistics, layer norm, softmax, pooling by windows, depthwise outputs and input gradients, embeddings, dropout,
//! optimizers, rounding, LSTM gates, sums of the ordered tree. Sums over the rows of a grain (statistics, gradients of biases,
//! of norms and of depthwise weights) and over a whole image have an order of their own, fixed by constants, and agree to the
//! digits that f32 has. Products and convolutions are cuBLAS's and cuDNN's: the same bits each time on one model of GPU, with
//! one version of each.
//!
//! **Precision.** What an operation takes says what it is ([`Element`]): of f32 it is f32; of bf16, which lies in half the memory,
//! it gives bf16, but for what gives f32 of either ([`add_mixed`], [`from_bf16`]) or the type that it is asked for
//! ([`split_heads`]). Products of bf16 are multiplied by tensor cores and summed in f32; what layers of images do to it is
//! computed as for f32, with the bits above. Either rounds what it gives, once; statistics and gradients of parameters are f32
//! of any input. An operation that knows no bf16 is given f32 ([`from_bf16`]). Of f32 whoever asks for it may also let a product be TF32
//! ([`Math`]), which tensor cores read where f32 lies.

mod cast;
mod conv;
mod depthwise;
mod dropout;
mod element;
mod elementwise;
mod embedding;
mod fold;
mod frames;
mod heads;
mod layer_norm;
mod layout;
mod lstm;
mod math;
mod norm;
mod optimizer;
mod patches;
mod pool;
mod product;
mod rows;
mod softmax;
mod towards;

pub use cast::{from_bf16, round_bf16, round_bf16_run, to_bf16, to_bf16_run};
pub use conv::{Convolution, channels_last, channels_last_run, conv, conv_biased, conv_input, conv_weights};
pub use depthwise::{Windowed, depthwise, depthwise_input, depthwise_weights};
pub use dropout::{Dropped, drop_path, dropout, dropout_from};
pub use element::{Element, Taken};
pub use elementwise::{
    activate, activate_back, add_activate, add_bias, add_bias_rounded, add_into, add_mixed, add_run, add_squares,
    begin_bias, divide, gate, gate_back, normalize, scale, scale_channels,
};
pub use embedding::{Groups, embed, embed_back};
pub use fold::fold;
pub use frames::{Spans, frame, pool_rows, pool_rows_back, unframe};
pub use heads::{Heads, join_heads, split_heads};
pub use layer_norm::{Normalised, layer_norm, layer_norm_back};
pub use layout::{
    Columns, add_turned, copy_columns, cut_columns, join_columns, move_image, subsample, subsample_back, take_rows,
    turn, turn_run,
};
pub use lstm::{Step, lstm_back, lstm_step};
pub use math::Math;
pub use norm::{
    Affine, Slopes, deposit, fixed_back, moments, normalise, own_statistics, running_statistics, scale_gradient,
    shift_gradient, slopes, statistics, through,
};
pub use optimizer::{AdamW, Sgd, adamw, sgd, squared_norm};
pub use patches::Patches;
pub use pool::{
    Window, average_pool, average_pool_back, global_mean, global_mean_back, global_products, max_pool, max_pool_back,
};
pub use product::{Matrix, linear, linear_added, linear_biased, linear_input, linear_weights, multiplied, product};
pub use rows::{add_products, add_sums};
pub use softmax::{Softmax, softmax, softmax_back};
pub use towards::{Began, Pull, average, pull};

use crate::nn::Act;

/// The number that `math.cuh` has for an activation.
fn number(act: Act) -> i32 {
    match act {
        Act::None => 0,
        Act::Relu => 1,
        Act::Relu6 => 2,
        Act::Silu => 3,
        Act::Gelu => 4,
        Act::GeluTanh => 5,
        Act::Tanh => 6,
        Act::Sigmoid => 7,
    }
}
