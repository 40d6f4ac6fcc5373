//! What a network is fed in a stage: cached features in front of its first trained unit, or pixels run up to there.

use candle_core::Tensor;

use super::{net::Net, samples::Samples};
use crate::{
    Result,
    data::augment::View,
    modifier::Mix,
    nn::{Store, host, tensor},
};

/// The inputs of one network in one stage.
pub struct Inputs<'a> {
    /// The network.
    pub net: &'a Net,
    /// The data.
    pub samples: &'a Samples,
    /// Units before this one are frozen.
    pub cut: usize,
    /// Features of `(sample, view)` at `sample · views + view`, if they are cached.
    pub features: Option<&'a [Vec<f32>]>,
    /// Shape of one sample at the cut.
    pub shape: Vec<usize>,
}

impl Inputs<'_> {
    /// The batch in front of the cut: `[n, …]`, each sample in the view of its turn. Mixing happens on pixels, so it rules cached features out.
    ///
    /// # Errors
    /// A sample that cannot be read.
    pub fn batch(&self, store: &Store, indices: &[usize], turns: &[u64], mix: Option<&Mix>) -> Result<Tensor> {
        let shape: Vec<usize> = std::iter::once(indices.len()).chain(self.shape.iter().copied()).collect();
        if let (Some(features), Some(views), None) = (self.features, self.samples.views(), mix) {
            let at = |(i, turn): (&usize, &u64)| &features[i * views + (turn % views as u64) as usize];
            let rows = indices.iter().zip(turns).flat_map(at).copied().collect();
            return tensor(rows, &shape);
        }
        let contract = &self.net.contract;
        let views = self.views(indices, turns);
        let batch = match mix {
            Some(mix) => {
                let pixels = mix.pictures(&self.samples.inputs(&views, contract)?, contract.side());
                crate::data::pixels::batch(pixels, indices.len(), contract.side())?
            }
            None => self.samples.batch(&views, contract, false)?,
        };
        self.net.forward(store, batch, 0, self.cut)
    }

    /// Two batches in front of the cut as one; where texts are of different lengths, the shorter get more room.
    ///
    /// # Errors
    /// Batches of other shapes.
    pub fn together(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if self.net.contract.text.is_none() || self.cut > 0 || a.dims()[1..] == b.dims()[1..] {
            return Ok(Tensor::cat(&[a, b], 0)?.contiguous()?);
        }
        let room = a.dim(1)?.max(b.dim(1)?);
        let mut ids = Vec::with_capacity(room * (a.dim(0)? + b.dim(0)?));
        for t in [a, b] {
            let width = t.dim(1)?;
            for row in host(t)?.chunks_exact(width) {
                ids.extend(row);
                ids.extend(std::iter::repeat_n(-1.0, room - width));
            }
        }
        tensor(ids, &[a.dim(0)? + b.dim(0)?, room])
    }

    /// Has the pixels of batches prepared that come next, samples and turns, while this rank computes.
    pub fn expect(&self, batches: &[(Vec<usize>, Vec<u64>)], mixes: bool) {
        if mixes || self.features.is_none() || self.samples.views().is_none() {
            let views = batches.iter().map(|(indices, turns)| self.views(indices, turns)).collect();
            self.samples.expect(views, &self.net.contract);
        }
    }

    fn views(&self, indices: &[usize], turns: &[u64]) -> Vec<(usize, View)> {
        indices.iter().zip(turns).map(|(i, turn)| (*i, self.samples.view(*i, *turn))).collect()
    }
}
