//! Layers of images on the GPU: convolutions, borders and batch-norms, whatever of them is trained.

use std::sync::{
    Arc, Mutex,
    mpsc::{Receiver, Sender, channel},
};

use tl_engine::{
    Error, Result,
    gpu::{Placed, ops},
    nn::{
        self, Act, BatchNorm, Border, BufferId, Builder, ConvSpec, Gradients, Grains, Join, Layer, Layout, Packs,
        Padding, ParamId, Pass, Store, Tape, array, host,
    },
    num::bf16::rounded,
};
use tl_proto::spec::Precision;

use crate::{
    bf16::coarse,
    layers::{check, down, near, placed},
    numbers, shared, up,
};

/// Puts numbers where a layer is to compute.
pub(crate) type Sends = fn(&[f32], &[usize]) -> nn::Array;

/// What a layer gives, hands back and learns.
pub(crate) struct Passed {
    pub y: nn::Array,
    pub dx: Option<nn::Array>,
    pub flat: Vec<f32>,
    touched: Vec<bool>,
}

/// Puts numbers where a layer is to compute.
type Laid<'a> = dyn Fn(&[f32], &[usize]) -> nn::Array + 'a;

/// Runs a layer both ways; `send` puts its input, and the slope of its output, where it is to compute.
pub(crate) fn passed(
    layer: &dyn Layer,
    pass: &Pass<'_>,
    input: (&[f32], &[usize]),
    need_dx: bool,
    send: impl Fn(&[f32], &[usize]) -> nn::Array,
) -> Passed {
    passed_of(layer, pass, input, need_dx, [&send, &send])
}

/// The same where the input is put somewhere by one, and the slope by another.
pub(crate) fn passed_of(
    layer: &dyn Layer,
    pass: &Pass<'_>,
    (x, shape): (&[f32], &[usize]),
    need_dx: bool,
    [send, send_slope]: [&Laid<'_>; 2],
) -> Passed {
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(pass.layout.unwrap()));
    let y = layer.forward(&send(x, shape), pass, &mut tape).unwrap();
    let dy = send_slope(&numbers(77, y.count()), y.dims());
    let dx = layer.backward(&dy, pass, &mut tape, &mut grads, need_dx).unwrap();
    grads.come_down().unwrap();
    Passed { y, dx, flat: grads.flat, touched: grads.touched }
}

pub(crate) fn here(values: &[f32], shape: &[usize]) -> nn::Array {
    array(values.to_vec(), shape).unwrap()
}

pub(crate) fn there(values: &[f32], shape: &[usize]) -> nn::Array {
    placed(values, shape).unwrap()
}

/// What bf16 has of them, on the host.
pub(crate) fn coarse_here(values: &[f32], shape: &[usize]) -> nn::Array {
    here(&coarse(values), shape)
}

/// The same in bf16.
pub(crate) fn halves(values: &[f32], shape: &[usize]) -> nn::Array {
    let device = shared().unwrap();
    Placed::new(device.clone(), ops::to_bf16(device, &up(device, values, shape)).unwrap()).into()
}

/// Whether an array lies on the GPU in bf16.
pub(crate) fn is_half(array: &nn::Array) -> bool {
    matches!(array, nn::Array::Device(numbers) if numbers.is_half())
}

/// Compares the host and the GPU, where a layout says what learns. How far off outputs, slopes of inputs and what is learnt
/// may be.
fn compare(
    layer: &dyn Layer,
    (store, layout): (&Store, &Layout),
    input: (&[f32], &[usize]),
    need_dx: bool,
    off: [f32; 3],
) {
    let plain = Pass { layout: Some(layout), ..Pass::eval(store) };
    let want = passed(layer, &plain, input, need_dx, here);
    let packs = Packs::default();
    packs.begin(layout, 2);
    // The second grain finds what the first one has sent up.
    for _ in 0..2 {
        let got = passed(layer, &Pass { packs: Some(&packs), ..plain }, input, need_dx, there);
        assert!(host(&got.y).is_err() && got.dx.iter().all(|dx| host(dx).is_err()), "it came down on the way");
        near(&down(&got.y), &down(&want.y), off[0]);
        assert_eq!((got.y.dims(), got.dx.is_some()), (want.y.dims(), need_dx));
        if let (Some(got), Some(want)) = (&got.dx, &want.dx) {
            assert_eq!(got.dims(), want.dims());
            near(&down(got), &down(want), off[1]);
        }
        near(&got.flat, &want.flat, off[2]);
        assert_eq!(got.touched, want.touched);
    }
}

/// Every choice among some.
fn choices<T: Copy>(of: &[T]) -> impl Iterator<Item = Vec<T>> {
    (0..1usize << of.len()).map(move |bits| {
        let chosen = of.iter().enumerate().filter(|(i, _)| (bits >> i) & 1 == 1);
        chosen.map(|(_, item)| *item).collect()
    })
}

/// Channels in and out, the kernel, its stride and border, and the height and width of the images.
type Case = ((usize, usize), (usize, usize), usize, (Padding, Padding), (usize, usize));

/// Convolutions of every kind, and the height and width of their images.
fn convolutions() -> Vec<(ConvSpec, (usize, usize))> {
    let by = |y, x| (Padding::Symmetric(y), Padding::Symmetric(x));
    let (same, mixed) = ((Padding::Same, Padding::Same), (Padding::Symmetric(1), Padding::Same));
    let all = [
        ((3, 5), (3, 3), 2, by(1, 1), (7, 6)),
        // Rows of pixels, and every second pixel, of which the last is read or not.
        ((9, 4), (1, 1), 1, by(0, 0), (3, 5)),
        ((9, 4), (1, 1), 1, same, (4, 3)),
        ((4, 6), (1, 1), 2, by(0, 0), (5, 6)),
        ((4, 6), (1, 1), 2, same, (6, 5)),
        // A zero more behind than in front, in one direction or both; none; and an image smaller than the kernel.
        ((3, 4), (3, 3), 2, same, (6, 8)),
        ((3, 4), (3, 3), 2, same, (6, 7)),
        ((2, 3), (3, 3), 2, same, (7, 5)),
        ((2, 3), (5, 5), 1, same, (2, 4)),
        ((2, 3), (2, 4), 1, same, (4, 5)),
        ((2, 3), (3, 3), 2, mixed, (7, 6)),
        ((1, 4), (5, 5), 1, by(0, 0), (6, 5)),
        ((5, 3), (1, 3), 1, by(0, 1), (4, 5)),
        // What no window reads.
        ((3, 2), (3, 1), 3, by(1, 0), (8, 7)),
        ((2, 2), (1, 1), 2, by(2, 2), (3, 3)),
    ];
    let one = |((cin, cout), kernel, stride, pad, size): Case| {
        (ConvSpec { cin, cout, kernel, stride, pad, bias: cout % 2 == 0 }, size)
    };
    all.into_iter().map(one).collect()
}

#[test]
fn convolutions_go_on_where_their_input_lies() {
    for (spec, (h, w)) in convolutions() {
        let mut b = Builder::new(5);
        let layer = b.conv_spec("c", spec);
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 3) as f32 * 0.1);
        check(&layer, &b.store, (&numbers(1, 3 * h * w * spec.cin), &[3, h, w, spec.cin]), 2e-5);
    }
    let mut b = Builder::new(5);
    let layer = b.conv("c", (3, 2), 5, 1, Padding::Symmetric(0));
    let Some(small) = placed(&numbers(1, 4 * 4 * 3), &[1, 4, 4, 3]) else { return };
    let error = layer.forward(&small, &Pass::eval(&b.store), &mut Tape::default()).unwrap_err();
    assert!(matches!(error, Error::User { hint, .. } if hint.contains("model.input")));
}

#[test]
fn convolutions_learn_what_is_trained_and_no_more() {
    if shared().is_none() {
        return;
    }
    // A sum in another order may be rounded to a neighbour in bf16; what is learnt is never rounded.
    let precisions = [(Precision::F32, [2e-5; 3]), (Precision::Bf16, [2e-2, 2e-2, 2e-5])];
    let kernels = [(1, 1), (3, 3)];
    for (kernel, (precision, off)) in kernels.into_iter().flat_map(|kernel| precisions.map(|how| (kernel, how))) {
        let mut b = Builder::new(5);
        let pad = (Padding::Same, Padding::Same);
        let layer = b.conv_spec("c", ConvSpec { cin: 3, cout: 4, kernel, stride: 1, pad, bias: true });
        b.store.precision = precision;
        let input = numbers(1, 2 * 4 * 5 * 3);
        for trained in choices(&[ParamId(0), ParamId(1)]) {
            let layout = Layout::new(&b.store, &trained, &[]);
            for need_dx in [true, false] {
                compare(&layer, (&b.store, &layout), (&input, &[2, 4, 5, 3]), need_dx, off);
            }
        }
    }
}

#[test]
fn depthwise_convolutions_have_the_bits_of_the_cpu() {
    if shared().is_none() {
        return;
    }
    for (c, k, stride, pad, (h, w)) in [
        (3, 3, 1, Padding::Symmetric(1), (5, 6)),
        (35, 3, 2, Padding::Same, (6, 7)),
        (36, 3, 2, Padding::Same, (6, 7)),
        (2, 5, 2, Padding::Same, (7, 8)),
        (4, 3, 1, Padding::Same, (1, 1)),
        (2, 2, 3, Padding::Symmetric(0), (7, 6)),
        (8, 3, 1, Padding::Same, (3, 18)),
    ] {
        let mut b = Builder::new(1);
        let layer = b.depthwise("c", c, k, stride, pad);
        let input = numbers(1, 2 * h * w * c);
        for trained in choices(&[ParamId(0)]) {
            let layout = Layout::new(&b.store, &trained, &[]);
            for need_dx in [true, false] {
                compare(&layer, (&b.store, &layout), (&input, &[2, h, w, c]), need_dx, [0.0, 0.0, 1e-5]);
            }
        }
    }
}

#[test]
fn products_of_convolutions_are_rounded_to_bf16() {
    if shared().is_none() {
        return;
    }
    type Make = fn(&mut Builder) -> Box<dyn Layer>;
    let layers: [Make; 4] = [
        |b| Box::new(b.depthwise("c", 8, 3, 2, Padding::Same)),
        |b| Box::new(b.conv("c", (8, 8), 3, 2, Padding::Same)),
        |b| {
            let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
            Box::new(b.conv_spec("c", ConvSpec { cin: 8, cout: 8, kernel: (3, 3), stride: 1, pad, bias: true }))
        },
        |b| {
            let none = (Padding::Symmetric(0), Padding::Symmetric(0));
            let spec = ConvSpec { cin: 8, cout: 8, kernel: (1, 1), stride: 1, pad: none, bias: true };
            Box::new(b.conv_spec("c", spec))
        },
    ];
    for make in layers {
        let mut b = Builder::new(3);
        let layer = make(&mut b);
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 3) as f32 * 0.1);
        b.store.precision = Precision::Bf16;
        let mut params = Vec::new();
        layer.params(&mut params);
        let layout = Layout::new(&b.store, &params, &[]);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&b.store) };
        let x = numbers(1, 3 * 8 * 6 * 8);
        let (want, got) = (
            passed(&*layer, &pass, (&x, &[3, 8, 6, 8]), true, here),
            passed(&*layer, &pass, (&x, &[3, 8, 6, 8]), true, there),
        );
        // What is not rounded on its way out: sums of products of what was rounded on its way in.
        near(&got.flat, &want.flat, 1e-4);
        for (got, want) in [(&got.y, &want.y), (got.dx.as_ref().unwrap(), want.dx.as_ref().unwrap())] {
            let (got, want) = (down(got), down(want));
            assert!(got.iter().all(|v| *v == rounded(*v)));
            near(&got, &want, 1e-2);
            // A sum in another order is rarely rounded to a neighbour; one of what was not rounded often is.
            let others = got.iter().zip(&want).filter(|(g, w)| g != w).count();
            assert!(others * 20 < got.len(), "{others} of {}", got.len());
        }
    }
}

#[test]
fn borders_are_made_and_cut_off_where_their_image_lies() {
    let store = Builder::new(1).store;
    for border in [Border::Same { k: 3, stride: 2 }, Border::Same { k: 5, stride: 1 }, Border::Shift] {
        check(&border, &store, (&numbers(1, 2 * 6 * 5 * 3), &[2, 6, 5, 3]), 0.0);
    }
}

/// A norm that has been trained for a while.
fn norm(c: usize, act: Act) -> (Builder, BatchNorm) {
    let mut b = Builder::new(1);
    let layer = b.norm("n", c).act(act);
    b.store.values = numbers(5, 2 * c);
    b.store.buffer_values = numbers(6, 2 * c);
    b.store.buffer_values[c..].iter_mut().for_each(|v| *v = v.abs() + 0.5);
    (b, layer)
}

#[test]
fn norms_take_the_statistics_and_learn_what_a_layout_says() {
    if shared().is_none() {
        return;
    }
    for (shape, act) in [
        (&[5, 2, 2, 3][..], Act::None),
        (&[70, 5], Act::Relu),
        (&[3, 5, 5, 2], Act::Silu),
        (&[2, 3, 5, 4], Act::Relu6),
        (&[4, 1, 3, 6], Act::Gelu),
    ] {
        let (mut b, layer) = norm(shape[shape.len() - 1], act);
        // A sum in another order may be rounded to a neighbour in bf16; what is learnt is never rounded.
        let (precision, neighbour) = if act == Act::None { (Precision::Bf16, 1e-2) } else { (Precision::F32, 0.0) };
        b.store.precision = precision;
        let batch = [3e-5 + neighbour, 5e-5 + neighbour, 3e-5];
        let input = numbers(7, shape.iter().product());
        for trained in choices(&[ParamId(0), ParamId(1)]) {
            for (means, off) in [(&[][..], [0.0, 0.0, 1e-5]), (&[BufferId(0)][..], batch)] {
                let layout = Layout::new(&b.store, &trained, means);
                for need_dx in [true, false] {
                    compare(&layer, (&b.store, &layout), (&input, shape), need_dx, off);
                }
            }
        }
    }
    let (b, layer) = norm(3, Act::None);
    assert!(layer.forward(&there(&[1.0; 8], &[2, 4]), &Pass::eval(&b.store), &mut Tape::default()).is_err());
}

/// One of two grains, which tell each other what they have.
struct Seat {
    first: bool,
    say: Sender<Vec<f64>>,
    hear: Mutex<Receiver<Vec<f64>>>,
}

impl Grains for Seat {
    fn joined(&self, own: Vec<f64>, join: Join) -> Result<Arc<[f64]>> {
        let lost = |why: String| Error::Internal(format!("the other grain is gone: {why}"));
        self.say.send(own.clone()).map_err(|e| lost(e.to_string()))?;
        let other = self.hear.lock().unwrap().recv().map_err(|e| lost(e.to_string()))?;
        let Join::Fold(fold) = join else { return Err(lost("norms add up".into())) };
        let (mut all, next) = if self.first { (own, other) } else { (other, own) };
        fold(&mut all, &next);
        Ok(all.into())
    }
}

#[test]
fn two_grains_take_the_statistics_of_both() {
    if shared().is_none() {
        return;
    }
    let exact: (Precision, [Sends; 2], f32) = (Precision::F32, [here, there], 0.0);
    // A sum in another order may be rounded to a neighbour in bf16; what is learnt is never rounded.
    let halved: (Precision, [Sends; 2], f32) = (Precision::Bf16, [coarse_here, halves], 1e-2);
    for (act, (precision, [on_host, on_gpu], neighbour)) in
        [(Act::None, exact), (Act::Silu, exact), (Act::Silu, halved), (Act::Gelu, halved)]
    {
        let (mut b, layer) = norm(3, act);
        b.store.precision = precision;
        let layout = Layout::new(&b.store, &[ParamId(0), ParamId(1)], &[BufferId(0)]);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&b.store) };
        let (x, shape) = (numbers(7, 9 * 2 * 5 * 3), [9, 2, 5, 3]);
        let dy = numbers(77, x.len());
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let y = layer.forward(&on_host(&x, &shape), &pass, &mut tape).unwrap();
        let dx = layer.backward(&on_host(&dy, &shape), &pass, &mut tape, &mut grads, true).unwrap().unwrap();

        let ((say, hear), (say_other, hear_other)) = (channel(), channel());
        let seats = [
            Seat { first: true, say, hear: Mutex::new(hear_other) },
            Seat { first: false, say: say_other, hear: Mutex::new(hear) },
        ];
        // Of four samples, and of five.
        let cut = 4 * 2 * 5 * 3;
        let parts = [(&x[..cut], &dy[..cut]), (&x[cut..], &dy[cut..])];
        let grain = |seat: Seat, (x, dy): (&[f32], &[f32])| {
            let (pass, shape) = (Pass { grains: Some(&seat), ..pass }, [x.len() / 30, 2, 5, 3]);
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            let y = layer.forward(&on_gpu(x, &shape), &pass, &mut tape).unwrap();
            let dx = layer.backward(&on_gpu(dy, &shape), &pass, &mut tape, &mut grads, true).unwrap().unwrap();
            grads.come_down().unwrap();
            [down(&y), down(&dx), grads.flat]
        };
        let grain = &grain;
        let [[y1, dx1, mut flat], [y2, dx2, more]] = std::thread::scope(|scope| {
            let threads = seats.into_iter().zip(parts).map(|(seat, part)| scope.spawn(move || grain(seat, part)));
            let threads: Vec<_> = threads.collect();
            let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            <[_; 2]>::try_from(done).unwrap()
        });
        near(&[y1, y2].concat(), &down(&y), 3e-5 + neighbour);
        near(&[dx1, dx2].concat(), &down(&dx), 5e-5 + neighbour);
        flat.iter_mut().zip(&more).for_each(|(a, b)| *a += b);
        near(&flat, &grads.flat, 5e-5);
    }
}

#[test]
fn what_norms_and_convolutions_send_up_is_kept_until_it_changes() {
    if shared().is_none() {
        return;
    }
    let mut b = Builder::new(3);
    let (conv, norm) = (b.conv("c", (2, 3), 3, 1, Padding::Symmetric(1)), b.norm("n", 3));
    let (mut store, packs) = (b.store, Packs::default());
    let (x, rows) = (there(&numbers(1, 2 * 9), &[1, 3, 3, 2]), there(&numbers(2, 6), &[2, 3]));
    let values = |store: &Store, layer: &dyn Layer, x: &nn::Array| {
        let pass = Pass { packs: Some(&packs), ..Pass::eval(store) };
        down(&layer.forward(x, &pass, &mut Tape::default()).unwrap())
    };
    let all = |store: &Store| [values(store, &conv, &x), values(store, &norm, &rows)];
    let before = all(&store);
    let [frozen, learns] = [&[][..], &[BufferId(0)][..]].map(|means| Layout::new(&store, &[], means));
    store.values[..10].fill(0.3);
    store.buffer_values.fill(0.7);
    packs.end(&frozen);
    assert_eq!(all(&store), before);
    // The norm's statistics follow the step, and the weights still do not.
    packs.end(&learns);
    let [same, other] = all(&store);
    assert!(same == before[0] && other != before[1]);
    packs.end(&Layout::new(&store, &[ParamId(0)], &[]));
    assert_ne!(values(&store, &conv, &x), before[0]);
}
