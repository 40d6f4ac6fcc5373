//! Layers that are given arrays of a GPU go on there, or say that they cannot.

use tl_engine::{
    gpu::Placed,
    nn::{
        self, Act, Activation, Builder, GlobalAvgPool, Gradients, Layer, Layout, MaxPool, Pass, Relu, Residual,
        Sequential, Shortcut, Tape, array, host,
    },
};

use crate::{numbers, run, shared, up};

const ALL: [Act; 8] = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

/// Numbers on the GPU, for a layer; nothing where there is none.
fn placed(values: &[f32], shape: &[usize]) -> Option<nn::Array> {
    let device = shared()?;
    Some(Placed::new(device.clone(), up(device, values, shape)).into())
}

/// Runs a layer without parameters on the host and on the GPU, and compares what it gives and hands back.
fn check(layer: &dyn Layer, x: &[f32], shape: &[usize], tolerance: f32) {
    let store = Builder::new(1).store;
    let want = run(layer, &store, (x, shape), None, false);
    let (Some(x), Some(dy)) = (placed(x, shape), placed(&want.dy, &want.shape)) else { return };
    let layout = Layout::new(&store, &[], &[]);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&x, &pass, &mut tape).unwrap();
    assert_eq!(y.dims(), want.shape);
    let dx = layer.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    assert_eq!(dx.dims(), shape);
    for (got, want) in [(y, want.y), (dx, want.dx)] {
        assert!(host(&got).is_err(), "it came down on the way");
        let got = host(&got.to_tensor().unwrap()).unwrap().to_vec();
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "number {i}: {g} instead of {w}");
        }
    }
}

#[test]
fn activations_sums_and_means_go_on_where_their_input_lies() {
    let x = numbers(1, 3 * 5 * 4 * 7);
    let shape = [3, 5, 4, 7];
    for act in ALL {
        check(&Activation(act), &x, &shape, 0.0);
    }
    check(&GlobalAvgPool, &x, &shape, 1e-6);
    for act in [Act::None, Act::Relu] {
        let body = Sequential::default().with(Activation(Act::Silu));
        let block = Residual { body, shortcut: Shortcut::Identity, act };
        check(&block, &x, &shape, 0.0);
        check(&Sequential::default().with(block).with(GlobalAvgPool), &x, &shape, 2e-6);
    }
}

#[test]
fn what_lies_on_a_gpu_is_not_opened_as_the_hosts_and_comes_down_as_a_tensor() {
    let x = numbers(1, 12);
    let Some(there) = placed(&x, &[1, 3, 4, 1]) else { return };
    assert_eq!((there.dims(), there.count(), there.dims4().unwrap()), (&[1, 3, 4, 1][..], 12, (1, 3, 4, 1)));
    assert!(host(&there).is_err());
    let tensor = there.clone().to_tensor().unwrap();
    assert_eq!((tensor.dims(), host(&tensor).unwrap().to_vec()), (&[1, 3, 4, 1][..], x.clone()));
    let store = Builder::new(1).store;
    let layout = Layout::new(&store, &[], &[]);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    // A layer that knows the host only.
    assert!(MaxPool { k: 2, stride: 1, pad: 0 }.forward(&there, &pass, &mut tape).is_err());
    // A slope of the host for an output of the GPU.
    let here = array(x, &[1, 3, 4, 1]).unwrap();
    Relu.forward(&there, &pass, &mut tape).unwrap();
    assert!(Relu.backward(&here, &pass, &mut tape, &mut grads, true).is_err());
    assert!(there.plus(&here).is_err() && there.plus(&there).is_ok());
}
