//! What a network is fed in a stage: cached features in front of its first trained unit, or pixels run up to there.

use std::sync::Arc;

use candle_core::Tensor;

use super::{cut::Cut, net::Net, samples::Samples};
use crate::{
    Result,
    cache::Packed,
    data::augment::View,
    gpu::Place,
    modifier::Mix,
    nn::{Packs, Pass, Store, host, tensor},
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
    /// How those are kept.
    pub packed: Packed,
    /// Shape of one sample at the cut; of what is cached of it, if that is not all.
    pub shape: Vec<usize>,
    /// Texts get as much room as the longest that the network takes, so that batches fit together.
    pub whole: bool,
    /// Weights of the units before the cut, where layers compute.
    pub packs: Arc<Packs>,
}

impl<'a> Inputs<'a> {
    /// Samples as they are, in front of the first unit; `shape` is that of one.
    pub fn raw(net: &'a Net, samples: &'a Samples, shape: Vec<usize>) -> Self {
        let (packed, packs) = (Packed::default(), Arc::default());
        Self { net, samples, cut: 0, features: None, packed, shape, whole: false, packs }
    }

    /// The same, which shares its weights with others: inputs of the same network, of which no unit before either's cut is
    /// trained meanwhile.
    pub fn beside(self, other: &Inputs<'_>) -> Self {
        Self { packs: other.packs.clone(), ..self }
    }

    /// The same, of which is cached what is kept at a cut.
    ///
    /// # Errors
    /// See [`Cut::shape`].
    pub fn kept(self, cut: &Cut) -> Result<Self> {
        Ok(Self { packed: cut.packed, shape: cut.shape(self.shape)?, ..self })
    }

    /// The batch in front of the cut: `[n, …]`, each sample in the view of its turn. Mixing happens on pixels, so it rules cached features out.
    ///
    /// # Errors
    /// A sample that cannot be read.
    pub fn batch(&self, store: &Store, indices: &[usize], turns: &[u64], mix: Option<&Mix>) -> Result<Tensor> {
        let shape: Vec<usize> = std::iter::once(indices.len()).chain(self.shape.iter().copied()).collect();
        if let (Some(features), Some(views), None) = (self.features, self.samples.views(), mix) {
            let width: usize = self.shape.iter().product();
            let mut rows = Vec::with_capacity(indices.len() * width);
            for (i, turn) in indices.iter().zip(turns) {
                let record = &features[i * views + (turn % views as u64) as usize];
                self.packed.unpack(record, width, &mut rows)?;
            }
            return tensor(rows, &shape);
        }
        let contract = &self.net.contract;
        let views = self.views(indices, turns);
        let batch = match mix {
            Some(mix) => {
                let pixels = mix.pictures(&host(&self.samples.inputs(&views, contract)?)?, contract.side());
                crate::data::pixels::batch(pixels, indices.len(), contract.side())?
            }
            None => self.samples.batch(&views, contract, self.whole)?,
        };
        self.net.forward(&Pass::again(store, &self.packs), batch, 0, self.cut)
    }

    /// Has the pixels of batches prepared that come next, samples and turns, while this rank computes.
    pub fn expect(&self, batches: &[(Vec<usize>, Vec<u64>)], mixes: bool) {
        if mixes || self.features.is_none() || self.samples.views().is_none() {
            let views = batches.iter().map(|(indices, turns)| self.views(indices, turns)).collect();
            // What is mixed, or joined to other samples, goes up when that is done.
            let alone = !mixes && !self.whole;
            let place = if alone { self.net.network.initial.place.clone() } else { Place::Host };
            self.samples.expect(views, &self.net.contract, &place);
        }
    }

    fn views(&self, indices: &[usize], turns: &[u64]) -> Vec<(usize, View)> {
        indices.iter().zip(turns).map(|(i, turn)| (*i, self.samples.view(*i, *turn))).collect()
    }
}
