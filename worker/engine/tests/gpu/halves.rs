//! Layers of images on memory of bf16: what is made of it is what is made of the same numbers in f32, rounded, bit by bit.

use tl_engine::{
    gpu::{
        Array, Device, Placed,
        ops::{self, Dropped, Element},
    },
    nn::{
        self, Act, Activation, Builder, DropPath, DropoutDraw, Gate, Layer, Layout, Pass, Residual, Sequential,
        Shortcut,
    },
    num::{bf16::rounded, rng::Philox},
};
use tl_proto::spec::Precision;

use crate::{
    device,
    image_layers::{here, passed, there},
    layers::down,
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
    for n in (1..=9).chain([1023, 1024, 1026]) {
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
    for c in [1, 3, 4, 7, 8, 33] {
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

#[test]
fn layers_hand_on_memory_of_bf16_with_the_bits_of_the_cpu_whatever_they_are_given() {
    let Some(device) = shared() else { return };
    let mut store = Builder::new(1).store;
    store.precision = Precision::Bf16;
    let layout = Layout::new(&store, &[], &[]);
    let draws = [5, 1 << 35, 77];
    let dropout = Some(DropoutDraw { rng: Philox::new(3, "dropout"), draws: &draws });
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
    let inner = |act| Sequential::default().with(Activation(act));
    let mut layers: Vec<Box<dyn Layer>> = Vec::new();
    for act in ALL {
        layers.push(Box::new(Activation(act)));
    }
    for act in [Act::None, Act::Relu] {
        layers.push(Box::new(Residual { body: inner(Act::Silu), shortcut: Shortcut::Identity, act }));
    }
    layers.push(Box::new(Gate { layers: inner(Act::Sigmoid) }));
    layers.push(Box::new(DropPath { p: 0.3, site: 9 }));
    let coarse = |values: &[f32], shape: &[usize]| -> nn::Array {
        here(&values.iter().map(|v| rounded(*v)).collect::<Vec<_>>(), shape)
    };
    let halved = |values: &[f32], shape: &[usize]| -> nn::Array {
        Placed::new(device.clone(), ops::to_bf16(device, &up(device, values, shape)).unwrap()).into()
    };
    for shape in [[3, 2, 4, 8], [3, 5, 3, 7]] {
        let x = numbers(1, shape.iter().product());
        let input = (&x[..], &shape[..]);
        for layer in &layers {
            let mut said = String::new();
            layer.describe(&mut said);
            let of_f32 = (passed(&**layer, &pass, input, true, here), passed(&**layer, &pass, input, true, there));
            let of_bf16 = (passed(&**layer, &pass, input, true, coarse), passed(&**layer, &pass, input, true, halved));
            for (want, got) in [of_f32, of_bf16] {
                for (want, got) in [(&want.y, &got.y), (want.dx.as_ref().unwrap(), got.dx.as_ref().unwrap())] {
                    assert!(matches!(got, nn::Array::Device(numbers) if numbers.is_half()), "{said} hands on f32");
                    assert_eq!(down(got), down(want), "{said}");
                }
            }
        }
        // Where gradients of several ways meet, their sum is f32.
        let sum = halved(&x, &shape).plus(&halved(&numbers(2, x.len()), &shape)).unwrap();
        let want = coarse(&x, &shape).plus(&coarse(&numbers(2, x.len()), &shape)).unwrap();
        assert_eq!(down(&sum), down(&want));
        assert!(down(&sum).iter().any(|v| *v != rounded(*v)));
    }
}
