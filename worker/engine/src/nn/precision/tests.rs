//! Each product in bf16 is that in f32 of rounded numbers, rounded, and in TF32 that of rounded numbers: bit by bit.

use super::*;
use crate::{
    Result,
    nn::{
        Array, Builder, ConvSpec, DropoutDraw, Gradients, Kind, Layer, Layout, Linear, Mask, Padding, Part, Plan,
        Ragged, Store, Tape, Target, array, attention, host, lstm, rows, testing,
    },
    num::{
        gemm::{self, Packed, View, gemm},
        rng::Philox,
    },
};

const BOTH: [Precision; 2] = [Precision::Tf32, Precision::Bf16];

/// What products take of an array.
fn taken(x: &Array, precision: Precision) -> Array {
    array(take(&values(x), precision), x.dims()).unwrap()
}

pub(super) fn take(x: &[f32], precision: Precision) -> Vec<f32> {
    precision.operand(x).into_owned()
}

pub(super) fn values(x: &Array) -> Vec<f32> {
    host(x).unwrap().to_vec()
}

pub(super) fn within(store: &Store, precision: Precision) -> Store {
    Store { precision, ..store.clone() }
}

/// Every parameter, rounded: in bf16 vectors too.
fn coarse(store: &Store, precision: Precision) -> Store {
    let mut coarse = store.clone();
    for entry in store.params.iter().filter(|e| e.decays || precision == Precision::Bf16) {
        precision.take(&mut coarse.values[entry.range.clone()]);
    }
    coarse
}

fn all(store: &Store) -> Layout {
    Layout::new(store, &(0..store.params.len()).map(ParamId).collect::<Vec<_>>(), &[])
}

/// What a layer gives, the gradient of its input, and those of its parameters.
pub(super) fn run(
    layer: &dyn Layer,
    store: &Store,
    x: &Array,
    dy: impl Fn(&[usize]) -> Array,
) -> (Array, Array, Vec<f32>) {
    let layout = all(store);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(x, &pass, &mut tape).unwrap();
    let dx = layer.backward(&dy(y.dims()), &pass, &mut tape, &mut grads, true).unwrap().unwrap();
    (y, dx, grads.flat)
}

fn check(layer: &dyn Layer, store: &Store, shape: &[usize]) {
    for precision in BOTH {
        check_in(precision, layer, store, shape);
    }
}

fn check_in(precision: Precision, layer: &dyn Layer, store: &Store, shape: &[usize]) {
    let x = testing::array(shape);
    let (y, dx, dw) = run(layer, &within(store, precision), &x, testing::array);
    let (wy, wdx, mut wdw) =
        run(layer, &coarse(store, precision), &taken(&x, precision), |s| taken(&testing::array(s), precision));
    assert_eq!(values(&y), precision.product(values(&wy)), "outputs in {precision}");
    assert_eq!(values(&dx), precision.product(values(&wdx)), "gradient of the input in {precision}");
    let (exact, exact_dx, exact_dw) = run(layer, store, &x, testing::array);
    if precision == Precision::Tf32 {
        // Slopes themselves add up to the gradients of biases.
        let layout = all(store);
        for (_, slot) in layout.trained().filter(|(id, _)| !store.params[id.0].decays) {
            wdw[slot.clone()].copy_from_slice(&exact_dw[slot]);
        }
        assert_ne!(take(&values(&y), precision), values(&y), "what a product gives is f32");
    }
    assert_eq!(dw, wdw, "gradients of parameters are f32 in {precision}");
    assert_ne!(take(&dw, precision), dw);
    let near = if precision == Precision::Tf32 { 5e-3 } else { 3e-2 };
    for (got, exact) in [(&y, &exact), (&dx, &exact_dx)] {
        assert_ne!(values(got), values(exact));
        testing::assert_close(got, exact, near);
    }
}

/// Parameters that are nowhere zero.
fn shaken(mut b: Builder) -> Store {
    b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 + (i % 7) as f32 / 31.0);
    b.store
}

#[test]
fn dense_layers_and_convolutions_round_what_they_take_and_give() {
    let mut b = Builder::new(1);
    let linear = b.linear("l", (37, 5));
    let store = shaken(b);
    check(&linear, &store, &[9, 37]);
    check(&linear, &store, &[2, 3, 37]);
    // Gathered, by taps, and of single pixels; with bias.
    for (cin, k, stride) in [(3, 3, 2), (9, 3, 1), (9, 1, 1), (9, 3, 2)] {
        let mut b = Builder::new(1);
        let pad = Padding::Symmetric(k / 2);
        let spec = ConvSpec { cin, cout: 6, kernel: (k, k), stride, pad: (pad, pad), bias: true };
        let conv = b.conv_spec("c", spec);
        check(&conv, &shaken(b), &[2, 7, 6, cin]);
    }
    for (c, k, stride) in [(5, 3, 1), (40, 5, 2)] {
        let mut b = Builder::new(1);
        let conv = b.depthwise("d", c, k, stride, Padding::Same);
        let store = shaken(b);
        check_in(Precision::Bf16, &conv, &store, &[2, 7, 6, c]);
        // No unit that multiplies matrices has a part in it.
        let [want, got] = [Precision::F32, Precision::Tf32].map(|precision| {
            let (y, dx, dw) = run(&conv, &within(&store, precision), &testing::array(&[2, 7, 6, c]), testing::array);
            [values(&y), values(&dx), dw]
        });
        assert_eq!(got, want);
    }
}

#[test]
fn attention_rounds_scores_probabilities_and_what_they_pick() {
    for precision in BOTH {
        for p in [0.0, 0.3] {
            check_attention(precision, false, Mask { p, site: 4 }, &[3, 1, 4]);
            check_attention(precision, true, Mask { p, site: 4 }, &[3, 1, 4]);
        }
        // More scores than one task of rounding has, and more rows than a block of a product.
        check_attention(precision, true, Mask { p: 0.3, site: 4 }, &[2, 131]);
        check_attention(precision, false, Mask::NONE, &[131]);
    }
}

/// Against its layers, and products of one head of one sample at a time.
fn check_attention(precision: Precision, fused: bool, mask: Mask, lengths: &[usize]) {
    let (heads, d, c) = (2, 5, 6);
    let w = heads * d;
    let mut b = Builder::new(2);
    let layer = match fused {
        true => b.attention_fused(["qkv", "o"], c, (heads, d), mask),
        false => b.attention(["q", "k", "v", "o"], c, (heads, d), mask),
    };
    let store = within(&b.store, precision);
    let layout = all(&store);
    let ragged = Ragged { lengths: lengths.to_vec(), room: *lengths.iter().max().unwrap() };
    let draws: Vec<u64> = (0..lengths.len() as u64).map(|i| 11 + i).collect();
    let dropout = Some(DropoutDraw { rng: Philox::new(5, "dropout"), draws: &draws });
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(&store) };
    let (rows, x) = (ragged.rows(), testing::array(&[ragged.rows(), c]));
    let dy = testing::array(&[rows, c]);
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&x, &ragged, &pass, &mut tape).unwrap();
    let dx = layer.backward(&dy, &ragged, &pass, &mut tape, &mut grads, true).unwrap().unwrap();

    let (mut tape, mut expected) = (Tape::default(), Gradients::new(&layout));
    let made: Vec<Array> = layer.projections.iter().map(|l| l.forward(&x, &pass, &mut tape).unwrap()).collect();
    let kept: Vec<Vec<f32>> = made.iter().map(|m| take(&values(m), precision)).collect();
    let product = |a: View<'_>, b: View<'_>, (m, n, k)| {
        let mut out = vec![0.0; m * n];
        gemm(&mut out, n, a, b, (m, n, k), false);
        precision.product(out)
    };
    let scale = 1.0 / (d as f32).sqrt();
    let stride = 3 * w / kept.len();
    // Query, key and value: which matrix, and which column they begin at.
    let places = [0, 1, 2].map(|i| if fused { (0, i * w) } else { (i, 0) });
    let part = |all: &[f32], stride: usize, (start, t): (usize, usize), column: usize| -> Vec<f32> {
        all[start * stride..(start + t) * stride]
            .chunks_exact(stride)
            .flat_map(|r| &r[column..][..d])
            .copied()
            .collect()
    };
    let place = |all: &mut [f32], stride: usize, start: usize, column: usize, own: &[f32]| {
        let rows = all[start * stride..].chunks_exact_mut(stride).zip(own.chunks_exact(d));
        rows.for_each(|(row, own)| row[column..][..d].copy_from_slice(own));
    };
    let shown = |p: &[f32], mask: &[f32]| -> Vec<f32> {
        take(&p.iter().zip(mask).map(|(p, m)| p * m).collect::<Vec<_>>(), precision)
    };
    let samples: Vec<(usize, usize)> = ragged.starts().into_iter().zip(lengths.iter().copied()).collect();
    let mut out = vec![0.0; rows * w];
    let mut chances = Vec::new();
    for (drops, &(start, t)) in mask.of(&pass, lengths.len()).unwrap().into_iter().zip(&samples) {
        for h in 0..heads {
            let [q, k, v] = places.map(|(m, first)| part(&kept[m], stride, (start, t), first + h * d));
            let mut p = product(View::rows(&q, d), View::transposed(&k, d), (t, t, d));
            attention::softmax(&mut p, t, scale, &mut vec![0.0; 2 * t]);
            let mut drawn = vec![1.0; t * t];
            drops.iter().for_each(|drops| drops.from(h * t * t).scale(&mut drawn));
            assert!(t < 100 || drawn.contains(&0.0) == (mask.p > 0.0));
            let coarse = shown(&p, &drawn);
            place(&mut out, w, start, h * d, &product(View::rows(&coarse, t), View::rows(&v, d), (t, d, t)));
            chances.push((p, drawn));
        }
    }
    let last = layer.out.forward(&array(out, &[rows, w]).unwrap(), &pass, &mut tape).unwrap();
    assert_eq!(values(&y), values(&last));
    let g = layer.out.backward(&dy, &pass, &mut tape, &mut expected, true).unwrap().unwrap();
    let g = take(&values(&g), precision);
    let mut slopes = vec![vec![0.0; rows * stride]; kept.len()];
    let mut chances = chances.into_iter();
    for &(start, t) in &samples {
        for h in 0..heads {
            let [q, k, v] = places.map(|(m, first)| part(&kept[m], stride, (start, t), first + h * d));
            let (p, drawn) = chances.next().unwrap();
            let g = part(&g, w, (start, t), h * d);
            let coarse = shown(&p, &drawn);
            let dv = product(View::transposed(&coarse, t), View::rows(&g, d), (t, d, t));
            let mut ds = product(View::rows(&g, d), View::transposed(&v, d), (t, t, d));
            ds.iter_mut().zip(&drawn).for_each(|(d, m)| *d *= m);
            attention::through(&mut ds, &p, t, scale);
            precision.take(&mut ds);
            let dq = product(View::rows(&ds, t), View::rows(&k, d), (t, d, t));
            let dk = product(View::transposed(&ds, t), View::rows(&q, d), (t, d, t));
            for ((m, first), own) in places.into_iter().zip([dq, dk, dv]) {
                place(&mut slopes[m], stride, start, first + h * d, &own);
            }
        }
    }
    let mut sum: Option<Array> = None;
    for (l, slope) in layer.projections.iter().zip(slopes).rev() {
        let slope = array(slope, &[rows, stride]).unwrap();
        let part = l.backward(&slope, &pass, &mut tape, &mut expected, true).unwrap().unwrap();
        sum = Some(sum.map_or(part.clone(), |s| s.plus(&part).unwrap()));
    }
    assert_eq!(values(&dx), values(&sum.unwrap()));
    assert_eq!(grads.flat, expected.flat);
}

#[test]
fn rounding_here_is_rounding() {
    let numbers = values(&testing::array(&[3, TASK]));
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let [mut taken, mut given] = [0, 1].map(|_| numbers.clone());
        precision.take_here(&mut taken);
        precision.round_here(&mut given);
        assert!(taken == take(&numbers, precision) && (taken == numbers) == precision.is_f32());
        assert!(given == precision.product(numbers.clone()) && (given == numbers) == (precision != Precision::Bf16));
    }
}

#[test]
fn lstm_rounds_both_products_and_keeps_state_and_memory() {
    BOTH.into_iter().for_each(check_lstm);
}

fn check_lstm(precision: Precision) {
    let (c, w, lengths) = (3, 5, [3, 1, 2]);
    let mut b = Builder::new(5);
    let layer = b.lstm("l", c, w, false);
    let (store, low) = (within(&b.store, precision), coarse(&b.store, precision));
    let ragged = Ragged { lengths: lengths.to_vec(), room: 3 };
    let rows = ragged.rows();
    let packed = testing::array(&[rows, c]);
    let x = ragged.frame(&packed, true).unwrap();
    let outer = testing::array(&[rows, w]);
    let (y, dx, dw) = run(&layer, &store, &x, |_| ragged.frame(&outer, false).unwrap());

    let round = |v: Vec<f32>| precision.product(v);
    let x = values(&taken(&packed, precision));
    let mut gates = gemm::linear(&x, low.param(layer.wi), (rows, 4 * w, c));
    let bias = low.param(layer.bi).iter().zip(low.param(layer.bh)).map(|(a, b)| a + b);
    let bias: Vec<f32> = bias.collect();
    gates.chunks_exact_mut(4 * w).for_each(|g| g.iter_mut().zip(&bias).for_each(|(g, b)| *g += b));
    let mut gates = round(gates);
    let (mut states, mut memories, mut before) = (vec![0.0; rows * w], vec![0.0; rows * w], vec![0.0; rows * w]);
    let outer = values(&outer);
    let (mut slopes, mut summed) = (vec![0.0; rows * 4 * w], vec![0.0; rows * 4 * w]);
    for (start, t) in ragged.starts().into_iter().zip(lengths) {
        let (mut h, mut memory) = (vec![0.0; w], vec![0.0; w]);
        for row in start..start + t {
            before[row * w..(row + 1) * w].copy_from_slice(&h);
            let product = round(gemm::linear(&take(&h, precision), low.param(layer.wh), (1, 4 * w, w)));
            let own = &mut gates[row * 4 * w..(row + 1) * 4 * w];
            own.iter_mut().zip(&product).for_each(|(g, p)| *g += p);
            lstm::step(own, &mut memory, &mut h);
            states[row * w..(row + 1) * w].copy_from_slice(&h);
            memories[row * w..(row + 1) * w].copy_from_slice(&memory);
        }
        let (mut dh, mut dc) = (vec![0.0; w], vec![0.0; w]);
        let recurrent = Packed::of(View::rows(low.param(layer.wh), w), 4 * w, w);
        for row in (start..start + t).rev() {
            let at = row * w..(row + 1) * w;
            dh.iter_mut().zip(&outer[at.clone()]).for_each(|(d, g)| *d += g);
            let earlier = if row > start { memories[at.start - w..at.start].to_vec() } else { vec![0.0; w] };
            let own = &mut gates[row * 4 * w..(row + 1) * 4 * w];
            lstm::back(own, &memories[at], &earlier, &dh, &mut dc);
            let taken = take(own, precision);
            dh = round(gemm::rows_product(&taken, &recurrent, w));
            // Biases learn of slopes as they are, or in bf16 as they are rounded.
            let shown = if precision == Precision::Tf32 { &*own } else { &taken[..] };
            summed[row * 4 * w..(row + 1) * 4 * w].copy_from_slice(shown);
            slopes[row * 4 * w..(row + 1) * 4 * w].copy_from_slice(&taken);
        }
    }
    assert_eq!(values(&ragged.pack(&y).unwrap()), states);
    let weights = Packed::of(View::rows(low.param(layer.wi), c), 4 * w, c);
    assert_eq!(values(&ragged.pack(&dx).unwrap()), round(gemm::rows_product(&slopes, &weights, c)));
    let mut wanted = Vec::new();
    for (x, k) in [(&x, c), (&take(&before, precision), w)] {
        let mut dw = vec![0.0; 4 * w * k];
        gemm::outer(&mut dw, &slopes, x, (rows, 4 * w, k));
        wanted.extend(dw);
    }
    for _ in [layer.bi, layer.bh] {
        let mut db = vec![0.0; 4 * w];
        rows::add_sums(&summed, 4 * w, &mut db);
        wanted.extend(db);
    }
    assert_eq!(dw, wanted, "{precision}");
}

#[test]
fn lora_is_three_rounded_products_and_f32_between_them() {
    BOTH.into_iter().for_each(check_lora);
}

fn check_lora(precision: Precision) {
    let kind = Kind::Lora { rank: 3, alpha: 4.5, rslora: false, dropout: 0.0, own: Default::default() };
    let mut b = Builder::new(5);
    b.adapt(Plan { kind, targets: Target::list(["l"]), strict: true });
    let layer = b.linear("l", (7, 4));
    let Part::Lora { a, b: up, scale } = b.adapters.sites[0].part else { panic!("no LoRA") };
    let store = within(&shaken(b), precision);
    let x = testing::array(&[5, 7]);
    let (y, ..) = run(&layer, &store, &x, testing::array);
    let plain = |w, b, input, output| Linear { w, b, input, output, adapter: None };
    let forward = |l: Linear, x: &Array| l.forward(x, &Pass::eval(&store), &mut Tape::default()).unwrap();
    let low = forward(plain(a, None, 7, 3), &x);
    let low = array(values(&low).iter().map(|v| v * scale).collect(), &[5, 3]).unwrap();
    let sum = forward(plain(layer.w, layer.b, 7, 4), &x).plus(&forward(plain(up, None, 3, 4), &low)).unwrap();
    assert_eq!(values(&y), values(&sum), "{precision}");
}

/// A layer whose author read the store.
#[derive(Debug)]
struct Forgetful(Linear);

impl Layer for Forgetful {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let Linear { w, input, output, .. } = self.0;
        tape.push_input(x, pass, w);
        let out = gemm::linear(&host(x)?, pass.store.param(w), (x.dim(0)?, output, input));
        array(out, &[x.dim(0)?, output])
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        self.0.backward(dy, pass, tape, grads, need_dx)
    }

    fn describe(&self, _: &mut String) {}

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.0.w);
    }
}

#[test]
#[should_panic(expected = "a matrix is read past the pass")]
fn a_layer_that_forgets_to_ask_for_its_weights_fails_the_check_of_its_gradients() {
    let mut b = Builder::new(1);
    let Linear { w, input, output, adapter, .. } = b.linear("l", (7, 4));
    testing::check_gradients(&Forgetful(Linear { w, b: None, input, output, adapter }), &b.store, &[5, 7]);
}
