//! Word embeddings and two LSTM layers, to be trained from scratch, or from embeddings that are kept frozen.

use super::{Backbone, Same, Unit};
use crate::nn::{Builder, Mask};

pub(super) const ENTRY: Backbone = Backbone {
    name: "embedding_lstm",
    doc: "10 000 words of the training samples in 100 dimensions, LSTM 128, LSTM 64; `head.hidden = [32]` makes it the \
          usual example",
    input: 128,
    classifier: "classifier",
    timm: &[],
    activation: "tanh",
    blocks: false,
    build,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let embedding = b.embedding("embeddings", ["word_embeddings", "", ""], (10_000, 100), (0, 0), None, Mask::NONE);
    let units = vec![
        Unit::new("embeddings", embedding),
        Unit::new("lstm1", b.lstm("lstm1", 100, 128, false)),
        Unit::new("lstm2", b.lstm("lstm2", 128, 64, true)),
    ];
    (units, 64)
}
