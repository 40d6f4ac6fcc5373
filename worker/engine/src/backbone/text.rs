//! What text encoders have in common: their shape, and the blocks of BERT's family (Devlin et al., 2018).

use serde::{Deserialize, Serialize};

use super::Unit;
use crate::nn::{Act, Activation, Builder, EncoderBlock};

/// The size of an encoder, as `config.json` beside its weights says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Blocks.
    pub layers: usize,
    /// Width of a row.
    pub hidden: usize,
    /// Heads of its attention.
    pub heads: usize,
    /// Width between the two dense layers of a block.
    pub wide: usize,
    /// Tokens that it knows.
    pub words: usize,
    /// Tokens of its longest text.
    pub positions: usize,
    /// What layer normalisation adds to a variance.
    pub eps: f32,
}

/// BERT's base shape.
pub(super) const BASE: Shape =
    Shape { layers: 12, hidden: 768, heads: 12, wide: 3072, words: 30_522, positions: 512, eps: 1e-12 };

/// Names of the tensors of one block, after the block's own.
pub(super) struct Names {
    /// Blocks are called this and a number.
    pub block: &'static str,
    /// Query, key, value, output.
    pub attention: [&'static str; 4],
    /// After the attention.
    pub middle: &'static str,
    /// The two dense layers.
    pub dense: [&'static str; 2],
    /// At the end.
    pub last: &'static str,
    /// The embedding's tables: word, position, kind.
    pub tables: [&'static str; 3],
}

/// Hugging Face's names of BERT.
pub(super) const BERT: Names = Names {
    block: "encoder.layer",
    attention: ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    middle: "attention.output.LayerNorm",
    dense: ["intermediate.dense", "output.dense"],
    last: "output.LayerNorm",
    tables: ["word_embeddings", "position_embeddings", "token_type_embeddings"],
};

/// One block; heads have `depth` columns each.
pub(super) fn block(b: &mut Builder, name: &str, names: &Names, shape: &Shape, depth: usize, act: Act) -> EncoderBlock {
    let full = |part: &str| format!("{name}.{part}");
    let [query, key, value, out] = names.attention.map(full);
    let (c, wide, eps) = (shape.hidden, shape.wide, shape.eps);
    EncoderBlock {
        attention: b.attention([&query, &key, &value, &out], c, shape.heads, depth),
        middle: b.layer_norm(&full(names.middle), c, eps),
        up: b.linear(&full(names.dense[0]), (c, wide)),
        act: Activation(act),
        down: b.linear(&full(names.dense[1]), (wide, c)),
        last: b.layer_norm(&full(names.last), c, eps),
    }
}

/// Embedding and blocks, a unit each, in the builder's shape where weights have said one.
pub(super) fn encoder(b: &mut Builder, names: &Names, usual: Shape) -> (Vec<Unit>, Shape) {
    let shape = b.shape.clone().unwrap_or(usual);
    let size = (shape.words, shape.hidden);
    let embedding = b.embedding("embeddings", names.tables, size, shape.positions, Some(shape.eps));
    let mut units = vec![Unit::new("embeddings", embedding)];
    for i in 0..shape.layers {
        let name = format!("{}.{i}", names.block);
        let layer = block(b, &name, names, &shape, shape.hidden / shape.heads, Act::Gelu);
        units.push(Unit::new(name, layer));
    }
    (units, shape)
}
