//! What text encoders have in common: their shape, and the blocks of BERT's family (Devlin et al., 2018).

use serde::{Deserialize, Serialize};

use super::Unit;
use crate::nn::{Act, Activation, Builder, EncoderBlock, Order, Place};

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
    /// Kinds of tokens that it has rows for; a text here has the first alone.
    #[serde(default = "usual_kinds")]
    pub kinds: usize,
    /// What layer normalisation adds to a variance.
    pub eps: f32,
    /// Between the two dense layers of a block.
    #[serde(default)]
    pub act: DenseAct,
    /// Probability to drop a number of a row when the encoder is trained, where the job says nothing else.
    #[serde(default)]
    pub dropout: f32,
    /// The same of the attention's probabilities.
    #[serde(default)]
    pub attention_dropout: f32,
    /// Probability to drop a number in front of a classifier's output, where the job says nothing else.
    #[serde(default)]
    pub head_dropout: f32,
    /// Whether DistilBERT's dense layer in front of the classifier comes with the weights.
    #[serde(default)]
    pub pre_classifier: bool,
}

/// Kinds of tokens where nothing is said: those of a text and of a second one.
pub(crate) fn usual_kinds() -> usize {
    2
}

/// The activations that `config.json` may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenseAct {
    /// With the exact Φ.
    #[default]
    #[serde(rename = "gelu")]
    Gelu,
    /// With Φ by a hyperbolic tangent.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// The rectifier.
    #[serde(rename = "relu")]
    Relu,
    /// Also called swish.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl DenseAct {
    fn act(self) -> Act {
        match self {
            Self::Gelu => Act::Gelu,
            Self::GeluTanh => Act::GeluTanh,
            Self::Relu => Act::Relu,
            Self::Silu => Act::Silu,
        }
    }
}

/// BERT's base shape; from scratch nothing is dropped unless the job says so.
pub(super) const BASE: Shape = Shape {
    layers: 12,
    hidden: 768,
    heads: 12,
    wide: 3072,
    words: 30_522,
    positions: 512,
    kinds: 2,
    eps: 1e-12,
    act: DenseAct::Gelu,
    dropout: 0.0,
    attention_dropout: 0.0,
    head_dropout: 0.0,
    pre_classifier: false,
};

/// DistilBERT's.
pub(crate) const DISTILBERT: Shape = Shape { layers: 6, ..BASE };

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
    /// Whether the attention's output is dropped, as that of the dense layers is.
    pub drops_attention: bool,
}

/// Hugging Face's names of BERT.
pub(super) const BERT: Names = Names {
    block: "encoder.layer",
    attention: ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    middle: "attention.output.LayerNorm",
    dense: ["intermediate.dense", "output.dense"],
    last: "output.LayerNorm",
    tables: ["word_embeddings", "position_embeddings", "token_type_embeddings"],
    drops_attention: true,
};

/// One block; heads have `depth` columns each.
pub(super) fn block(b: &mut Builder, name: &str, names: &Names, shape: &Shape, depth: usize) -> EncoderBlock {
    let full = |part: &str| format!("{name}.{part}");
    let [query, key, value, out] = names.attention.map(full);
    let (c, wide, eps) = (shape.hidden, shape.wide, shape.eps);
    let inside = b.given.dropout;
    let (hidden, attention) = (inside.hidden(shape.dropout), inside.attention(shape.attention_dropout));
    let attention = b.mask(attention);
    let drops = [if names.drops_attention { hidden } else { 0.0 }, 0.0, hidden].map(|p| b.mask(p));
    EncoderBlock {
        attention: b.attention([&query, &key, &value, &out], c, (shape.heads, depth), attention),
        norms: [
            b.add_norm(&full(names.middle), &full("attention_adapter"), Place::Attention, c, eps),
            b.add_norm(&full(names.last), &full("output_adapter"), Place::Dense, c, eps),
        ],
        order: Order::After,
        up: b.linear(&full(names.dense[0]), (c, wide)),
        act: Activation(shape.act.act()),
        down: b.linear(&full(names.dense[1]), (wide, c)),
        drops,
    }
}

/// Embedding and blocks, a unit each, in the builder's shape where weights have said one.
pub(super) fn encoder(b: &mut Builder, names: &Names, usual: Shape) -> (Vec<Unit>, Shape) {
    let shape = b.given.shape.clone().unwrap_or(usual);
    let size = (shape.words, shape.hidden);
    let drop = b.mask(b.given.dropout.hidden(shape.dropout));
    let rows = (shape.positions, shape.kinds);
    let embedding = b.embedding("embeddings", names.tables, size, rows, Some(shape.eps), drop);
    let mut units = vec![Unit::new("embeddings", embedding)];
    for i in 0..shape.layers {
        let name = format!("{}.{i}", names.block);
        let layer = block(b, &name, names, &shape, shape.hidden / shape.heads);
        units.push(Unit::new(name, layer));
    }
    (units, shape)
}
