//! BERT (Devlin et al., 2018): the row of `[CLS]` through the pooler, with Hugging Face's names.

use super::{
    Backbone, Same, Unit,
    text::{BASE, BERT, encoder},
};
use crate::nn::{Act, Activation, Builder, Pool, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "bert",
    doc: "BERT for text, base by default (110 million parameters, 768 features); `config.json` beside the weights says \
          its shape; `input` is the most tokens of a text; the head drops what `classifier_dropout` or `hidden_dropout_prob` \
          in that file say",
    input: 128,
    classifier: "classifier",
    timm: &[],
    activation: "gelu",
    blocks: true,
    build,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, shape) = encoder(b, &BERT, BASE);
    units.push(Unit::new("pool", Pool::First));
    let pooler = Sequential::default().with(b.linear("pooler.dense", (shape.hidden, shape.hidden)));
    units.push(Unit::of("pooler", pooler.with(Activation(Act::Tanh))));
    (units, shape.hidden)
}
