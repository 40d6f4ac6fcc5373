//! Finite differences and comparisons, for the tests of layers and losses.

use candle_core::{Tensor, Var};
use tl_proto::spec::Precision;

use super::{Array, BufferId, DropoutDraw, Gradients, Layer, Layout, OnHost, ParamId, Pass, Store, Tape, host, tensor};
use crate::num::{bf16, rng::Philox, tf32};

/// Reproducible normal numbers.
pub fn input(shape: &[usize]) -> Tensor {
    let mut s = Philox::new(9, "input").stream(shape.iter().product::<usize>() as u64, 0);
    tensor((0..shape.iter().product()).map(|_| s.normal()).collect(), shape).unwrap()
}

/// The same for a layer.
pub fn array(shape: &[usize]) -> Array {
    input(shape).into()
}

/// `count` of the parts along an axis, from the one with number `first` on.
pub fn part(x: &Array, axis: usize, first: usize, count: usize) -> Array {
    x.on_host().unwrap().narrow(axis, first, count).unwrap().contiguous().unwrap().into()
}

/// `[n, h, w, c]` as `[n, c, h, w]`.
pub fn first(x: &Array) -> Tensor {
    x.on_host().unwrap().permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

/// `[n, c, h, w]` as `[n, h, w, c]`.
pub fn last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

pub fn assert_close(a: &impl OnHost, b: &impl OnHost, tolerance: f32) {
    let (a, b) = (a.on_host().unwrap(), b.on_host().unwrap());
    assert_eq!(a.dims(), b.dims());
    let b = b.contiguous().unwrap();
    let (a, b) = (host(a).unwrap(), host(&b).unwrap());
    for (i, (a, b)) in a.iter().zip(b.iter()).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "element {i}: {a} against {b}");
    }
}

/// Compares a loss of `x` with a formula in f64 of the numbers of `x` in order, and its gradient with the formula's central
/// differences.
pub fn check_loss(what: &str, loss: &Tensor, x: &Var, formula: impl Fn(&[f64]) -> f64) {
    let mut at: Vec<f64> = host(x.as_tensor()).unwrap().iter().map(|v| f64::from(*v)).collect();
    let (got, want) = (f64::from(host(loss).unwrap()[0]), formula(&at));
    assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{what}: {got} for {want}");
    let gradient = loss.backward().unwrap().get(x).unwrap().contiguous().unwrap();
    let gradient = host(&gradient).unwrap().to_vec();
    assert!(gradient.len() == at.len() && gradient.iter().any(|g| g.abs() > 1e-3), "{what}: {gradient:?}");
    for (i, got) in gradient.into_iter().enumerate() {
        let kept = at[i];
        let mut moved = |by: f64| {
            at[i] = kept + by;
            formula(&at)
        };
        let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        at[i] = kept;
        assert!((f64::from(got) - want).abs() < 1e-4 * (1.0 + want.abs()), "{what}[{i}]: {got} for {want}");
    }
}

/// Compares every parameter's and the input's gradient of `Σ y·c` (fixed random `c`) with central differences.
pub fn check_gradients(layer: &dyn Layer, store: &Store, shape: &[usize]) {
    let (mut params, mut norms) = (Vec::new(), Vec::new());
    layer.params(&mut params);
    layer.norms(&mut norms);
    let norms: Vec<BufferId> = norms.iter().map(|n| n.0).collect();
    check_gradients_of(layer, store, shape, &Layout::new(store, &params, &norms));
}

pub fn check_gradients_of(layer: &dyn Layer, store: &Store, shape: &[usize], layout: &Layout) {
    check_gradients_under(layer, store, shape, layout, None);
}

/// The same with dropout.
pub fn check_gradients_under(
    layer: &dyn Layer,
    store: &Store,
    shape: &[usize],
    layout: &Layout,
    dropout: Option<DropoutDraw<'_>>,
) {
    let x = array(shape);
    let run = |store: &Store, x: &Array| {
        let pass = Pass { layout: Some(layout), dropout, ..Pass::eval(store) };
        let mut tape = Tape::default();
        let y = layer.forward(x, &pass, &mut tape).unwrap();
        (y, tape)
    };
    let (y, mut tape) = run(store, &x);
    let c = array(y.dims());
    let dot = |y: &Array| -> f64 {
        let (y, c) = (host(y).unwrap(), host(&c).unwrap());
        y.iter().zip(c.iter()).map(|(y, c)| f64::from(*y) * f64::from(*c)).sum()
    };
    let pass = Pass { layout: Some(layout), dropout, ..Pass::eval(store) };
    let mut grads = Gradients::new(layout);
    let dx = layer.backward(&c, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    // Where two step sizes disagree the function has a kink between them, and no derivative to compare with.
    let (mut compared, mut kinks) = (0, 0);
    let mut check = |what: &str, ours: f32, moved: &dyn Fn(f32) -> f64| {
        let slope = |step: f32| (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        let (numeric, finer) = (slope(1e-2), slope(4e-3));
        let close = |a: f64, b: f64| (a - b).abs() < 2e-2 * (1.0 + b.abs());
        if close(numeric, finer) {
            compared += 1;
            // A kink may be so near that both steps went over it; a short one stays on our side.
            let ours = f64::from(ours);
            assert!(close(ours, numeric) || close(ours, slope(1e-3)), "{what}: {ours} against {numeric}");
        } else {
            kinks += 1;
        }
    };
    let values = host(&x).unwrap().to_vec();
    for i in (0..values.len()).step_by(1 + values.len() / 40) {
        check(&format!("dx[{i}]"), host(&dx).unwrap()[i], &|by| {
            let mut v = values.clone();
            v[i] += by;
            dot(&run(store, &super::array(v, shape).unwrap()).0)
        });
    }
    for (ParamId(p), slot) in layout.trained() {
        let range = store.params[p].range.clone();
        for i in (0..range.len()).step_by(1 + range.len() / 20) {
            check(&format!("{}[{i}]", store.params[p].name), grads.flat[slot.start + i], &|by| {
                let mut store = store.clone();
                store.values[range.start + i] += by;
                dot(&run(&store, &x).0)
            });
        }
        assert!(grads.touched[p]);
    }
    assert!(kinks * 4 <= compared, "{kinks} kinks, {compared} compared");
    check_matrices_are_rounded(layer, store, &x, layout, dropout);
}

/// That in bf16 a layer sees of a matrix what bf16 has of it, forward and backward, and in TF32 what TF32 has: one that reads
/// the store past its [`Pass`] would also see the rest.
fn check_matrices_are_rounded(
    layer: &dyn Layer,
    store: &Store,
    x: &Array,
    layout: &Layout,
    dropout: Option<DropoutDraw<'_>>,
) {
    let mut said = String::new();
    layer.describe(&mut said);
    // Kernels of one channel each are f32 where products are TF32.
    let whole = |precision: Precision, shape: &[usize]| {
        precision == Precision::Tf32 && said.contains("depthwise:") && shape.len() == 4 && shape[1] == 1
    };
    let run = |precision: Precision, rounded: fn(f32) -> f32, rest: f32| {
        let mut store = Store { precision, ..store.clone() };
        for entry in store.params.iter().filter(|e| e.decays && !whole(precision, &e.shape)) {
            store.values[entry.range.clone()].iter_mut().for_each(|v| *v = rounded(*v) * rest);
        }
        let pass = Pass { layout: Some(layout), dropout, ..Pass::eval(&store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(layout));
        let y = layer.forward(x, &pass, &mut tape).unwrap();
        let dx = layer.backward(&array(y.dims()), &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        [y, dx].map(|t| host(&t).unwrap().to_vec())
    };
    // A quarter of the smallest step relative to a number.
    let same = |precision: Precision, rounded: fn(f32) -> f32, rest: f32| {
        let alike = run(precision, rounded, 1.0) == run(precision, rounded, 1.0 + rest);
        assert!(alike, "in {precision} a matrix is read past the pass: `Pass::weight` is how products ask");
    };
    same(Precision::Bf16, bf16::rounded, 1.0 / 1024.0);
    same(Precision::Tf32, tf32::rounded, 1.0 / 8192.0);
}
