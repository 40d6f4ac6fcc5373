//! CLIP (Radford et al., 2021): the mean of two cross-entropies, of each sample with its other half among all others of
//! the batch, and the other way round. Similarities are cosines times a learned scale between 1 and 100.

use tl_proto::catalog::{Entry, entry, number};

use super::{super::log_softmax, Method, diagonal, scale, there, within_reach};

fn describe() -> Entry {
    Entry {
        params: vec![number("init_temperature", 0.07, 0.01, 1.0, "what cosines are divided by before it is learned")],
        ..entry("clip", "each finds its other half among all others of the batch, both ways")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    own: |params| vec![scale(1.0 / describe().number(params, "init_temperature"))],
    loss: |batch, similarities| {
        let [samples, halves] = there(batch, similarities.dim(0)?)?;
        let rows = diagonal(batch, &log_softmax(&within_reach(similarities, &halves)?)?)?;
        let turned = similarities.t()?.contiguous()?;
        let columns = diagonal(batch, &log_softmax(&within_reach(&turned, &samples)?)?)?;
        Ok(((rows + columns)? * -0.5)?)
    },
};
