//! Optimizers over flat memory. A new one is a file here and a line in [`ALL`].

mod adamw;
#[cfg(feature = "cuda")]
mod resident;
pub mod schedule;
mod sgd;

use std::{collections::BTreeMap, ops::Range};

use tl_proto::{
    catalog::{Entry, entry},
    spec::OptimizerSection,
};

#[cfg(feature = "cuda")]
pub use self::resident::{Lying, Resident, clip_placed};
#[cfg(feature = "cuda")]
use crate::gpu;
use crate::nn::{Layout, ParamId, Store};

/// One run of parameters with settings of its own.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where its values and moments lie.
    pub values: Range<usize>,
    /// Where its gradient lies.
    pub gradient: Range<usize>,
    /// Times the learning rate.
    pub lr_scale: f64,
    /// Whether weight decay applies: matrices and kernels only.
    pub decays: bool,
}

/// One group for each parameter that a layout trains, in its order, with a part of the learning rate for each.
pub fn groups(store: &Store, layout: &Layout, scales: &[f64]) -> Vec<Group> {
    let group = |((id, gradient), lr_scale): ((ParamId, Range<usize>), &f64)| {
        let entry = &store.params[id.0];
        Group { values: entry.range.clone(), gradient, lr_scale: *lr_scale, decays: entry.decays }
    };
    layout.trained().zip(scales).map(group).collect()
}

/// Everything an optimizer remembers; one value per parameter of the whole network, trained now or not.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// First moment, or momentum.
    pub first: Vec<f32>,
    /// Second moment; empty where there is none.
    pub second: Vec<f32>,
    /// For each run of parameters that was ever updated, by where it begins: running products of the betas over its
    /// own updates, in f64. (`powi` would not give the same bits everywhere.) What is unfrozen late starts anew, as a
    /// parameter of PyTorch's does.
    pub products: BTreeMap<usize, [f64; 2]>,
    /// How often each run was updated.
    pub updates: BTreeMap<usize, u64>,
}

/// What schedules say of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub lr: f64,
    /// In place of the optimizer's momentum, or AdamW's beta1.
    pub momentum: Option<f64>,
}

impl From<f64> for Rate {
    fn from(lr: f64) -> Self {
        Self { lr, momentum: None }
    }
}

/// An update of the values by their mean gradient, at a rate.
type StepFn = fn(&OptimizerSection, &mut Moments, values: &mut [f32], mean: &[f32], &[Group], Rate);

/// The same on a GPU.
#[cfg(feature = "cuda")]
type PlacedFn = fn(&OptimizerSection, &mut Moments, Lying<'_>, &[Group], Rate) -> Result<(), gpu::Fault>;

/// One optimizer.
pub struct Optimizer {
    /// Name in the job file.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Fresh moments for `n` parameters.
    pub init: fn(n: usize) -> Moments,
    /// One update.
    pub step: StepFn,
    /// The same, to the bit, where everything lies on a GPU at the places of the gradient.
    #[cfg(feature = "cuda")]
    pub placed: PlacedFn,
}

/// Every optimizer.
pub const ALL: &[Optimizer] = &[adamw::ENTRY, sgd::ENTRY];

/// The optimizer of a name that the check has let through; the first one otherwise.
pub fn find(name: &str) -> &'static Optimizer {
    ALL.iter().find(|o| o.name == name).unwrap_or(&ALL[0])
}

/// base^n by squaring, in multiplications only: the same bits everywhere.
fn power(base: f64, n: u64) -> f64 {
    let (mut result, mut square, mut left) = (1.0, base, n);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}

/// Scales a gradient to at most `limit`; returns the norm it had.
pub fn clip(mean: &mut [f32], limit: Option<f64>) -> f64 {
    let norm = libm::sqrt(crate::num::squared_norm(mean));
    if let Some(factor) = shrinks(norm, limit) {
        crate::num::scale(mean, factor);
    }
    norm
}

/// By what a gradient of that norm is scaled, if it is longer than the limit.
fn shrinks(norm: f64, limit: Option<f64>) -> Option<f32> {
    limit.filter(|l| norm > *l).map(|l| (l / norm) as f32)
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(|o| entry(o.name, o.doc)).collect()
}
