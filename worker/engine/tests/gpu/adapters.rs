//! Small trained parts on layers whose own weights stay: they compute and learn where the input lies.

use tl_engine::{
    nn::{
        self, Act, Activation, AddNorm, Builder, ConvSpec, DropoutDraw, Gradients, Kind, Layer, Layout, Padding,
        ParamId, Pass, Place, Plan, Sequential, Store, Tape, Target, array, host,
    },
    num::rng::Philox,
};
use tl_proto::spec::Precision;

use crate::{
    layers::{down, near, placed},
    numbers, shared,
};

/// LoRA on layers called `l`, its change times `alpha / 3`.
fn lora(alpha: f64, dropout: f32) -> Plan {
    let kind = Kind::Lora { rank: 3, alpha, rslora: false, dropout, own: Default::default() };
    Plan { kind, targets: Target::list(["l"]), strict: true }
}

/// Factors of their outputs, or of their inputs.
fn ia3(input: bool) -> Plan {
    let feedforward = Target::list(input.then_some("l"));
    Plan { kind: Kind::Ia3 { feedforward, strict: true }, targets: Target::list(["l"]), strict: true }
}

/// The parts of all layers so far, and everything as after long training: nothing is zero or one.
fn trained(b: &mut Builder) -> Vec<ParamId> {
    let noise = numbers(9, b.store.values.len());
    b.store.values.iter_mut().zip(noise).for_each(|(v, by)| *v += 0.3 * by);
    b.adapted().params
}

/// Makes what layers take, in one memory or the other.
type Lay = fn(&[f32], &[usize]) -> nn::Array;

fn here(values: &[f32], shape: &[usize]) -> nn::Array {
    array(values.to_vec(), shape).unwrap()
}

fn there(values: &[f32], shape: &[usize]) -> nn::Array {
    placed(values, shape).unwrap()
}

/// What a grain comes to.
struct Came {
    y: nn::Array,
    /// Of each input, if wanted.
    dx: Vec<nn::Array>,
    flat: Vec<f32>,
    touched: Vec<ParamId>,
}

impl Came {
    fn new(y: nn::Array, dx: Vec<nn::Array>, mut grads: Gradients<'_>) -> Self {
        grads.come_down().unwrap();
        let touched = (0..grads.touched.len()).filter(|i| grads.touched[*i]).map(ParamId).collect();
        Self { y, dx, flat: grads.flat, touched }
    }

    fn is_near(&self, want: &Self, tolerance: f32) {
        assert_eq!(self.y.dims(), want.y.dims());
        near(&down(&self.y), &down(&want.y), tolerance);
        assert_eq!(self.dx.len(), want.dx.len());
        for (got, want) in self.dx.iter().zip(&want.dx) {
            assert_eq!(got.dims(), want.dims());
            near(&down(got), &down(want), tolerance);
        }
        near(&self.flat, &want.flat, tolerance);
        assert_eq!(self.touched, want.touched);
        assert!(self.dx.iter().chain([&self.y]).all(|array| host(array).is_err()), "it came down on the way");
    }
}

/// What comes in, and the draws of its samples where something is dropped.
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32],
    shape: &'a [usize],
    draws: Option<&'a [u64]>,
}

fn input<'a>(x: &'a [f32], shape: &'a [usize]) -> Input<'a> {
    Input { x, shape, draws: None }
}

/// Runs a layer of which `parts` are trained.
fn run(layer: &dyn Layer, store: &Store, parts: &[ParamId], input: Input<'_>, lay: Lay, need_dx: bool) -> Came {
    let layout = Layout::new(store, parts, &[]);
    let dropout = input.draws.map(|draws| DropoutDraw { rng: Philox::new(5, "dropout"), draws });
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&lay(input.x, input.shape), &pass, &mut tape).unwrap();
    let dy = lay(&numbers(77, y.count()), y.dims());
    let dx = layer.backward(&dy, &pass, &mut tape, &mut grads, need_dx).unwrap();
    assert!(grads.flat.iter().all(|v| *v == 0.0) || host(&y).is_ok(), "gradients came down on the way");
    // Nothing is left on the tape.
    assert!(layer.backward(&dy, &pass, &mut tape, &mut Gradients::new(&layout), need_dx).is_err());
    Came::new(y, dx.into_iter().filter(|_| need_dx).collect(), grads)
}

/// That a layer is the same on the GPU, whatever of its parts is trained, and that what stays learns nothing.
fn check(layer: &dyn Layer, store: &Store, parts: &[ParamId], input: Input<'_>, tolerance: f32) {
    if shared().is_none() {
        return;
    }
    for trained in [parts, &parts[parts.len() - 1..], &[]] {
        for need_dx in [true, false] {
            let [want, got] = [here, there].map(|lay: Lay| run(layer, store, trained, input, lay, need_dx));
            got.is_near(&want, tolerance);
            assert_eq!(got.touched, trained);
        }
    }
}

/// A sum in another order may be rounded to a neighbour in bf16, and a GPU may round to TF32 in another way.
const PRECISIONS: [(Precision, f32); 3] = [(Precision::F32, 3e-5), (Precision::Tf32, 1e-2), (Precision::Bf16, 3e-2)];

#[test]
fn parts_of_dense_layers_learn_where_their_input_lies() {
    for (precision, tolerance) in PRECISIONS {
        for plan in [lora(4.5, 0.0), lora(3.0, 0.0), ia3(false), ia3(true)] {
            let mut b = Builder::new(3);
            b.adapt(plan);
            let alone = b.linear("l", (7, 4));
            let parts = trained(&mut b);
            b.store.precision = precision;
            // More rows than one chain of a sum has.
            check(&alone, &b.store, &parts, input(&numbers(1, 70 * 7), &[70, 7]), tolerance);
            check(&alone, &b.store, &parts, input(&numbers(2, 6 * 7), &[2, 3, 7]), tolerance);
        }
    }
}

#[test]
fn layers_below_and_above_a_part_pass_on_what_it_needs() {
    for plan in [lora(4.5, 0.0), ia3(false), ia3(true)] {
        let mut b = Builder::new(3);
        b.adapt(plan);
        let layers = Sequential::default()
            .with(b.linear("below", (5, 7)))
            .with(Activation(Act::Gelu))
            .with(b.linear("l", (7, 6)))
            .with(Activation(Act::Relu))
            .with(b.linear("other.l", (6, 3)));
        let parts = trained(&mut b);
        assert!(parts.len() > 1);
        check(&layers, &b.store, &parts, input(&numbers(1, 9 * 5), &[9, 5]), 1e-4);
    }
}

#[test]
fn factors_are_f32_in_any_precision() {
    if shared().is_none() {
        return;
    }
    let mut b = Builder::new(3);
    b.adapt(ia3(false));
    // A sum of one product has one order, so the bits are the same.
    let layer = b.linear("l", (1, 4));
    let parts = trained(&mut b);
    b.store.precision = Precision::Bf16;
    let x = numbers(1, 5);
    let [want, got] = [here, there].map(|lay: Lay| run(&layer, &b.store, &parts, input(&x, &[5, 1]), lay, false));
    near(&down(&got.y), &down(&want.y), 0.0);
}

#[test]
fn what_is_dropped_in_front_of_a_part_is_what_the_host_drops() {
    let mut b = Builder::new(3);
    b.adapt(lora(4.5, 0.4));
    let layer = b.linear("l", (7, 4));
    let parts = trained(&mut b);
    let (x, shape) = (numbers(1, 6 * 7), [3, 2, 7]);
    for draws in [None, Some(&[11, 12, 13][..])] {
        check(&layer, &b.store, &parts, Input { draws, ..input(&x, &shape) }, 3e-5);
    }
}

#[test]
fn parts_of_convolutions_learn_where_their_input_lies() {
    let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
    let spec = ConvSpec { cin: 3, cout: 4, kernel: (3, 2), stride: 2, pad, bias: true };
    let shape = [2, 5, 6, 3];
    for (precision, tolerance) in PRECISIONS {
        for plan in [lora(4.5, 0.0), ia3(false), ia3(true)] {
            let mut b = Builder::new(3);
            b.adapt(plan);
            let layer = b.conv_spec("l", spec);
            let parts = trained(&mut b);
            b.store.precision = precision;
            check(&layer, &b.store, &parts, input(&numbers(1, 2 * 5 * 6 * 3), &shape), tolerance);
        }
    }
}

/// Runs a sum and the norm after it, of which `parts` are trained.
fn run_sum(layer: &AddNorm, store: &Store, parts: &[ParamId], [x, f]: [&[f32]; 2], shape: &[usize], lay: Lay) -> Came {
    let layout = Layout::new(store, parts, &[]);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&lay(x, shape), &lay(f, shape), &pass, &mut tape).unwrap();
    let dy = lay(&numbers(77, y.count()), y.dims());
    let (dx, df) = layer.backward(&dy, &pass, &mut tape, &mut grads).unwrap();
    assert!(layer.backward(&dy, &pass, &mut tape, &mut Gradients::new(&layout)).is_err());
    Came::new(y, vec![dx, df], grads)
}

#[test]
fn bottlenecks_learn_where_their_input_lies() {
    if shared().is_none() {
        return;
    }
    let (x, f, shape) = (numbers(1, 9 * 6), numbers(2, 9 * 6), [9, 6]);
    for (precision, tolerance) in PRECISIONS {
        for (twice, place) in [(false, Place::Dense), (true, Place::Attention), (false, Place::Attention)] {
            let mut b = Builder::new(3);
            let kind = Kind::Bottleneck { twice, reduction: 2 };
            b.adapt(Plan { kind, targets: Vec::new(), strict: false });
            let layer = b.add_norm("n", "a", place, 6, 1e-5);
            let all: Vec<ParamId> = (0..b.store.params.len()).map(ParamId).collect();
            let parts = trained(&mut b);
            // Pfeiffer's has no place behind the attention.
            assert_eq!(parts.len(), if twice || place == Place::Dense { 4 } else { 0 });
            b.store.precision = precision;
            for trained in [&parts, &all] {
                let [want, got] =
                    [here, there].map(|lay: Lay| run_sum(&layer, &b.store, trained, [&x, &f], &shape, lay));
                got.is_near(&want, tolerance);
                assert_eq!(&got.touched, trained);
            }
        }
    }
}
