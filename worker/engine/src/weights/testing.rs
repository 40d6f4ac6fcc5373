//! Files of weights for tests.

use std::path::Path;

use crate::{nn, train::net::Net};

/// Writes the tensors of a network as a bare file, without a contract.
pub fn bare(net: &Net, path: &Path) {
    let store = &net.network.initial;
    let params = store.params.iter().map(|e| (e, &store.values[e.range.clone()]));
    let buffers = store.buffers.iter().map(|e| (e, &store.buffer_values[e.range.clone()]));
    let tensor = |(e, v): (&nn::Entry, &[f32])| (e.name.clone(), nn::tensor(v.to_vec(), &e.shape).unwrap());
    let tensors = params.chain(buffers).map(tensor).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}
