//! DistilBERT (Sanh et al., 2019): half of BERT's blocks, the row of `[CLS]`, with Hugging Face's names.

use super::{
    Backbone, Same, Unit,
    text::{BASE, Names, Shape, encoder},
};
use crate::nn::{Builder, Pool};

pub(super) const ENTRY: Backbone = Backbone {
    name: "distilbert",
    doc: "DistilBERT for text, 66 million parameters, 768 features; `input` is the most tokens of a text",
    input: 128,
    classifier: "classifier",
    activation: "gelu",
    build,
};

const NAMES: Names = Names {
    block: "transformer.layer",
    attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    middle: "sa_layer_norm",
    dense: ["ffn.lin1", "ffn.lin2"],
    last: "output_layer_norm",
    tables: ["word_embeddings", "position_embeddings", ""],
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, shape) = encoder(b, &NAMES, Shape { layers: 6, ..BASE });
    units.push(Unit::new("pool", Pool::First));
    (units, shape.hidden)
}
