//! Images as sequences, and layers on each row: what stands on convolutions and on frames.

use tl_engine::{
    nn::{
        Act, Activation, Array, Builder, Dropout, DropoutDraw, EachRow, Gradients, Layer, Layout, Mask, Pass, Ragged,
        Sequential, Tape, array, host,
    },
    num::rng::Philox,
};
use tl_proto::spec::Precision;

use crate::{
    layers::{near, placed},
    numbers,
    pools::check_under,
};

#[test]
fn patches_become_rows_behind_their_class_where_their_images_lie() {
    let mut b = Builder::new(1);
    let layer = b.patches(4, 5, 8, Mask { p: 0.3, site: 2 });
    b.store.values = numbers(2, b.store.values.len()).iter().map(|v| v * 0.2).collect();
    let (x, shape) = (numbers(1, 3 * 8 * 8 * 3), [3, 8, 8, 3]);
    let draw = DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[7, 8, 9] };
    // A sum in another order may be rounded to a neighbour in bf16.
    for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F32, 3e-5)] {
        b.store.precision = precision;
        for dropout in [None, Some(draw)] {
            check_under(&layer, &b.store, (&x, &shape), dropout, tolerance);
        }
    }
    if let Some(x) = placed(&x[..2 * 9 * 9 * 3], &[2, 9, 9, 3]) {
        let refused = layer.forward(&x, &Pass::eval(&b.store), &mut Tape::default());
        assert!(refused.is_err_and(|e| e.to_string().contains("do not tile an input of 9x9")));
    }
}

#[test]
fn the_class_and_the_places_learn_each_for_itself() {
    let mut b = Builder::new(1);
    let layer = b.patches(2, 7, 4, Mask::NONE);
    // More samples than one chain of a sum has.
    let (n, store) = (70, b.store);
    let (x, dy, shape, out) = (numbers(1, n * 4 * 4 * 3), numbers(2, n * 6 * 7), [n, 4, 4, 3], [n, 6, 7]);
    let mut params = Vec::new();
    layer.params(&mut params);
    for trained in [&params[..1], &params[1..2], &params[2..]] {
        let layout = Layout::new(&store, trained, &[]);
        let learnt = |x: &Array, dy: &Array| {
            let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            layer.forward(x, &pass, &mut tape).unwrap();
            assert!(layer.backward(dy, &pass, &mut tape, &mut grads, false).unwrap().is_none());
            grads.come_down().unwrap();
            grads.flat
        };
        let want = learnt(&array(x.clone(), &shape).unwrap(), &array(dy.clone(), &out).unwrap());
        let (Some(x), Some(dy)) = (placed(&x, &shape), placed(&dy, &out)) else { return };
        near(&learnt(&x, &dy), &want, 3e-5);
    }
}

#[test]
fn each_row_goes_through_its_layers_where_it_lies() {
    let mut b = Builder::new(5);
    let inner = Sequential::default().with(b.linear("l", (4, 3))).with(Activation(Act::Tanh));
    let layer = EachRow(inner.with(Dropout { p: 0.4, site: 7 }));
    let ragged = Ragged { lengths: vec![3, 1, 5], room: 5 };
    let framed = ragged.frame(&array(numbers(1, 9 * 4), &[9, 4]).unwrap(), true).unwrap();
    let x = host(&framed).unwrap().to_vec();
    let draw = DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[11, 12, 13] };
    for dropout in [None, Some(draw)] {
        check_under(&layer, &b.store, (&x, &[3, 6, 4]), dropout, 3e-5);
    }
}
