//! Layers that are given arrays of a GPU go on there, or say that they cannot.

use tl_engine::{
    gpu::Placed,
    nn::{
        self, Act, Activation, Builder, ConvSpec, GlobalAvgPool, Gradients, Layer, Layout, Packs, Padding, Pass, Relu,
        Residual, Sequential, Shortcut, Store, Tape, array, host,
    },
};
use tl_proto::spec::Precision;

use crate::{numbers, run, shared, up};

const ALL: [Act; 8] = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

/// Numbers on the GPU, for a layer; nothing where there is none.
pub(crate) fn placed(values: &[f32], shape: &[usize]) -> Option<nn::Array> {
    let device = shared()?;
    Some(Placed::new(device.clone(), up(device, values, shape)).into())
}

pub(crate) fn near(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "number {i}: {g} instead of {w}");
    }
}

pub(crate) fn down(there: &nn::Array) -> Vec<f32> {
    host(&there.to_tensor().unwrap()).unwrap().to_vec()
}

/// Runs a layer that trains everything on the host and on the GPU, and compares what it gives, hands back and learns.
pub(crate) fn check(layer: &dyn Layer, store: &Store, (x, shape): (&[f32], &[usize]), tolerance: f32) {
    let want = run(layer, store, (x, shape), None, false);
    let (Some(x), Some(dy)) = (placed(x, shape), placed(&want.dy, &want.shape)) else { return };
    let mut params = Vec::new();
    layer.params(&mut params);
    let (layout, packs) = (Layout::new(store, &params, &[]), Packs::default());
    packs.begin(&layout, 2);
    let pass = Pass { layout: Some(&layout), packs: Some(&packs), ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&x, &pass, &mut tape).unwrap();
    assert_eq!(y.dims(), want.shape);
    let dx = layer.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    assert_eq!(dx.dims(), shape);
    assert!(host(&y).is_err() && host(&dx).is_err() && grads.flat.iter().all(|v| *v == 0.0), "it came down on the way");
    near(&down(&y), &want.y, tolerance);
    near(&down(&dx), &want.dx, tolerance);
    // Once, however often it is asked for.
    for _ in 0..2 {
        grads.come_down().unwrap();
        near(&grads.flat, &want.flat, tolerance);
    }
}

#[test]
fn activations_sums_and_means_go_on_where_their_input_lies() {
    let (x, shape, store) = (numbers(1, 3 * 5 * 4 * 7), [3, 5, 4, 7], Builder::new(1).store);
    for act in ALL {
        check(&Activation(act), &store, (&x, &shape), 0.0);
    }
    check(&GlobalAvgPool, &store, (&x, &shape), 1e-6);
    for act in [Act::None, Act::Relu] {
        let body = Sequential::default().with(Activation(Act::Silu));
        let block = Residual { body, shortcut: Shortcut::Identity, act };
        check(&block, &store, (&x, &shape), 0.0);
        check(&Sequential::default().with(block).with(GlobalAvgPool), &store, (&x, &shape), 2e-6);
    }
}

#[test]
fn dense_layers_multiply_and_learn_where_their_input_lies() {
    // A sum in another order may be rounded to a neighbour in bf16.
    for (precision, tolerance) in [(Precision::F32, 3e-5), (Precision::Bf16, 2e-2)] {
        let mut b = Builder::new(3);
        let layers = Sequential::default()
            .with(b.linear("in", (7, 5)))
            .with(Activation(Act::Silu))
            .with(b.linear("out", (5, 4)));
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 3) as f32 * 0.1);
        b.store.precision = precision;
        check(&layers, &b.store, (&numbers(1, 6 * 7), &[2, 3, 7]), tolerance);
    }
}

#[test]
fn weights_go_up_once_a_step_and_what_is_frozen_once_and_learns_nothing() {
    let mut b = Builder::new(3);
    let (trained, frozen) = (b.linear("trained", (3, 2)), b.linear("frozen", (3, 2)));
    let (Some(x), Some(dy)) = (placed(&numbers(1, 6), &[2, 3]), placed(&numbers(2, 4), &[2, 2])) else { return };
    let (mut store, mut params) = (b.store, Vec::new());
    trained.params(&mut params);
    let (layout, packs) = (Layout::new(&store, &params, &[]), Packs::default());
    let values = |store: &Store, layer: &dyn Layer| {
        let pass = Pass { layout: Some(&layout), packs: Some(&packs), ..Pass::eval(store) };
        down(&layer.forward(&x, &pass, &mut Tape::default()).unwrap())
    };
    packs.begin(&layout, 2);
    let before = [values(&store, &trained), values(&store, &frozen)];
    store.values.iter_mut().for_each(|v| *v += 1.0);
    assert_eq!([values(&store, &trained), values(&store, &frozen)], before);
    packs.end(&layout);
    packs.begin(&layout, 1);
    let now = values(&store, &trained);
    assert_ne!(now, before[0]);
    assert_eq!(values(&store, &frozen), before[1]);
    store.values.iter_mut().for_each(|v| *v += 1.0);
    assert_eq!(values(&store, &trained), now, "the way back of one grain finds it too");
    packs.end(&layout);
    packs.begin(&layout, 1);
    assert_ne!(values(&store, &trained), now);

    let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    frozen.forward(&x, &pass, &mut tape).unwrap();
    assert!(frozen.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().is_some());
    grads.come_down().unwrap();
    assert!(grads.flat.iter().all(|v| *v == 0.0) && grads.touched.iter().all(|touched| !touched));
}

#[test]
fn nothing_is_kept_of_what_stayed_there_before() {
    let Some(device) = shared() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        let mut b = Builder::new(3);
        let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
        let spec = ConvSpec { cin: 3, cout: 4, kernel: (3, 3), stride: 1, pad, bias: true };
        let layers = Sequential::default()
            .with(b.conv_spec("conv", spec))
            .with(b.norm("norm", 4))
            .with(GlobalAvgPool)
            .with(b.linear("out", (4, 3)));
        b.store.precision = precision;
        let (mut store, mut params) = (b.store, Vec::new());
        layers.params(&mut params);
        let (layout, packs) = (Layout::new(&store, &params, &[]), Packs::default());
        let (x, shape) = (numbers(1, 2 * 5 * 4 * 3), [2, 5, 4, 3]);
        let (x, dy) = (placed(&x, &shape).unwrap(), placed(&numbers(2, 6), &[2, 3]).unwrap());
        let said = |store: &Store, packs: Option<&Packs>| {
            let pass = Pass { layout: Some(&layout), packs, ..Pass::eval(store) };
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            let y = layers.forward(&x, &pass, &mut tape).unwrap();
            let dx = layers.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
            grads.come_down().unwrap();
            (down(&y), down(&dx), grads.flat)
        };
        // Other values each time, as after an update; the store has none of them.
        let every = [8, 9, 10].map(|seed| numbers(seed, layout.params_len()));
        let want = every.clone().map(|values| {
            let mut store = store.clone();
            layout.trained().for_each(|(id, slot)| {
                let at = store.params[id.0].range.clone();
                store.values[at].copy_from_slice(&values[slot]);
            });
            said(&store, None)
        });
        assert!(want[0] != want[1] && want[1] != want[2]);
        store.values.fill(f32::NAN);
        for grains in [1, 2] {
            packs.begin(&layout, grains);
            for (values, want) in every.iter().zip(&want) {
                packs.take_from(&layout, Some(&Placed::new(device.clone(), up(device, values, &[values.len()]))));
                // Twice, the second time from what is kept.
                for _ in 0..2 {
                    assert_eq!(said(&store, Some(&packs)), *want, "{precision:?} {grains}");
                }
            }
            packs.end(&layout);
            packs.take_from(&layout, None);
        }
    }
}

#[test]
fn what_is_rounded_for_products_is_exact_to_others() {
    let mut b = Builder::new(3);
    let pad = (Padding::Symmetric(0), Padding::Symmetric(0));
    let spec = ConvSpec { cin: 6, cout: 1, kernel: (1, 1), stride: 1, pad, bias: false };
    let [conv, _] = ["a", "b"].map(|name| b.conv_spec(name, spec));
    // To this one, both kernels are its scale and shift.
    let norm = Builder::new(3).layer_norm("n", 6, 1e-5);
    b.store.precision = Precision::Bf16;
    let (store, shape) = (b.store, [2, 1, 1, 6]);
    let Some(x) = placed(&numbers(1, 12), &shape) else { return };
    let said = |layer: &dyn Layer, pass: &Pass<'_>| down(&layer.forward(&x, pass, &mut Tape::default()).unwrap());
    let layers: [&dyn Layer; 2] = [&conv, &norm];
    let alone = layers.map(|layer| said(layer, &Pass::eval(&store)));
    // Whichever comes first, and again.
    for order in [[0, 1, 0, 1], [1, 0, 1, 0]] {
        let packs = Packs::default();
        let pass = Pass::again(&store, &packs);
        for which in order {
            assert_eq!(said(layers[which], &pass), alone[which], "{order:?}");
        }
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
    // A slope of the host for an output of the GPU.
    let here = array(x, &[1, 3, 4, 1]).unwrap();
    Relu.forward(&there, &pass, &mut tape).unwrap();
    assert!(Relu.backward(&here, &pass, &mut tape, &mut grads, true).is_err());
    assert!(there.plus(&here).is_err() && there.plus(&there).is_ok());
}
