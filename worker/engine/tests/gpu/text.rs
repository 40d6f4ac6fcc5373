//! Layers of sequences, and whole encoders, where their input lies.

use std::sync::{Arc, OnceLock};

use tl_engine::{
    backbone::{Asked, DenseAct, Inside, Network, Shape, find},
    data::tokens::Text,
    gpu::{
        Device, Placed,
        ops::{self, Spans, Step},
    },
    nn::{
        self, Act, Activation, Builder, Dropout, DropoutDraw, EachRow, EncoderBlock, Gradients, Layer, Layout, Mask,
        Order, Packs, ParamId, Pass, Place, Pool, Ragged, Sequential, Store, Tape, array, host,
    },
    num::{bf16::rounded, rng::Philox},
    weights::Contract,
};
use tl_proto::spec::{HeadSection, Precision};

use crate::{
    is_fake,
    layers::{down, near, placed},
    numbers, shared, up,
};

/// Makes what layers take, in one memory or the other.
type Lay = fn(&[f32], &[usize]) -> nn::Array;

fn here(values: &[f32], shape: &[usize]) -> nn::Array {
    array(values.to_vec(), shape).unwrap()
}

fn there(values: &[f32], shape: &[usize]) -> nn::Array {
    placed(values, shape).unwrap()
}

/// How a layer is run.
#[derive(Clone, Copy)]
struct How<'a> {
    dropout: Option<DropoutDraw<'a>>,
    /// What is not trained.
    frozen: &'a [ParamId],
    need_dx: bool,
}

const USUAL: How<'static> = How { dropout: None, frozen: &[], need_dx: true };

/// The same while as many samples are dropped from.
fn dropping(samples: usize) -> How<'static> {
    static DRAWS: [u64; 4] = [7, 1 << 40, 9, 123];
    How { dropout: Some(DropoutDraw { rng: Philox::new(5, "dropout"), draws: &DRAWS[..samples] }), ..USUAL }
}

/// What a grain comes to.
struct Came {
    y: nn::Array,
    dx: Option<nn::Array>,
    flat: Vec<f32>,
    touched: Vec<bool>,
}

fn ran(layer: &dyn Layer, store: &Store, (x, shape): (&[f32], &[usize]), how: How<'_>, lay: Lay) -> Came {
    let mut params = Vec::new();
    layer.params(&mut params);
    params.retain(|id| !how.frozen.contains(id));
    let (layout, packs) = (Layout::new(store, &params, &[]), Packs::default());
    packs.begin(&layout, 2);
    let pass = Pass { layout: Some(&layout), dropout: how.dropout, packs: Some(&packs), ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::unmade(&layout));
    let y = layer.forward(&lay(x, shape), &pass, &mut tape).unwrap();
    let dy = lay(&numbers(77, y.count()), y.dims());
    let dx = layer.backward(&dy, &pass, &mut tape, &mut grads, how.need_dx).unwrap();
    let again = layer.backward(&dy, &pass, &mut tape, &mut Gradients::new(&layout), how.need_dx);
    assert!(again.is_err(), "something is left on the tape");
    assert!(host(&y).is_ok() || grads.flat.is_empty(), "the host's gradient was made on the way");
    grads.come_down().unwrap();
    Came { y, dx, flat: grads.flat, touched: grads.touched }
}

/// Compares what a layer gives, hands back and learns on the GPU and on the host, and what it gives when nothing is trained:
/// to `bound`, and gradients of parameters to `learnt`.
fn compare(layer: &dyn Layer, store: &Store, x: (&[f32], &[usize]), how: How<'_>, (bound, learnt): (f32, f32)) {
    if shared().is_none() {
        return;
    }
    let (want, got) = (ran(layer, store, x, how, here), ran(layer, store, x, how, there));
    assert_eq!(got.y.dims(), want.y.dims());
    near(&down(&got.y), &down(&want.y), bound);
    assert_eq!(got.dx.is_some(), want.dx.is_some());
    if let (Some(got), Some(want)) = (&got.dx, &want.dx) {
        assert_eq!(got.dims(), want.dims());
        near(&down(got), &down(want), bound);
    }
    near(&got.flat, &want.flat, learnt);
    assert_eq!(got.touched, want.touched);
    assert!(got.dx.iter().chain([&got.y]).all(|array| host(array).is_err()), "it came down on the way");
    let [want, got] = [here as Lay, there as Lay]
        .map(|lay| down(&layer.forward(&lay(x.0, x.1), &Pass::eval(store), &mut Tape::default()).unwrap()));
    near(&got, &want, bound);
}

/// That a layer rounds in the same places on both: one place more or less would change numbers far more than sums in another
/// order do. Of TF32 only a fake is known to round to the nearest.
fn rounds_alike(layer: &dyn Layer, store: &Store, x: (&[f32], &[usize]), how: How<'_>) {
    let Some(device) = shared() else { return };
    rounds_alike_in(Precision::Bf16, layer, store, x, how);
    if is_fake(device) {
        rounds_alike_in(Precision::Tf32, layer, store, x, how);
    }
}

fn rounds_alike_in(precision: Precision, layer: &dyn Layer, store: &Store, x: (&[f32], &[usize]), how: How<'_>) {
    let mixed = Store { precision, ..store.clone() };
    let all = [(store, here as Lay), (&mixed, here as Lay), (&mixed, there as Lay)].map(|(store, lay)| {
        let Came { y, dx, flat, .. } = ran(layer, store, x, how, lay);
        [down(&y), dx.map(|dx| down(&dx)).unwrap_or_default(), flat]
    });
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
    let [plain, want, got] = &all;
    for ((plain, want), got) in plain.iter().zip(want).zip(got) {
        assert_eq!(got.len(), want.len());
        if want.is_empty() {
            continue;
        }
        let (rounded, other) = (apart(plain, want), apart(got, want));
        assert!(rounded > 0.0 && other < 0.05 * rounded, "{other} apart, where {precision} makes {rounded}");
    }
}

/// Frames of random rows.
fn frames(lengths: &[usize], room: usize, c: usize) -> (Vec<f32>, [usize; 3]) {
    let ragged = Ragged { lengths: lengths.to_vec(), room };
    let rows = ragged.rows();
    let framed = ragged.frame(&here(&numbers(5, rows * c), &[rows, c]), true).unwrap();
    (down(&framed), [lengths.len(), room + 1, c])
}

/// Texts of random words.
fn texts(lengths: &[usize], room: usize, words: usize) -> (Vec<f32>, [usize; 2]) {
    let mut ids = vec![-1.0; lengths.len() * room];
    for (text, length) in ids.chunks_exact_mut(room).zip(lengths) {
        let random = numbers(*length as u32, *length);
        text.iter_mut().zip(random).for_each(|(id, v)| *id = ((v.abs() * 1000.0) as usize % words) as f32);
    }
    (ids, [lengths.len(), room])
}

#[test]
fn frames_are_pooled_and_their_rows_go_through_layers_where_they_lie() {
    for (lengths, room, c) in [([3, 1, 5, 4], 6, 7), ([40, 1, 2, 39], 40, 33)] {
        let (x, shape) = frames(&lengths, room, c);
        let mut b = Builder::new(3);
        let inner = Sequential::default().with(b.linear("l", (c, 5))).with(Activation(Act::Tanh));
        for pool in [Pool::Mean, Pool::First] {
            compare(&pool, &b.store, (&x, &shape), USUAL, (0.0, 0.0));
            compare(&pool, &b.store, (&x, &shape), How { need_dx: false, ..USUAL }, (0.0, 0.0));
        }
        compare(&EachRow(inner), &b.store, (&x, &shape), USUAL, (1e-5, 3e-5));
    }
}

#[test]
fn what_a_layer_frames_says_its_lengths_until_it_is_changed() {
    if shared().is_none() {
        return;
    }
    let (x, shape) = frames(&[2, 3], 4, 3);
    let (layer, store) = (EachRow(Sequential::default().with(Activation(Act::Tanh))), Builder::new(1).store);
    let y = layer.forward(&there(&x, &shape), &Pass::eval(&store), &mut Tape::default()).unwrap();
    let nn::Array::Device(y) = y else { panic!("it came down on the way") };
    let y = y.full().unwrap();
    assert_eq!(y.lengths(), Some(&[2, 3][..]));
    let before = y.download().unwrap();
    assert_eq!((before[0], before[15]), (2.0, 3.0));
    // Somebody else holds it: it stays what it is.
    let twice = y.clone().changed(|device, y| ops::scale(device, y, 2.0)).unwrap();
    assert!(twice.lengths().is_none() && y.lengths().is_some());
    assert_eq!(y.download().unwrap(), before);
    assert_eq!(twice.download().unwrap(), before.iter().map(|v| v * 2.0).collect::<Vec<_>>());
}

#[test]
fn what_is_no_frame_is_refused() {
    let Some(device) = shared() else { return };
    let store = Builder::new(1).store;
    let refused = |x: &[f32], shape: &[usize]| {
        Pool::Mean.forward(&there(x, shape), &Pass::eval(&store), &mut Tape::default()).is_err()
    };
    for first in [0.0, 1.5, 4.0, f32::NAN] {
        assert!(refused(&[vec![first], vec![0.0; 7]].concat(), &[1, 4, 2]));
    }
    assert!(refused(&[1.0; 6], &[2, 3]) && !refused(&[1.0; 8], &[1, 4, 2]));

    let packed = up(device, &numbers(1, 15), &[5, 3]);
    let spans = Spans::of(device, &[2, 3]).unwrap();
    assert!(ops::frame(device, &packed, &spans, 2, true).is_err());
    assert!(ops::unframe(device, &packed, &spans).is_err() && ops::pool_rows(device, &packed, &spans, true).is_err());
    assert!(ops::pool_rows_back(device, &packed, &spans, 3, true).is_err());
    assert!(Spans::of(device, &[2, 0]).is_err() && Spans::of(device, &[]).is_err());
    // More of them than are kept, twice, and each is the one that was asked for.
    for cuts in (0..16).chain(0..16) {
        let mut lengths = vec![1usize];
        for row in 0..4 {
            match cuts >> row & 1 {
                0 => *lengths.last_mut().unwrap() += 1,
                _ => lengths.push(1),
            }
        }
        let spans = Spans::of(device, &lengths).unwrap();
        let framed = device.download(&ops::frame(device, &packed, &spans, 5, true).unwrap()).unwrap();
        assert!(lengths.iter().zip(framed.chunks_exact(18)).all(|(length, frame)| frame[0] == *length as f32));
    }
    // Samples among others have rows of their own.
    let some = Spans::some(device, &[2, 1, 2], 1..3).unwrap();
    assert!(ops::frame(device, &packed, &some, 2, true).is_ok_and(|framed| framed.shape() == [2, 3, 3]));
    assert!(Spans::some(device, &[2, 1, 2], 2..4).is_err() && Spans::some(device, &[2, 1, 2], 1..1).is_err());
}

#[test]
fn layer_norms_keep_the_bits_of_the_cpu_in_any_precision_and_frozen_ones_learn_nothing() {
    for shape in [vec![1, 1], vec![9, 16], vec![70, 45], vec![2, 3, 19]] {
        let c = shape[shape.len() - 1];
        let mut b = Builder::new(1);
        let layer = b.layer_norm("n", c, 1e-5);
        b.store.values = numbers(3, 2 * c);
        let x = numbers(4, shape.iter().product());
        for precision in [Precision::F32, Precision::Bf16] {
            b.store.precision = precision;
            compare(&layer, &b.store, (&x, &shape), USUAL, (0.0, 1e-5));
        }
        let how = How { frozen: &[ParamId(0), ParamId(1)], ..USUAL };
        compare(&layer, &b.store, (&x, &shape), how, (0.0, 0.0));
        compare(&layer, &b.store, (&x, &shape), How { need_dx: false, ..USUAL }, (0.0, 1e-5));
    }
}

#[test]
fn embeddings_look_up_and_learn_where_the_ids_lie_with_the_bits_of_the_cpu() {
    let (x, shape) = texts(&[20, 7, 13], 21, 6);
    for (eps, p) in [(None, 0.0), (None, 0.3), (Some(1e-5), 0.0), (Some(1e-5), 0.3)] {
        let mut b = Builder::new(1);
        let layer = b.embedding("e", ["word", "position", "kind"], (6, 7), (22, 2), eps, Mask { p, site: 1 });
        b.store.values = numbers(3, b.store.values.len());
        for precision in [Precision::F32, Precision::Bf16] {
            b.store.precision = precision;
            compare(&layer, &b.store, (&x, &shape), dropping(3), (0.0, 1e-5));
        }
        let how = How { frozen: &[ParamId(0), ParamId(2)], ..dropping(3) };
        compare(&layer, &b.store, (&x, &shape), how, (0.0, 1e-5));
    }
    let mut b = Builder::new(1);
    let words = b.embedding("e", ["word", "", ""], (6, 7), (0, 0), None, Mask::NONE);
    compare(&words, &b.store, (&x, &shape), USUAL, (0.0, 0.0));
}

#[test]
fn ids_on_a_gpu_that_the_table_does_not_have_and_empty_texts_are_refused() {
    if shared().is_none() {
        return;
    }
    let mut b = Builder::new(1);
    let layer = b.embedding("e", ["word", "position", ""], (6, 5), (3, 0), None, Mask::NONE);
    let bad =
        |ids: [f32; 4]| layer.forward(&there(&ids, &[1, 4]), &Pass::eval(&b.store), &mut Tape::default()).is_err();
    for ids in [
        [6.0, 0.0, 0.0, -1.0],
        [-1.0; 4],
        [0.5, 0.0, 0.0, -1.0],
        [1.0, -1.0, 1.0, -1.0],
        [f32::NAN, 0.0, 0.0, -1.0],
        [1.0; 4],
    ] {
        assert!(bad(ids), "{ids:?}");
    }
    assert!(!bad([5.0, 1.0, 0.0, -1.0]));
}

/// A block of 6 channels, two heads of 4 columns and 10 in the wide layer, with dropout everywhere if at all.
fn block(b: &mut Builder, act: Act, order: Order, fused: bool, p: f32) -> EncoderBlock {
    let drop = Mask { p, site: 4 };
    let attention = match fused {
        true => b.attention_fused(["qkv", "o"], 6, (2, 4), drop),
        false => b.attention(["q", "k", "v", "o"], 6, (2, 4), drop),
    };
    let norms = match order {
        Order::Before => ["n1", "n2"].map(|name| b.layer_norm(name, 6, 1e-5).into()),
        Order::After => [("n1", "a1", Place::Attention), ("n2", "a2", Place::Dense)]
            .map(|(name, adapter, place)| b.add_norm(name, adapter, place, 6, 1e-5)),
    };
    let (up, down) = (b.linear("up", (6, 10)), b.linear("down", (10, 6)));
    let noise = numbers(8, b.store.values.len());
    b.store.values.iter_mut().zip(noise).for_each(|(v, n)| *v += 0.3 * n);
    let drops = [1, 2, 3].map(|site| Mask { p, site });
    EncoderBlock { attention, norms, order, up, act: Activation(act), down, drops }
}

#[test]
fn encoder_blocks_go_on_where_their_rows_lie_also_under_dropout() {
    let (x, shape) = frames(&[5, 33, 1, 9], 35, 6);
    for (act, order, fused, p) in [
        (Act::Gelu, Order::After, false, 0.0),
        (Act::Relu, Order::After, true, 0.3),
        (Act::GeluTanh, Order::Before, false, 0.3),
        (Act::Gelu, Order::Before, true, 0.0),
    ] {
        let mut b = Builder::new(3);
        let block = block(&mut b, act, order, fused, p);
        compare(&block, &b.store, (&x, &shape), dropping(4), (2e-4, 2e-4));
        rounds_alike(&block, &b.store, (&x, &shape), dropping(4));
        // Query, key and value, or what is all of them.
        let count = if fused { 2 } else { 6 };
        let frozen: Vec<ParamId> = (0..count).map(ParamId).collect();
        let how = How { frozen: &frozen, need_dx: false, ..dropping(4) };
        compare(&block, &b.store, (&x, &shape), how, (2e-4, 2e-4));
    }
}

/// On a GPU where scores have little room.
fn crowded(values: &[f32], shape: &[usize]) -> nn::Array {
    static CROWDED: OnceLock<Arc<Device>> = OnceLock::new();
    let device = CROWDED.get_or_init(|| Arc::new(Device::open(0).unwrap().with_room(1500)));
    Placed::new(device.clone(), up(device, values, shape)).into()
}

#[test]
fn attention_goes_through_a_few_samples_at_a_time_where_their_scores_take_much() {
    if shared().is_none() {
        return;
    }
    // The first, the second and the others.
    let (x, shape) = frames(&[5, 33, 1, 9], 35, 6);
    for (fused, precision, bound) in [(false, Precision::F32, 2e-4), (true, Precision::Bf16, 5e-2)] {
        let mut b = Builder::new(3);
        let block = block(&mut b, Act::Gelu, Order::After, fused, 0.3);
        b.store.precision = precision;
        let [want, got] = [there as Lay, crowded].map(|lay| ran(&block, &b.store, (&x, &shape), dropping(4), lay));
        near(&down(&got.y), &down(&want.y), bound);
        near(&down(&got.dx.unwrap()), &down(&want.dx.unwrap()), bound);
        near(&got.flat, &want.flat, bound);
    }
}

/// What bf16 has of numbers, in f32.
fn coarse(values: &[f32], shape: &[usize]) -> nn::Array {
    there(&values.iter().map(|v| rounded(*v)).collect::<Vec<_>>(), shape)
}

/// The same in memory of bf16.
fn half(values: &[f32], shape: &[usize]) -> nn::Array {
    let nn::Array::Device(numbers) = there(values, shape) else { panic!("it lies on the host") };
    numbers.rounded().unwrap().into()
}

/// How a layer is built.
type Make = fn(&mut Builder) -> Box<dyn Layer>;

#[test]
fn what_lies_in_bf16_is_to_layers_of_sequences_what_it_is_in_f32() {
    if shared().is_none() {
        return;
    }
    let (x, shape) = frames(&[5, 33, 1, 9], 35, 6);
    let layers: [Make; 6] = [
        |b| Box::new(block(b, Act::Gelu, Order::After, false, 0.3)),
        |b| Box::new(block(b, Act::Gelu, Order::Before, true, 0.3)),
        |b| Box::new(b.layer_norm("n", 6, 1e-5)),
        |b| Box::new(b.lstm("l", 6, 5, false)),
        |b| Box::new(EachRow(Sequential::default().with(b.linear("l", (6, 5))))),
        |_| Box::new(Pool::Mean),
    ];
    for (layer, precision) in layers.iter().flat_map(|layer| [Precision::F32, Precision::Bf16].map(|p| (layer, p))) {
        let mut b = Builder::new(3);
        let layer = layer(&mut b);
        b.store.precision = precision;
        let [want, got] = [coarse as Lay, half].map(|lay| ran(&*layer, &b.store, (&x, &shape), dropping(4), lay));
        near(&down(&got.y), &down(&want.y), 0.0);
        near(&down(&got.dx.unwrap()), &down(&want.dx.unwrap()), 0.0);
        near(&got.flat, &want.flat, 0.0);
        assert_eq!(got.touched, want.touched);
    }
    let (dropout, store) = (Dropout { p: 0.3, site: 2 }, Builder::new(3).store);
    let (pass, layout) = (Pass { dropout: dropping(4).dropout, ..Pass::eval(&store) }, Layout::new(&store, &[], &[]));
    let [want, got] = [coarse as Lay, half].map(|lay| {
        let (x, mut tape, mut grads) = (lay(&x, &shape), Tape::default(), Gradients::new(&layout));
        let y = dropout.forward(&x, &pass, &mut tape).unwrap();
        let dx = dropout.backward(&x, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        [&x, &y, &dx].map(down)
    });
    assert_eq!(got, want);
    assert!(want[0] != want[1] && want[1] == want[2]);
}

#[test]
fn norms_of_sums_take_two_of_either_type_and_round_neither_sum_nor_output() {
    if shared().is_none() {
        return;
    }
    let (x, f, shape) = (numbers(4, 9 * 45), numbers(5, 9 * 45), [9, 45]);
    let mut b = Builder::new(1);
    let layer = b.add_norm("n", "a", Place::Dense, 45, 1e-5);
    b.store.values = numbers(3, 90);
    b.store.precision = Precision::Bf16;
    let run =
        |x: &nn::Array, f: &nn::Array| down(&layer.forward(x, f, &Pass::eval(&b.store), &mut Tape::default()).unwrap());
    let (exact, low) = (there as Lay, half as Lay);
    for (left, right) in [(exact, exact), (exact, low), (low, exact), (low, low)] {
        let (x, f) = (left(&x, &shape), right(&f, &shape));
        let [host_x, host_f] = [&x, &f].map(|numbers| here(&down(numbers), &shape));
        assert_eq!(run(&x, &f), run(&host_x, &host_f));
        assert_eq!(down(&x.plus(&f).unwrap()), down(&host_x.plus(&host_f).unwrap()));
    }
}

#[test]
fn an_lstm_goes_through_time_where_its_rows_lie() {
    for (lengths, last) in [([3, 1, 5, 4], false), ([3, 1, 5, 4], true), ([2; 4], false), ([1; 4], true)] {
        let mut b = Builder::new(5);
        let layer = b.lstm("l", 3, 5, last);
        b.store.values.iter_mut().for_each(|v| *v *= 1.5);
        let (x, shape) = frames(&lengths, 6, 3);
        compare(&layer, &b.store, (&x, &shape), USUAL, (3e-5, 1e-4));
        rounds_alike(&layer, &b.store, (&x, &shape), USUAL);
        let frozen: [&[ParamId]; 2] = [&[ParamId(0), ParamId(2)], &[ParamId(1), ParamId(3)]];
        for frozen in frozen {
            compare(&layer, &b.store, (&x, &shape), How { frozen, need_dx: false, ..USUAL }, (3e-5, 1e-4));
        }
    }
}

#[test]
fn steps_that_do_not_follow_each_other_are_refused() {
    let Some(device) = shared() else { return };
    let zeros = |rows: usize, width: usize| up(device, &vec![0.0; rows * width], &[rows, width]);
    let (mut gates, mut memories, mut states, wh) = (zeros(5, 8), zeros(5, 2), zeros(5, 2), zeros(8, 2));
    for (rows, before, fits) in [
        (0..3, None, true),
        (3..5, Some(0), true),
        (1..1, None, false),
        (4..6, Some(0), false),
        // Two samples that had one row at the time before, and a time before that is later.
        (2..4, Some(1), false),
        (2..4, Some(3), false),
    ] {
        let step = Step { rows, before };
        let all = [&mut gates, &mut memories, &mut states];
        assert_eq!(ops::lstm_step(device, all, &wh, &step).is_ok(), fits, "{step:?}");
        let (outer, mut dmemory) = (zeros(5, 2), zeros(3, 2));
        let back = ops::lstm_back(device, &mut gates, [&memories, &outer], &wh, None, &mut dmemory, &step);
        assert_eq!(back.is_ok(), fits, "{step:?}");
    }
}

/// All layers of a network for three classes, and its tensors.
fn network(name: &str, shape: Option<Shape>, p: f32) -> (Sequential, Store) {
    let text = Text::new(16, shape, String::new());
    let contract = Contract { text: Some(text), ..Contract::named("unit", 16, None).unwrap() };
    let asked = Asked { dropout: Inside { hidden: Some(p), attention: Some(p) }, ..Asked::default() };
    let network = Network::build_with(find(name).unwrap(), &contract, &HeadSection::default(), 3, 1, asked);
    let layers = network.units.into_iter().map(|unit| Box::new(unit.layer) as Box<dyn Layer>);
    (Sequential(layers.collect()), network.initial)
}

#[test]
fn whole_encoders_read_texts_and_learn_where_their_ids_lie() {
    let tiny = Shape {
        layers: 2,
        hidden: 12,
        heads: 3,
        wide: 20,
        words: 30,
        positions: 16,
        kinds: 2,
        eps: 1e-12,
        act: DenseAct::Gelu,
        dropout: 0.0,
        attention_dropout: 0.0,
        head_dropout: 0.0,
        pre_classifier: false,
    };
    for (name, shape) in [("bert", Some(tiny)), ("transformer_small", None), ("embedding_lstm", None)] {
        let (layers, store) = network(name, shape, 0.2);
        let (x, shape) = texts(&[4, 1, 3], 5, 30);
        compare(&layers, &store, (&x, &shape), dropping(3), (3e-4, 3e-4));
        if name == "bert" {
            rounds_alike(&layers, &store, (&x, &shape), dropping(3));
        }
    }
}
