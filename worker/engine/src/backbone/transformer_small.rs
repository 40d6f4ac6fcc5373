//! A small classifier in BERT's style, to be trained from scratch: two blocks of eight heads, the mean of all rows.

use super::{
    Backbone, Same, Unit,
    text::{BASE, BERT, DenseAct, Names, Shape, block},
};
use crate::nn::{Builder, Mask, Pool};

pub(super) const ENTRY: Backbone = Backbone {
    name: "transformer_small",
    doc: "a small transformer for text, 2 layers, 128 features, 30 000 words of the training samples; `head.hidden = \
          [32]`, `dropout = 0.1` make it the usual example",
    input: 128,
    classifier: "classifier",
    timm: &[],
    activation: "relu",
    blocks: true,
    build,
};

/// Longest text, in words.
const POSITIONS: usize = 512;

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let names = Names { tables: ["word_embeddings", "position_embeddings", ""], ..BERT };
    let shape = Shape { layers: 2, hidden: 128, heads: 8, wide: 512, words: 30_000, positions: POSITIONS, ..BASE };
    let shape = Shape { eps: 1e-6, act: DenseAct::Relu, ..shape };
    let size = (shape.words, shape.hidden);
    let embedding = b.embedding("embeddings", names.tables, size, (POSITIONS, 0), None, Mask::NONE);
    let mut units = vec![Unit::new("embeddings", embedding)];
    for i in 0..shape.layers {
        let name = format!("{}.{i}", names.block);
        // Heads are as wide as a row, as those of Keras' `MultiHeadAttention(num_heads, key_dim = embed_dim)`.
        let layer = block(b, &name, &names, &shape, shape.hidden);
        units.push(Unit::new(name, layer));
    }
    units.push(Unit::new("pool", Pool::Mean));
    (units, shape.hidden)
}
