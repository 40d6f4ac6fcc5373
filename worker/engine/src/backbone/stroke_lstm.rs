//! A dense layer on each point of a drawing and two LSTM layers, to be trained from scratch: a recurrent network as is
//! usual for sketches (Ha and Eck, 2017), in one direction.

use super::{Backbone, Same, Unit};
use crate::{
    data::drawing,
    nn::{Builder, EachRow, Relu, Sequential},
};

pub(super) const ENTRY: Backbone = Backbone {
    name: "stroke_lstm",
    doc: "for drawings (`format = \"strokes\"`): 64 features of each point, LSTM 128, LSTM 128, the state after the last \
          point",
    input: 100,
    classifier: "classifier",
    timm: &[],
    activation: "relu",
    blocks: false,
    build,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let points = Sequential::default().with(b.linear("points", (drawing::WIDTH, 64))).with(Relu);
    let units = vec![
        Unit::new("points", EachRow(points)),
        Unit::new("lstm1", b.lstm("lstm1", 64, 128, false)),
        Unit::new("lstm2", b.lstm("lstm2", 128, 128, true)),
    ];
    (units, 128)
}
