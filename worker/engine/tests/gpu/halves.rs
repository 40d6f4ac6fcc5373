//! Layers of images on memory of bf16: what is made of it is what is made of the same numbers in f32, rounded, bit by bit.

use tl_engine::{
    Error,
    gpu::{
        Array, Device,
        ops::{self, Dropped, Element},
    },
    nn::{
        self, Act, Activation, Builder, DropPath, Dropout, DropoutDraw, FlattenChannels, Gate, GlobalAvgPool, Graph,
        Layer, Layout, MaxPool, Padding, ParamId, Pass, Residual, Scale, Sequential, Shortcut, Store, Tape,
    },
    num::{bf16::rounded, rng::Philox},
};
use tl_proto::spec::Precision;

use crate::{
    device,
    image_layers::{Passed, Sends, coarse_here, halves, here, is_half, passed_of, there},
    layers::{down, near},
    numbers, same, shared, up,
};

const ALL: [Act; 8] = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

fn rounds<T: Element>(device: &Device, got: Array<T>, want: &Array) {
    let want: Vec<f32> = device.download(want).unwrap().into_iter().map(rounded).collect();
    same(device, &T::wide(device, got).unwrap(), &want);
}

#[test]
fn functions_of_single_numbers_round_once_whatever_their_count() {
    let Some(device) = device() else { return };
    for n in (1..=17).chain([1023, 1024, 1026]) {
        let [x, y] = [1, 2].map(|seed| {
            let wild: Vec<f32> = numbers(seed, n).iter().map(|v| v * 4.0).collect();
            ops::to_bf16(device, &up(device, &wild, &[n])).unwrap()
        });
        let [wide_x, wide_y] = [&x, &y].map(|half| ops::from_bf16(device, half).unwrap());
        for act in ALL {
            let (got, want) = (ops::activate(device, act, &x), ops::activate(device, act, &wide_x));
            rounds(device, got.unwrap(), &want.unwrap());
            let got = ops::activate_back(device, act, &x, &y).unwrap();
            rounds(device, got, &ops::activate_back(device, act, &wide_x, &wide_y).unwrap());
            let got = ops::add_activate(device, act, &x, &y).unwrap();
            rounds(device, got, &ops::add_activate(device, act, &wide_x, &wide_y).unwrap());
        }
    }
}

#[test]
fn gates_and_stochastic_depth_round_once_whatever_the_number_of_channels() {
    let Some(device) = device() else { return };
    let dropped = Dropped::new(device, Philox::new(3, "dropout"), 2, 0.4, &[5, 1 << 35, 77]).unwrap();
    for c in [1, 3, 4, 7, 8, 12, 24, 33] {
        let shapes = [(1, [3, 2, 5, c]), (2, [3, 1, 1, c]), (3, [3, 1, 1, c])];
        let own = shapes.map(|(seed, shape)| {
            ops::to_bf16(device, &up(device, &numbers(seed, shape.iter().product()), &shape)).unwrap()
        });
        let wide = own.each_ref().map(|half| ops::from_bf16(device, half).unwrap());
        let ([x, gates, means], [wide_x, wide_gates, wide_means]) = (&own, &wide);
        let got = ops::gate(device, x, gates).unwrap();
        rounds(device, got, &ops::gate(device, wide_x, wide_gates).unwrap());
        let got = ops::gate_back(device, x, gates, means).unwrap();
        rounds(device, got, &ops::gate_back(device, wide_x, wide_gates, wide_means).unwrap());
        let got = ops::drop_path(device, x, &dropped).unwrap();
        rounds(device, got, &ops::drop_path(device, wide_x, &dropped).unwrap());
    }
}

/// Layers of images that multiply nothing, of so many channels, all of which round.
fn layers(b: &mut Builder, c: usize) -> Vec<Box<dyn Layer>> {
    let inner = |act| Sequential::default().with(Activation(act));
    let mut layers: Vec<Box<dyn Layer>> = Vec::new();
    for act in ALL {
        layers.push(Box::new(Activation(act)));
    }
    for act in [Act::None, Act::Relu] {
        layers.push(Box::new(Residual { body: inner(Act::Silu), shortcut: Shortcut::Identity, act }));
        let shortcut = Shortcut::Layers(inner(Act::Gelu));
        layers.push(Box::new(Residual { body: inner(Act::Silu), shortcut, act }));
        let mut long = Graph::default();
        let small = long.layer(Graph::INPUT, MaxPool { k: 3, stride: 2, pad: 1 });
        long.concat(&[small, small]);
        let (body, shortcut) = (Sequential::default().with(long), Shortcut::Subsample { channels: 2 * c });
        layers.push(Box::new(Residual { body, shortcut, act }));
    }
    layers.push(Box::new(Gate { layers: inner(Act::Sigmoid) }));
    layers.push(Box::new(DropPath { p: 0.3, site: 9 }));
    layers.push(Box::new(b.depthwise("d", c, 3, 2, Padding::Same)));
    let norm = b.norm("n", c).act(Act::Silu);
    b.store.buffer_values = numbers(6, 2 * c).iter().map(|v| v.abs() + 0.5).collect();
    layers.push(Box::new(Sequential::default().with(norm).with(Activation(Act::Tanh))));
    layers
}

/// Where an input and its slope come from: the same numbers on the host and on the GPU, whatever they are, and those of bf16.
const SENDS: [[Sends; 2]; 2] = [[here, there], [coarse_here, halves]];

/// Every pair of an input and a slope: both on the host, and both on the GPU.
fn pairs() -> impl Iterator<Item = [[Sends; 2]; 2]> {
    let both = |[x, x_there]: [Sends; 2]| SENDS.map(|[slope, slope_there]| [[x, slope], [x_there, slope_there]]);
    SENDS.into_iter().flat_map(both)
}

fn ran(layer: &dyn Layer, pass: &Pass<'_>, input: (&[f32], &[usize]), [x, slope]: [Sends; 2]) -> Passed {
    passed_of(layer, pass, input, true, [&x, &slope])
}

#[test]
fn layers_hand_on_memory_of_bf16_with_the_bits_of_the_cpu_whatever_they_are_given() {
    if shared().is_none() {
        return;
    }
    let draws = [5, 1 << 35, 77];
    let dropout = Some(DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws });
    for shape in [[3, 2, 4, 8], [3, 5, 3, 7]] {
        let mut b = Builder::new(1);
        let layers = layers(&mut b, shape[3]);
        let mut store = b.store;
        store.precision = Precision::Bf16;
        let x = numbers(1, shape.iter().product());
        for layer in &layers {
            let (mut said, mut params) = (String::new(), Vec::new());
            layer.describe(&mut said);
            layer.params(&mut params);
            for trained in [&[][..], &params[..]] {
                let layout = Layout::new(&store, trained, &[]);
                let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
                for [on_host, on_gpu] in pairs() {
                    let [want, got] = [on_host, on_gpu].map(|sends| ran(&**layer, &pass, (&x, &shape), sends));
                    for (want, got) in [(&want.y, &got.y), (want.dx.as_ref().unwrap(), got.dx.as_ref().unwrap())] {
                        assert!(is_half(got), "{said} hands on f32");
                        assert_eq!(down(got), down(want), "{said}");
                    }
                    near(&got.flat, &want.flat, 5e-5);
                }
            }
        }
    }
}

#[test]
fn what_rounds_nothing_has_the_bits_of_the_cpu_on_memory_of_bf16_too() {
    if shared().is_none() {
        return;
    }
    let draws = [5, 1 << 35, 77];
    let dropout = Some(DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws });
    for shape in [[3, 4, 5, 8], [3, 5, 3, 7]] {
        let (mut b, c) = (Builder::new(1), shape[3]);
        // Slices that overlap, a sum, one value that is read three times, and two joins: sums in f32 of parts that are bf16.
        let mut graph = Graph::default();
        let (left, right) = (graph.channels(Graph::INPUT, 0..c - 2), graph.channels(Graph::INPUT, 2..c));
        let sum = graph.sum(left, right);
        let bent = graph.layer(sum, Activation(Act::Silu));
        let inner = graph.concat(&[bent, sum]);
        let pooled = graph.layer(inner, MaxPool { k: 3, stride: 1, pad: 1 });
        let alone = graph.layer(right, b.depthwise("d", c - 2, 3, 1, Padding::Symmetric(1)));
        graph.concat(&[pooled, Graph::INPUT, left, alone]);
        let mut store = b.store;
        store.precision = Precision::Bf16;
        let (x, layout) = (numbers(1, shape.iter().product()), Layout::new(&store, &[ParamId(0)], &[]));
        let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
        let layers: [&dyn Layer; 4] = [&graph, &Scale(0.17), &FlattenChannels, &Dropout { p: 0.3, site: 9 }];
        for layer in layers {
            let mut said = String::new();
            layer.describe(&mut said);
            for [on_host, on_gpu] in pairs() {
                let [want, got] = [on_host, on_gpu].map(|sends| ran(layer, &pass, (&x, &shape), sends));
                assert_eq!(down(&got.y), down(&want.y), "{said}");
                let [dx, wanted] = [got.dx, want.dx].map(Option::unwrap);
                assert!(!is_half(&dx), "{said} hands back bf16");
                assert_eq!(down(&dx), down(&wanted), "{said} backward");
                near(&got.flat, &want.flat, 5e-5);
            }
        }
        // Where gradients of several ways meet, their sum is f32.
        let more = numbers(2, x.len());
        let sum = halves(&x, &shape).plus(&halves(&more, &shape)).unwrap();
        let want = coarse_here(&x, &shape).plus(&coarse_here(&more, &shape)).unwrap();
        assert_eq!(down(&sum), down(&want));
        assert!(down(&sum).iter().any(|v| *v != rounded(*v)));
    }
}

#[test]
fn what_lies_in_bf16_is_refused_where_nothing_is_rounded_to_it() {
    if shared().is_none() {
        return;
    }
    for precision in [Precision::F32, Precision::Tf32] {
        let store = Store { precision, ..Builder::new(1).store };
        let layers: [&dyn Layer; 3] = [&Activation(Act::Relu), &GlobalAvgPool, &MaxPool { k: 2, stride: 1, pad: 0 }];
        for layer in layers {
            let made = |x: &nn::Array| layer.forward(x, &Pass::eval(&store), &mut Tape::default());
            let (x, shape) = (numbers(1, 24), [1, 2, 3, 4]);
            assert!(matches!(made(&halves(&x, &shape)), Err(Error::Internal(_))) && made(&there(&x, &shape)).is_ok());
        }
    }
}
