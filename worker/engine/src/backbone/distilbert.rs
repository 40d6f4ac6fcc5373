//! DistilBERT (Sanh et al., 2019): half of BERT's blocks, the row of `[CLS]`, with Hugging Face's names.

use super::{
    Backbone, Same, Unit,
    text::{DISTILBERT, Names, encoder},
};
use crate::nn::{Act, Activation, Builder, Pool, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "distilbert",
    doc: "DistilBERT for text, 66 million parameters, 768 features; `input` is the most tokens of a text; weights of a \
          classifier bring its dense layer in front of the output, and for others `head = { hidden = [768] }` is that of \
          transformers; the head drops what `seq_classif_dropout` in `config.json` says, 0.2 where that does \
          not say it, and nothing without that file",
    input: 128,
    classifier: "classifier",
    timm: &[],
    activation: "gelu",
    blocks: true,
    build,
};

const NAMES: Names = Names {
    block: "transformer.layer",
    attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    middle: "sa_layer_norm",
    dense: ["ffn.lin1", "ffn.lin2"],
    last: "output_layer_norm",
    tables: ["word_embeddings", "position_embeddings", ""],
    drops_attention: false,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, shape) = encoder(b, &NAMES, DISTILBERT);
    units.push(Unit::new("pool", Pool::First));
    if shape.pre_classifier {
        let dense = Sequential::default().with(b.linear("pre_classifier", (shape.hidden, shape.hidden)));
        units.push(Unit::of("pre_classifier", dense.with(Activation(Act::Relu))));
    }
    (units, shape.hidden)
}
