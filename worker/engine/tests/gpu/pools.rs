//! Layers of image networks that multiply nothing: pools, gates, joins, dropout, and what lies between images and features.

use tl_engine::{
    Error,
    backbone::{Network, find},
    nn::{
        self, Act, Activation, AvgPool, Border, Builder, DropPath, Dropout, DropoutDraw, FlattenChannels, Gate,
        GlobalAvgPool, Gradients, Graph, Layer, Layout, MaxPool, Packs, Padding, Pass, Residual, Scale, Sequential,
        Shortcut, Store, Tape,
    },
    num::{bf16::rounded, rng::Philox},
    weights::Contract,
};
use tl_proto::spec::{HeadAct, HeadSection, Precision};

use crate::{
    image_layers::{halves, here, is_half, passed, there},
    layers::{check, down, near, placed},
    numbers, run, shared,
};

/// As [`check`], under dropout where there is any.
pub(crate) fn check_under(
    layer: &dyn Layer,
    store: &Store,
    (x, shape): (&[f32], &[usize]),
    dropout: Option<DropoutDraw<'_>>,
    tolerance: f32,
) {
    let want = run(layer, store, (x, shape), dropout, false);
    let (Some(x), Some(dy)) = (placed(x, shape), placed(&want.dy, &want.shape)) else { return };
    let mut params = Vec::new();
    layer.params(&mut params);
    let (layout, packs) = (Layout::new(store, &params, &[]), Packs::default());
    packs.begin(&layout, 1);
    let pass = Pass { layout: Some(&layout), dropout, packs: Some(&packs), ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&x, &pass, &mut tape).unwrap();
    assert_eq!(y.dims(), want.shape);
    let dx = layer.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    assert_eq!(dx.dims(), shape);
    near(&down(&y), &want.y, tolerance);
    near(&down(&dx), &want.dx, tolerance);
    grads.come_down().unwrap();
    near(&grads.flat, &want.flat, tolerance);
}

/// That a layer of which nothing is trained gives the same, to an evaluation too; hands nothing back that nobody wants; and
/// leaves nothing on the tape.
fn check_frozen(layer: &dyn Layer, store: &Store, (x, shape): (&[f32], &[usize]), tolerance: f32) {
    let want = run(layer, store, (x, shape), None, false);
    let (Some(x), Some(dy)) = (placed(x, shape), placed(&want.dy, &want.shape)) else { return };
    let layout = Layout::new(store, &[], &[]);
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let pass = Pass { layout: Some(&layout), ..Pass::eval(store) };
    for pass in [&Pass::eval(store), &pass] {
        near(&down(&layer.forward(&x, pass, &mut tape).unwrap()), &want.y, tolerance);
    }
    assert!(layer.backward(&dy, &pass, &mut tape, &mut grads, false).unwrap().is_none());
    assert!(layer.backward(&dy, &pass, &mut tape, &mut grads, false).is_err(), "something is left on the tape");
}

/// Puts numbers where a layer is to compute.
type Sends = fn(&[f32], &[usize]) -> nn::Array;

/// What bf16 has of numbers.
fn coarse(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| rounded(*v)).collect()
}

/// The same in f32, on the GPU.
fn wide(values: &[f32], shape: &[usize]) -> nn::Array {
    there(&coarse(values), shape)
}

/// That in bf16 a layer hands on what it makes of the same numbers in f32, rounded once, whichever memory they come in.
fn check_rounded(layer: &dyn Layer, store: &Store, input: (&[f32], &[usize])) {
    if shared().is_none() {
        return;
    }
    let mut params = Vec::new();
    layer.params(&mut params);
    let layout = Layout::new(store, &params, &[]);
    let ran = |precision: Precision, send: Sends| {
        let store = Store { precision, values: coarse(&store.values), ..store.clone() };
        passed(layer, &Pass { layout: Some(&layout), ..Pass::eval(&store) }, input, true, send)
    };
    let want = ran(Precision::F32, wide);
    let both: [Sends; 2] = [wide, halves];
    for send in both {
        let got = ran(Precision::Bf16, send);
        for (got, want) in [(&got.y, &want.y), (got.dx.as_ref().unwrap(), want.dx.as_ref().unwrap())] {
            assert!(is_half(got) && !is_half(want));
            near(&down(got), &coarse(&down(want)), 0.0);
        }
        near(&got.flat, &want.flat, 0.0);
    }
}

#[test]
fn pools_and_depthwise_convolutions_hand_on_bf16_and_round_once() {
    for c in [3, 8, 12] {
        let mut b = Builder::new(1);
        let depthwise = b.depthwise("d", c, 3, 2, Padding::Same);
        let means = AvgPool::Sliding { k: 3, stride: 2, pad: Padding::Same, counts_border: false };
        let (x, shape) = (numbers(1, 2 * 6 * 7 * c), [2, 6, 7, c]);
        let pool = MaxPool { k: 3, stride: 2, pad: 1 };
        let layers: [&dyn Layer; 5] = [&pool, &means, &AvgPool::Grid(4), &GlobalAvgPool, &depthwise];
        for layer in layers {
            check_rounded(layer, &b.store, (&x, &shape));
        }
    }
}

#[test]
fn what_only_moves_numbers_gives_them_as_they_come_and_joins_two_types_in_f32() {
    if shared().is_none() {
        return;
    }
    let mut b = Builder::new(1);
    // The same numbers, in f32.
    let plain = b.normalize("n", &[0.0; 4], &[1.0; 4], &[1.0; 4]);
    b.store.precision = Precision::Bf16;
    let (mut turned, mut mixed) = (Graph::default(), Graph::default());
    let (first, last) = (turned.channels(Graph::INPUT, 0..1), turned.channels(Graph::INPUT, 1..4));
    turned.concat(&[last, first]);
    let full = mixed.layer(Graph::INPUT, plain);
    mixed.concat(&[Graph::INPUT, full]);
    let (x, shape) = (numbers(1, 2 * 5 * 6 * 4), [2, 5, 6, 4]);
    let made =
        |layer: &dyn Layer, x: nn::Array| layer.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
    let layers: [(&dyn Layer, bool); 3] = [(&Border::Shift, true), (&turned, true), (&mixed, false)];
    for (layer, stays) in layers {
        let want = down(&made(layer, here(&x, &shape)));
        let (exact, low) = (made(layer, there(&x, &shape)), made(layer, halves(&x, &shape)));
        assert_eq!((is_half(&exact), is_half(&low)), (false, stays));
        near(&down(&exact), &want, 0.0);
        near(&down(&low), &coarse(&want), 0.0);
    }
}

#[test]
fn windows_are_pooled_where_their_image_lies() {
    let store = Builder::new(1).store;
    for (shape, k, stride, pad) in
        [([2, 6, 7, 3], 3, 2, 1), ([1, 4, 4, 2], 2, 2, 0), ([2, 5, 9, 35], 3, 1, 1), ([1, 8, 7, 2], 2, 3, 0)]
    {
        let mut x = numbers(1, shape.iter().product());
        // Ties.
        x.iter_mut().step_by(3).for_each(|v| *v = 1.0);
        let pool = MaxPool { k, stride, pad };
        check(&pool, &store, (&x, &shape), 0.0);
        check_frozen(&pool, &store, (&x, &shape), 0.0);
    }
    let sliding = |k, stride, pad, counts_border| AvgPool::Sliding { k, stride, pad, counts_border };
    for (pool, shape) in [
        (sliding(3, 1, Padding::Symmetric(1), true), [2, 5, 6, 3]),
        (sliding(3, 1, Padding::Symmetric(1), false), [2, 5, 6, 3]),
        (sliding(3, 2, Padding::Same, false), [1, 6, 7, 35]),
        (sliding(1, 2, Padding::Symmetric(0), true), [2, 5, 4, 2]),
        (sliding(2, 2, Padding::Symmetric(0), true), [3, 5, 4, 2]),
        (AvgPool::Grid(7), [2, 2, 3, 2]),
        (AvgPool::Grid(3), [2, 7, 5, 3]),
    ] {
        let x = numbers(2, shape.iter().product());
        check(&pool, &store, (&x, &shape), 0.0);
        check_frozen(&pool, &store, (&x, &shape), 0.0);
    }
}

#[test]
fn an_image_that_is_too_small_is_the_users_to_mend_there_too() {
    let Some(x) = placed(&numbers(1, 18), &[1, 3, 3, 2]) else { return };
    let store = Builder::new(1).store;
    let mean = AvgPool::Sliding { k: 4, stride: 1, pad: Padding::Symmetric(0), counts_border: true };
    let pools: [&dyn Layer; 2] = [&MaxPool { k: 4, stride: 1, pad: 0 }, &mean];
    for pool in pools {
        let refused = pool.forward(&x, &Pass::eval(&store), &mut Tape::default());
        assert!(matches!(refused, Err(Error::User { message, .. }) if message.contains("3x3 is too small")));
    }
}

#[test]
fn pixels_are_scaled_normalised_and_become_features_with_the_bits_of_the_cpu() {
    let mut b = Builder::new(1);
    let normalize = b.normalize("n", &[0.5, 0.4, 0.1], &[0.3, 0.2, 0.7], &[2.0, 3.0, 1.0]);
    let (x, shape) = (numbers(1, 2 * 35 * 33 * 3), [2, 35, 33, 3]);
    check(&Scale(0.17), &b.store, (&x, &shape), 0.0);
    check(&normalize, &b.store, (&x, &shape), 0.0);
    check(&FlattenChannels, &b.store, (&x, &shape), 0.0);
    check_frozen(&FlattenChannels, &b.store, (&x, &shape), 0.0);
    // A factor for each channel of an image that has more of them.
    if let Some(x) = placed(&x[..16], &[1, 2, 2, 4]) {
        assert!(normalize.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).is_err());
    }
}

#[test]
fn gates_are_made_and_learn_where_their_image_lies() {
    let mut b = Builder::new(3);
    let layers = Sequential::default()
        .with(b.linear("reduce", (7, 3)))
        .with(Activation(Act::Silu))
        .with(b.linear("expand", (3, 7)))
        .with(Activation(Act::Sigmoid));
    let gate = Gate { layers };
    for shape in [[3, 5, 4, 7], [1, 1, 1, 7]] {
        let x = numbers(1, shape.iter().product());
        check(&gate, &b.store, (&x, &shape), 3e-5);
        check_frozen(&gate, &b.store, (&x, &shape), 3e-5);
    }
    // A channel too few.
    let gate = Gate { layers: Sequential::default().with(b.linear("narrow", (7, 6))) };
    if let Some(x) = placed(&numbers(1, 7 * 4), &[1, 2, 2, 7]) {
        assert!(gate.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).is_err());
    }
}

#[test]
fn values_are_summed_joined_and_cut_where_they_lie() {
    let store = Builder::new(1).store;
    let (x, shape) = (numbers(1, 2 * 3 * 4 * 5), [2, 3, 4, 5]);
    // Slices that overlap, a sum, one value that is read three times, and two joins: no product, and so the same bits.
    let mut g = Graph::default();
    let (left, right) = (g.channels(Graph::INPUT, 0..3), g.channels(Graph::INPUT, 2..5));
    let sum = g.sum(left, right);
    let bent = g.layer(sum, Activation(Act::Silu));
    let inner = g.concat(&[bent, sum]);
    let pooled = g.layer(inner, MaxPool { k: 3, stride: 1, pad: 1 });
    g.concat(&[pooled, Graph::INPUT, left]);
    check(&g, &store, (&x, &shape), 0.0);
    check_frozen(&g, &store, (&x, &shape), 0.0);

    let mut b = Builder::new(3);
    let mut g = Graph::default();
    let wide = g.layer(Graph::INPUT, b.linear("wide", (5, 6)));
    let part = g.channels(wide, 1..6);
    let sum = g.sum(part, Graph::INPUT);
    let joined = g.concat(&[sum, wide]);
    g.layer(joined, b.linear("out", (11, 4)));
    check(&g, &b.store, (&x, &shape), 3e-5);

    // Images of two sizes.
    let mut g = Graph::default();
    let small = g.layer(Graph::INPUT, MaxPool { k: 2, stride: 2, pad: 0 });
    g.concat(&[small, Graph::INPUT]);
    if let Some(x) = placed(&x, &shape) {
        assert!(g.forward(&x, &Pass::eval(&store), &mut Tape::default()).is_err());
    }
}

#[test]
fn every_second_pixel_reaches_the_sum_of_a_block_where_it_lies() {
    let store = Builder::new(1).store;
    // Three channels more, one of them before those of the image; or eight, and four of them.
    for shape in [[2, 5, 6, 3], [1, 1, 2, 3], [3, 4, 4, 3], [2, 5, 6, 8]] {
        for act in [Act::None, Act::Relu] {
            let mut long = Graph::default();
            let small = long.layer(Graph::INPUT, MaxPool { k: 3, stride: 2, pad: 1 });
            long.concat(&[small, small]);
            let body = Sequential::default().with(long);
            let block = Residual { body, shortcut: Shortcut::Subsample { channels: 2 * shape[3] }, act };
            check(&block, &store, (&numbers(1, shape.iter().product()), &shape), 0.0);
        }
    }
}

#[test]
fn what_is_dropped_there_is_what_the_host_drops_forward_and_backward() {
    let store = Builder::new(1).store;
    let draws: Vec<u64> = (0..40).map(|i| i << 33).collect();
    let draw = DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws };
    let (x, shape) = (numbers(1, 40 * 2 * 7), [40, 1, 2, 7]);
    let path = Residual {
        body: Sequential::default().with(Activation(Act::Silu)).with(DropPath { p: 0.5, site: 4 }),
        shortcut: Shortcut::Identity,
        act: Act::None,
    };
    let layers: [&dyn Layer; 3] = [&Dropout { p: 0.4, site: 9 }, &DropPath { p: 0.5, site: 4 }, &path];
    for (i, layer) in layers.into_iter().enumerate() {
        for dropout in [Some(draw), None] {
            check_under(layer, &store, (&x, &shape), dropout, 0.0);
        }
        // Of the draws that there are some drop and some do not.
        let values = run(layer, &store, (&x, &shape), Some(draw), false).y;
        let zeros = values.iter().filter(|v| **v == 0.0).count();
        assert!(i == 2 || (1..values.len()).contains(&zeros), "{zeros} of {}", values.len());
    }
    let few = DropoutDraw { draws: &draws[..39], ..draw };
    let pass = Pass { dropout: Some(few), ..Pass::eval(&store) };
    if let Some(x) = placed(&x, &shape) {
        assert!(layers.iter().all(|layer| layer.forward(&x, &pass, &mut Tape::default()).is_err()));
    }
}

#[test]
fn a_classifiers_head_learns_where_its_features_lie() {
    let (backbone, contract) = (find("small_cnn").unwrap(), Contract::named("torch", 32, None).unwrap());
    let draw = DropoutDraw { rng: Philox::new(3, "dropout"), draws: &[5, 6, 7] };
    for (hidden, activation, outputs) in
        [(vec![], HeadAct::Relu, 4), (vec![6, 5], HeadAct::Gelu, 3), (vec![9], HeadAct::Tanh, 0)]
    {
        let head = HeadSection { hidden, activation, dropout: Some(0.3), ..HeadSection::default() };
        let mut network = Network::build(backbone, &contract, &head, outputs, 1);
        let first = network.head;
        let mut layers = Sequential::default();
        for unit in network.units.drain(first..) {
            layers = layers.with(unit.layer);
        }
        let x = numbers(1, 3 * network.features);
        for dropout in [Some(draw), None] {
            check_under(&layers, &network.initial, (&x, &[3, network.features]), dropout, 3e-5);
        }
    }
}
