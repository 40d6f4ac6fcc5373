//! Functions of single numbers.

use tl_engine::{
    gpu::ops,
    nn::{Act, Activation, Builder},
};

use crate::{device, numbers, run, same, up};

const ALL: [Act; 8] = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

#[test]
fn activations_have_the_bits_of_the_cpu_forward_and_backward() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    let mut x: Vec<f32> = numbers(1, 1003).iter().map(|v| v * 4.0).collect();
    let odd = [0.0, -0.0, 6.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, 100.0, -100.0, f32::MAX];
    x[..odd.len()].copy_from_slice(&odd);
    for act in ALL {
        let want = run(&Activation(act), &store, (&x, &[17, 59]), None, false);
        let xs = up(device, &x, &[17, 59]);
        let y = ops::activate(device, act, &xs).unwrap();
        same(device, &y, &want.y);
        let dy = up(device, &want.dy, &[17, 59]);
        same(device, &ops::activate_back(device, act, &xs, &dy).unwrap(), &want.dx);
        if matches!(act, Act::Relu | Act::Relu6) {
            same(device, &ops::activate_back(device, act, &y, &dy).unwrap(), &want.dx);
        }
    }
}

#[test]
fn sums_come_before_their_activation() {
    let Some(device) = device() else { return };
    let store = Builder::new(1).store;
    let (a, b) = (numbers(1, 700), numbers(2, 700));
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let (left, right) = (up(device, &a, &[700]), up(device, &b, &[700]));
    for act in [Act::None, Act::Silu] {
        let want = run(&Activation(act), &store, (&sum, &[1, 700]), None, false);
        same(device, &ops::add_activate(device, act, &left, &right).unwrap(), &want.y);
    }
    let mut tree = left;
    ops::add_into(device, &mut tree, &right).unwrap();
    same(device, &tree, &sum);
}

#[test]
fn biases_factors_and_fixed_normalisation_go_by_channel() {
    let Some(device) = device() else { return };
    let (x, bias) = (numbers(1, 65 * 7), numbers(2, 7));
    let mut y = up(device, &x, &[5, 13, 7]);
    ops::add_bias(device, &mut y, &up(device, &bias, &[7])).unwrap();
    let want: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + bias[i % 7]).collect();
    same(device, &y, &want);
    ops::scale(device, &mut y, 0.3).unwrap();
    ops::divide(device, &mut y, 7.0).unwrap();
    same(device, &y, &want.iter().map(|v| v * 0.3 / 7.0).collect::<Vec<_>>());
    let (wide, factors) = (up(device, &x, &[5, 13, 7]), up(device, &bias, &[7]));
    let y = ops::scale_channels(device, &wide, &factors).unwrap();
    assert_eq!(y.shape(), [5, 13, 7]);
    same(device, &y, &x.iter().enumerate().map(|(i, v)| v * bias[i % 7]).collect::<Vec<_>>());
    assert!(ops::scale_channels(device, &wide, &up(device, &bias[..6], &[6])).is_err());

    let mut b = Builder::new(1);
    let layer = b.normalize("n", &[0.5, 0.4, 0.1], &[0.3, 0.2, 0.7], &[2.0, 3.0, 1.0]);
    let x = numbers(3, 2 * 3 * 5 * 3);
    let want = run(&layer, &b.store, (&x, &[2, 3, 5, 3]), None, false);
    let factors: Vec<f32> = [(2.0f32, 0.3f32), (3.0, 0.2), (1.0, 0.7)].iter().map(|(a, v)| a / v.sqrt()).collect();
    let (mean, factors) = (up(device, &[0.5, 0.4, 0.1], &[3]), up(device, &factors, &[3]));
    let y = ops::normalize(device, &up(device, &x, &[2, 3, 5, 3]), &mean, &factors).unwrap();
    same(device, &y, &want.y);
}

#[test]
fn gates_are_those_of_their_image_and_channel() {
    let Some(device) = device() else { return };
    let (n, h, w, c) = (3, 4, 5, 7);
    let (x, dy, gates, means) = (numbers(1, 420), numbers(2, 420), numbers(3, 21), numbers(4, 21));
    let shape = [n, h, w, c];
    let at = |i: usize| i / (h * w * c) * c + i % c;
    let (factors, slopes) = (up(device, &gates, &[n, c]), up(device, &means, &[n, c]));
    let y = ops::gate(device, &up(device, &x, &shape), &factors).unwrap();
    same(device, &y, &x.iter().enumerate().map(|(i, v)| v * gates[at(i)]).collect::<Vec<_>>());
    let dx = ops::gate_back(device, &up(device, &dy, &shape), &factors, &slopes).unwrap();
    let want = dy.iter().enumerate().map(|(i, v)| v * gates[at(i)] + means[at(i)] * (1.0 / 20.0));
    same(device, &dx, &want.collect::<Vec<_>>());
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let Some(device) = device() else { return };
    let (a, b) = (up(device, &[1.0; 6], &[2, 3]), up(device, &[1.0; 6], &[3, 2]));
    let text = ops::add_activate(device, Act::None, &a, &b).unwrap_err().to_string();
    assert_eq!(text, "[2, 3] is expected, given [3, 2]");
    assert!(ops::add_bias(device, &mut up(device, &[1.0; 6], &[2, 3]), &b).is_err());
    assert!(device.upload::<f32>(&[], &[0, 3]).is_err() && device.upload(&[1.0f32], &[2]).is_err());
    assert!(a.reshaped(&[7]).is_err());
}
