//! Flat gradients that are gathered and added up on the GPU, and values and moments that stay there: the host's bits.

use std::time::Duration;

use tl_engine::{
    collective::{
        Collective, Solo, on_loopback, reduce, reduce_flat,
        tree::{self, Node},
    },
    gpu::{Placed, ops},
    nn::{
        self, Act, Activation, Builder, Fill, Flat, Gradients, Layer, Layout, Own, Packs, ParamId, Pass, Sequential,
        Store, Tape, host,
    },
    num,
    optim::{self, Group, Rate, Resident, clip_placed},
};
use tl_proto::spec::{OptimizerSection, Precision};

use crate::{numbers, shared, up};

/// Two dense layers, of which the first one's bias is frozen, and a tensor of an objective's own.
struct Net {
    layers: Sequential,
    store: Store,
    layout: Layout,
    own: ParamId,
}

fn net() -> Net {
    let mut b = Builder::new(3);
    let layers =
        Sequential::default().with(b.linear("in", (7, 5))).with(Activation(Act::Silu)).with(b.linear("out", (5, 3)));
    let own = b.own(&Own { name: "own".into(), shape: vec![2], fill: Fill::Constant(1.0), span: None });
    let layout = Layout::new(&b.store, &[ParamId(0), ParamId(2), ParamId(3), own], &[]);
    Net { layers, store: b.store, layout, own }
}

/// Numbers on the GPU, for a layer.
fn placed(values: &[f32], shape: &[usize]) -> nn::Array {
    sent(values, shape).into()
}

fn sent(values: &[f32], shape: &[usize]) -> Placed {
    let device = shared().unwrap();
    Placed::new(device.clone(), up(device, values, shape))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

impl Net {
    /// What a grain leaves: the second one is all in the host's memory, the others are there in part.
    fn gradients(&self, grain: usize) -> Gradients<'_> {
        let mut grads = Gradients::unmade(&self.layout);
        if grain != 1 {
            let pass = Pass { layout: Some(&self.layout), ..Pass::eval(&self.store) };
            let (x, dy) = (numbers(grain as u32, 4 * 7), numbers(50 + grain as u32, 4 * 3));
            let mut tape = Tape::default();
            self.layers.forward(&placed(&x, &[4, 7]), &pass, &mut tape).unwrap();
            self.layers.backward(&placed(&dy, &[4, 3]), &pass, &mut tape, &mut grads, false).unwrap();
        }
        // The bias of the last layer gathers in both.
        for id in [self.own, ParamId(3)] {
            let slot = grads.slot(id).unwrap();
            let more = numbers(90 + grain as u32, slot.len());
            slot.iter_mut().zip(more).for_each(|(to, v)| *to += v);
        }
        grads
    }

    fn flat(&self, grain: usize) -> Flat {
        self.gradients(grain).finish().unwrap().0
    }
}

#[test]
fn grains_are_gathered_and_added_where_they_lie_with_the_bits_of_the_host() {
    if shared().is_none() {
        return;
    }
    let net = net();
    let len = net.layout.total_len();
    for count in [1, 2, 3, 5, 8] {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for grain in 0..count {
            let mut down = net.gradients(grain);
            down.come_down().unwrap();
            let (flat, touched) = net.gradients(grain).finish().unwrap();
            assert_eq!((flat.is_here(), touched), (grain == 1, down.touched.clone()));
            assert_eq!(bits(&flat.to_host().unwrap()), bits(&down.flat), "grain {grain}");
            tree::push(&mut here, Node::leaf(grain, down.flat), count);
            tree::push_with(&mut there, Node::leaf(grain, flat), count, Flat::plus).unwrap();
        }
        let want = reduce(&mut Solo, here, count, len).unwrap();
        let got = reduce_flat(&mut Solo, there, false, count, len).unwrap();
        assert!(!got.is_here(), "it came down on the way");
        assert_eq!(bits(&got.into_host().unwrap()), bits(&want), "{count} grains");
    }
    for [a, b] in [[0, 1], [1, 0], [0, 2], [2, 0]] {
        let (left, right) = (net.flat(a).into_host().unwrap(), net.flat(b).into_host().unwrap());
        let want: Vec<f32> = left.iter().zip(&right).map(|(l, r)| l + r).collect();
        assert_eq!(bits(&net.flat(a).plus(net.flat(b)).unwrap().into_host().unwrap()), bits(&want), "{a} and {b}");
    }
    let short = vec![Node::leaf(0, net.flat(0))];
    assert!(reduce_flat(&mut Solo, short, false, 1, len + 1).is_err());
    assert!(reduce_flat(&mut Solo, vec![Node::leaf(1, net.flat(1))], false, 2, len).is_err());
}

#[test]
fn what_has_all_gathered_on_a_gpu_is_the_same_in_one_flat_gradient() {
    if shared().is_none() {
        return;
    }
    let net = net();
    // Nothing is the host's: no number of the flat one is left out.
    let layout = Layout::new(&net.store, &[ParamId(0), ParamId(2), ParamId(3)], &[]);
    let gradients = |zeros: bool| {
        let mut grads = Gradients::unmade(&layout);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&net.store) };
        let dy = numbers(5, 4 * 3).into_iter().map(|v| if zeros { -0.0 } else { v }).collect::<Vec<_>>();
        let mut tape = Tape::default();
        net.layers.forward(&placed(&numbers(4, 4 * 7), &[4, 7]), &pass, &mut tape).unwrap();
        net.layers.backward(&placed(&dy, &[4, 3]), &pass, &mut tape, &mut grads, false).unwrap();
        grads
    };
    for zeros in [false, true] {
        let mut down = gradients(zeros);
        down.come_down().unwrap();
        let (flat, touched) = gradients(zeros).finish().unwrap();
        assert_eq!((flat.is_here(), flat.count(), touched), (false, layout.total_len(), down.touched.clone()));
        assert_eq!(bits(&flat.into_host().unwrap()), bits(&down.flat));
        assert_eq!(zeros, down.flat.iter().all(|v| *v == 0.0));
    }
}

#[test]
fn several_ranks_send_each_other_what_comes_down() {
    if shared().is_none() {
        return;
    }
    let net = net();
    let (count, len) = (5, net.layout.total_len());
    let sum = |group: &mut dyn Collective| {
        let mut stack = Vec::new();
        for grain in group.shares(count)[group.rank()].clone() {
            tree::push_with(&mut stack, Node::leaf(grain, net.flat(grain)), count, Flat::plus)?;
        }
        reduce_flat(group, stack, false, count, len)
    };
    let want = bits(&sum(&mut Solo).unwrap().into_host().unwrap());
    for rank in on_loopback(&[1, 1], Duration::from_secs(20), sum).unwrap() {
        let got = rank.unwrap();
        assert!(got.is_here());
        assert_eq!(bits(&got.into_host().unwrap()), want);
    }
}

#[test]
fn runs_of_a_flat_gradient_come_down_alone() {
    let Some(device) = shared() else { return };
    let x = numbers(1, 9);
    let mut flat = Flat::Device(sent(&x, &[9]));
    assert_eq!((flat.count(), flat.run(2..5).unwrap().to_vec()), (9, x[2..5].to_vec()));
    assert!(flat.run(4..4).unwrap().is_empty() && flat.run(0..10).is_err());
    assert_eq!((flat.here().unwrap().clone(), flat.is_here()), (x.clone(), true));
    assert_eq!(flat.placed(device).unwrap().download().unwrap(), x);

    let mut all = up(device, &x, &[3, 3]);
    let part = device.part(&all, 4..8, &[2, 2]).unwrap();
    assert_eq!((part.shape(), device.download(&part).unwrap()), (&[2, 2][..], x[4..8].to_vec()));
    assert!(device.part(&all, 4..8, &[3]).is_err() && device.part(&all, 8..10, &[2]).is_err());
    ops::add_run(device, &mut all, 5, &part).unwrap();
    let want: Vec<f32> = (0..9).map(|i| if i < 5 { x[i] } else { x[i] + x[i - 1] }).collect();
    assert_eq!(bits(&device.download(&all).unwrap()), bits(&want));
    for first in [6, usize::MAX] {
        assert!(ops::add_run(device, &mut all, first, &part).is_err());
    }
}

#[test]
fn steps_with_clipping_on_what_stays_have_the_bits_of_the_host() {
    let Some(device) = shared() else { return };
    let (count, trained, samples) = (9000, 7493, 7);
    let groups = [
        Group { values: 10..4600, gradient: 0..4590, lr_scale: 0.5, decays: true },
        Group { values: 5000..5003, gradient: 4590..4593, lr_scale: 1.0, decays: false },
        Group { values: 6000..8900, gradient: 4593..7493, lr_scale: 2.0, decays: true },
    ];
    let is_trained = |i: usize| groups.iter().any(|group| group.values.contains(&i));
    for (name, clip) in [("adamw", None), ("adamw", Some(0.5)), ("sgd", None), ("sgd", Some(0.5)), ("sgd", Some(1e5))] {
        let o = OptimizerSection { name: name.into(), weight_decay: 0.1, ..OptimizerSection::default() };
        let optimizer = optim::find(name);
        let (mut values, mut moments) = (numbers(1, count), (optimizer.init)(count));
        // The last group begins later than the others.
        (optimizer.step)(&o, &mut moments, &mut values, &numbers(2, trained), &groups[..2], Rate::from(0.02));
        let (mut here, mut counts) = (values.clone(), moments.clone());
        let mut there = Resident::new(device, &groups, &mut here, &counts).unwrap();
        let stale = |(i, v): (usize, &f32)| if is_trained(i) { v.is_nan() } else { *v == values[i] };
        assert!(here.iter().enumerate().all(stale), "{name}");
        for step in 0..4 {
            // Sums of batch-norms lie behind the gradient.
            let sum = numbers(10 + step, trained + 11);
            let rate = Rate { lr: 0.02 / f64::from(step + 1), momentum: (step % 2 == 1).then_some(0.85) };
            let mut mean = sum[..trained].to_vec();
            num::divide(&mut mean, samples as f32);
            let norm = optim::clip(&mut mean, clip);
            (optimizer.step)(&o, &mut moments, &mut values, &mean, &groups, rate);

            let flat = sent(&sum, &[sum.len()]);
            let mut mean = there.mean(&flat, samples).unwrap();
            assert_eq!(clip_placed(&mut mean, clip).unwrap().to_bits(), norm.to_bits(), "{name} {step}");
            let held = there.values().clone();
            assert!(there.step(optimizer, &o, &mut counts, &mean, rate).is_err(), "somebody holds them");
            drop(held);
            there.step(optimizer, &o, &mut counts, &mean, rate).unwrap();
            assert_eq!(bits(&flat.download().unwrap()), bits(&sum), "what others share was changed");
        }
        there.settle(&mut here, &mut counts).unwrap();
        assert_eq!(bits(&here), bits(&values), "{name} {clip:?}");
        assert_eq!(bits(&counts.first), bits(&moments.first), "{name} {clip:?}");
        assert_eq!(bits(&counts.second), bits(&moments.second), "{name} {clip:?}");
        assert_eq!((counts.products, counts.updates), (moments.products, moments.updates), "{name}");
    }
    assert!(Resident::new(device, &[], &mut [], &(optim::find("sgd").init)(0)).is_err());
}

#[test]
fn layers_take_what_is_trained_from_where_it_stays_and_the_rest_from_the_store() {
    let Some(device) = shared() else { return };
    for (precision, grains) in [(Precision::F32, 2), (Precision::Bf16, 2), (Precision::Bf16, 1)] {
        let Net { layers, mut store, layout, .. } = net();
        store.precision = precision;
        let (groups, packs) = (optim::groups(&store, &layout, &[1.0; 4]), Packs::default());
        let x = placed(&numbers(1, 4 * 7), &[4, 7]);
        let said = |store: &Store| {
            packs.begin(&layout, grains);
            let pass = Pass { layout: Some(&layout), packs: Some(&packs), ..Pass::eval(store) };
            let y = layers.forward(&x, &pass, &mut Tape::default()).unwrap();
            packs.end(&layout);
            host(&y.to_tensor().unwrap()).unwrap().to_vec()
        };
        let before = said(&store);
        let optimizer = optim::find("sgd");
        let mut moments = (optimizer.init)(store.values.len());
        let mut there = Resident::new(device, &groups, &mut store.values, &moments).unwrap();
        assert!(said(&store).iter().all(|v| v.is_nan()), "they go on with what is no more");
        packs.take_from(&layout, Some(there.values()));
        assert_eq!(bits(&said(&store)), bits(&before));
        packs.take_from(&layout, None);
        let mean = sent(&numbers(2, layout.params_len()), &[layout.params_len()]);
        there.step(optimizer, &OptimizerSection::default(), &mut moments, &mean, Rate::from(0.1)).unwrap();
        packs.take_from(&layout, Some(there.values()));
        let after = said(&store);
        packs.take_from(&layout, None);
        there.settle(&mut store.values, &mut moments).unwrap();
        assert_eq!(bits(&said(&store)), bits(&after));
        assert_ne!(bits(&after), bits(&before));
    }
}
