//! In bf16, layers of images hand on what they do in f32, rounded once, forward and backward; what they learn is not rounded,
//! nor is what other layers hand on that multiply nothing.

use super::{
    tests::{run, take, values, within},
    *,
};
use crate::{
    nn::{
        Act, Activation, Array, AvgPool, Border, BufferId, Builder, DropPath, Dropout, DropoutDraw, EncoderBlock,
        FlattenChannels, Gate, GlobalAvgPool, Gradients, Graph, Layer, Layout, Mask, MaxPool, Order, Padding, Pool,
        Ragged, Residual, Scale, Sequential, Shortcut, Store, Tape, array, testing,
    },
    num::rng::Philox,
};

/// A slope that is no multiple of [`testing::array`].
fn slope(shape: &[usize]) -> Array {
    array(values(&testing::array(shape)).iter().map(|v| v * v - 0.7).collect(), shape).unwrap()
}

/// What a layer gives of samples, some of which are dropped, what it hands back, and what it learns.
fn ran(layer: &dyn Layer, store: &Store, shape: &[usize], statistics: bool) -> [Vec<f32>; 3] {
    let (mut params, mut norms) = (Vec::new(), Vec::new());
    layer.params(&mut params);
    layer.norms(&mut norms);
    let norms: Vec<BufferId> = norms.iter().filter(|_| statistics).map(|n| n.0).collect();
    let layout = Layout::new(store, &params, &norms);
    let draws: Vec<u64> = (0..shape[0] as u64).collect();
    let dropout = Some(DropoutDraw { rng: Philox::new(5, "dropout"), draws: &draws });
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&testing::array(shape), &pass, &mut tape).unwrap();
    let dx = layer.backward(&slope(y.dims()), &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    [values(&y), values(&dx), grads.flat]
}

fn rounds(layer: &dyn Layer, store: &Store, shape: &[usize]) {
    let mut said = String::new();
    layer.describe(&mut said);
    for statistics in [true, false] {
        let in_precision = |precision| ran(layer, &within(store, precision), shape, statistics);
        let [y, dx, learnt] = in_precision(Precision::F32);
        let handed = [&y, &dx].map(|exact| Precision::Bf16.product(exact.clone()));
        assert!(handed[0] != y && handed[1] != dx, "{said} has nothing to round");
        let [handed_y, handed_dx] = handed;
        assert_eq!(in_precision(Precision::Bf16), [handed_y, handed_dx, learnt.clone()], "{said} in bf16");
        assert_eq!(in_precision(Precision::Tf32), [y, dx, learnt], "{said} in TF32");
    }
}

fn stays(layer: &dyn Layer, store: &Store, shape: &[usize]) {
    let mut said = String::new();
    layer.describe(&mut said);
    let exact = ran(layer, store, shape, true);
    for kind in &exact[..2] {
        assert_ne!(take(kind, Precision::Bf16), *kind, "{said} has nothing to round");
    }
    for precision in [Precision::Tf32, Precision::Bf16] {
        assert_eq!(ran(layer, &within(store, precision), shape, true), exact, "{said} in {precision}");
    }
}

const ALL: [Act; 8] = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

#[test]
fn batch_norms_and_activations_hand_on_what_bf16_has() {
    for act in ALL {
        rounds(&Activation(act), &Builder::new(1).store, &[2, 3, 4, 5]);
        let mut b = Builder::new(1);
        let norm = b.norm("n", 3).act(act);
        b.store.values = vec![0.5, 1.5, -0.7, 0.1, 0.2, 0.3];
        b.store.buffer_values = vec![0.3, -0.2, 0.1, 1.5, 0.7, 2.0];
        rounds(&norm, &b.store, &[5, 4, 6, 3]);
        rounds(&norm, &b.store, &[70, 3]);
    }
}

#[test]
fn pools_and_stochastic_depth_hand_on_what_bf16_has() {
    let store = Builder::new(1).store;
    rounds(&GlobalAvgPool, &store, &[2, 4, 5, 3]);
    rounds(&MaxPool { k: 3, stride: 2, pad: 1 }, &store, &[2, 6, 7, 3]);
    let pad = Padding::Symmetric(1);
    rounds(&AvgPool::Sliding { k: 3, stride: 1, pad, counts_border: true }, &store, &[2, 5, 6, 3]);
    rounds(&AvgPool::Grid(3), &store, &[2, 7, 5, 3]);
    rounds(&DropPath { p: 0.3, site: 2 }, &store, &[20, 2, 3, 2]);
}

#[test]
fn where_gradients_of_several_windows_meet_they_are_rounded_after_their_sum() {
    let store = within(&Builder::new(1).store, Precision::Bf16);
    // One pixel is the largest of four windows; beside a one, bf16 has their sum rounded up, and none of the others alone.
    let mut pixels = vec![0.0; 9];
    pixels[4] = 1.0;
    let (x, pool) = (array(pixels.clone(), &[1, 3, 3, 1]).unwrap(), MaxPool { k: 2, stride: 1, pad: 0 });
    let slopes = vec![1.0, 1.0 / 256.0, 1.0 / 256.0, 1.0 / 256.0];
    let (_, dx, _) = run(&pool, &store, &x, |shape| array(slopes.clone(), shape).unwrap());
    pixels[4] = 1.0 + 1.0 / 64.0;
    assert_eq!(values(&dx), pixels);
}

#[test]
fn residual_blocks_round_their_sum_and_the_gradients_that_meet_behind_it() {
    let (shape, silu) = ([2, 3, 4, 5], Activation(Act::Silu));
    let store = within(&Builder::new(1).store, Precision::Bf16);
    let (x, dy) = (testing::array(&shape), slope(&shape));
    for act in [Act::None, Act::Relu] {
        let body = Sequential::default().with(Activation(Act::Silu));
        let block = Residual { body, shortcut: Shortcut::Identity, act };
        let (y, dx, _) = run(&block, &store, &x, |_| dy.clone());
        let (long, ..) = run(&silu, &store, &x, |_| dy.clone());
        let sum = values(&long.plus(&x).unwrap()).into_iter().map(|v| if act == Act::Relu { v.max(0.0) } else { v });
        let sum = Precision::Bf16.product(sum.collect());
        assert_eq!(values(&y), sum, "{act:?}");
        let mut behind = values(&dy);
        if act == Act::Relu {
            behind.iter_mut().zip(&sum).for_each(|(g, s)| *g = if *s > 0.0 { *g } else { 0.0 });
            Precision::Bf16.round(&mut behind);
        }
        let behind = array(behind, &shape).unwrap();
        let (_, through, _) = run(&silu, &store, &x, |_| behind.clone());
        let met = values(&through.plus(&behind).unwrap());
        assert_ne!(values(&dx), met);
        assert_eq!(values(&dx), Precision::Bf16.product(met), "{act:?}");
    }
}

#[test]
fn gates_round_means_products_and_both_slopes() {
    let (shape, area, c) = ([2, 3, 4, 5], 12, 5);
    let (x, dy) = (testing::array(&shape), slope(&shape));
    let (inputs, slopes) = (values(&x), values(&dy));
    let of = |i: usize| i / (area * c) * c + i % c;
    let sums = |each: &dyn Fn(usize) -> f64| {
        let mut sums = vec![0.0f64; 2 * c];
        (0..inputs.len()).for_each(|i| sums[of(i)] += each(i));
        sums
    };
    let made = [Precision::F32, Precision::Bf16].map(|precision| {
        let store = within(&Builder::new(1).store, precision);
        let pixels = |numbers: Vec<f32>| array(precision.product(numbers), &[2, 1, 1, c]).unwrap();
        let totals = sums(&|i| f64::from(inputs[i]));
        let means = pixels(totals.iter().map(|s| (s / area as f64) as f32).collect());
        let products = sums(&|i| f64::from(slopes[i]) * f64::from(inputs[i]));
        let products = pixels(products.iter().map(|s| *s as f32).collect());
        let (factors, shares, _) = run(&Activation(Act::Sigmoid), &store, &means, |_| products.clone());
        let (factors, shares) = (values(&factors), values(&shares));
        let wanted_y = (0..inputs.len()).map(|i| inputs[i] * factors[of(i)]).collect();
        let share = |i: usize| shares[of(i)] * (1.0 / area as f32);
        let wanted_dx = (0..inputs.len()).map(|i| slopes[i] * factors[of(i)] + share(i)).collect();

        let gate = Gate { layers: Sequential::default().with(Activation(Act::Sigmoid)) };
        let (y, dx, _) = run(&gate, &store, &x, |_| dy.clone());
        assert_eq!(values(&y), precision.product(wanted_y), "{precision}");
        assert_eq!(values(&dx), precision.product(wanted_dx), "{precision}");
        [values(&y), values(&dx)]
    });
    assert_ne!(made[0], made[1]);
}

#[test]
fn what_multiplies_nothing_and_is_no_layer_of_images_hands_on_f32() {
    let mut b = Builder::new(1);
    let norm = b.layer_norm("n", 19, 1e-5);
    stays(&norm, &b.store, &[7, 19]);
    stays(&Dropout { p: 0.3, site: 1 }, &b.store, &[7, 19]);
    stays(&Scale(0.17), &b.store, &[2, 3]);
    let images = [2, 5, 4, 3];
    stays(&FlattenChannels, &b.store, &images);
    stays(&Border::Shift, &b.store, &images);
    stays(&Border::Same { k: 3, stride: 2 }, &b.store, &images);
    // A value that is read three times, cut, added and joined.
    let mut graph = Graph::default();
    let (left, right) = (graph.channels(Graph::INPUT, 0..2), graph.channels(Graph::INPUT, 1..3));
    let sum = graph.sum(left, right);
    graph.concat(&[sum, left, Graph::INPUT]);
    stays(&graph, &b.store, &images);
}

#[test]
fn blocks_of_transformers_add_up_and_normalise_in_f32_and_so_are_rows_pooled() {
    let ragged = Ragged { lengths: vec![3, 1, 2], room: 3 };
    let (packed, rows) = (testing::array(&[ragged.rows(), 6]), ragged.rows());
    let (x, dy) = (ragged.frame(&packed, true).unwrap(), ragged.frame(&slope(&[rows, 6]), false).unwrap());
    for order in [Order::Before, Order::After] {
        let mut b = Builder::new(3);
        let block = EncoderBlock {
            attention: b.attention(["q", "k", "v", "o"], 6, (2, 4), Mask::NONE),
            norms: ["n1", "n2"].map(|name| b.layer_norm(name, 6, 1e-5).into()),
            order,
            up: b.linear("up", (6, 10)),
            act: Activation(Act::Gelu),
            down: b.linear("down", (10, 6)),
            drops: [Mask::NONE; 3],
        };
        let (y, dx, _) = run(&block, &within(&b.store, Precision::Bf16), &x, |_| dy.clone());
        for handed in [&y, &dx] {
            let numbers = values(&ragged.pack(handed).unwrap());
            assert_ne!(take(&numbers, Precision::Bf16), numbers, "{order:?}");
        }
    }
    let store = Builder::new(1).store;
    let pooled = |precision| {
        let (y, dx, _) = run(&Pool::Mean, &within(&store, precision), &x, slope);
        [values(&y), values(&dx)]
    };
    assert_eq!(pooled(Precision::Bf16), pooled(Precision::F32));
}
