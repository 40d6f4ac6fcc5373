//! Gradients, what parts do at the start, and what they come to in the weights.

use super::*;
use crate::{
    nn::{
        Act, Activation, DropoutDraw, EncoderBlock, Layer, Layout, Mask, Order, Padding, host,
        sequence::testing::{Framed, check, check_dropped, same},
        testing,
    },
    num::rng::Philox,
};

fn lora(targets: &[&str], dropout: f32) -> Plan {
    let kind = Kind::Lora { rank: 3, alpha: 4.5, rslora: false, dropout, own: Default::default() };
    Plan { kind, targets: Target::list(targets.iter().copied()), strict: true }
}

fn ia3(targets: &[&str], feedforward: &[&str]) -> Plan {
    let feedforward = Target::list(feedforward.iter().copied());
    Plan { kind: Kind::Ia3 { feedforward, strict: true }, targets: Target::list(targets.iter().copied()), strict: true }
}

/// A builder whose layers called `l` have parts.
fn with(plan: Option<Plan>) -> Builder {
    let mut b = Builder::new(5);
    plan.into_iter().for_each(|p| b.adapt(p));
    b
}

const CONV: ConvSpec = ConvSpec {
    cin: 3,
    cout: 4,
    kernel: (3, 2),
    stride: 2,
    pad: (Padding::Symmetric(1), Padding::Symmetric(1)),
    bias: true,
};

/// A dense layer on `[5, 7]`, or a convolution on `[2, 5, 6, 3]`, and its builder.
fn layer(plan: Option<Plan>, conv: bool) -> (Box<dyn Layer>, Builder, &'static [usize]) {
    let mut b = with(plan);
    if conv {
        return (Box::new(b.conv_spec("l", CONV)), b, &[2, 5, 6, 3]);
    }
    (Box::new(b.linear("l", (7, 4))), b, &[5, 7])
}

/// Parts as after some steps: nothing is zero or one.
fn shake(b: &mut Builder, by: f32) {
    let mut s = Philox::new(3, "shake").stream(0, 0);
    for p in b.adapters.params.clone() {
        let range = b.store.params[p.0].range.clone();
        b.store.values[range].iter_mut().for_each(|v| *v += by * s.normal());
    }
}

/// Everything as after long training.
fn shake_all(b: &mut Builder, state: u64) {
    let mut s = Philox::new(3, "shake").stream(state, 0);
    b.store.values.iter_mut().for_each(|v| *v += 0.3 * s.normal());
}

fn plans() -> [Plan; 3] {
    [lora(&["l"], 0.0), ia3(&["l"], &[]), ia3(&["l"], &["l"])]
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for plan in plans() {
        for conv in [false, true] {
            let (layer, mut b, shape) = layer(Some(plan.clone()), conv);
            shake(&mut b, 0.4);
            testing::check_gradients(&*layer, &b.store, shape);
            // And with weights that stay.
            let layout = Layout::new(&b.store, &b.adapters.params, &[]);
            testing::check_gradients_of(&*layer, &b.store, shape, &layout);
        }
    }
}

#[test]
fn parts_change_nothing_at_the_start_and_depend_on_their_names_only() {
    for plan in plans() {
        for conv in [false, true] {
            let (with, b, shape) = layer(Some(plan.clone()), conv);
            let (without, plain, _) = layer(None, conv);
            let x = testing::array(shape);
            let run = |l: &dyn Layer, s: &Store| {
                host(&l.forward(&x, &Pass::eval(s), &mut Tape::default()).unwrap()).unwrap().to_vec()
            };
            assert_eq!(run(&*with, &b.store), run(&*without, &plain.store), "{plan:?}");
            let (_, again, _) = layer(Some(plan.clone()), conv);
            assert_eq!(again.store.values, b.store.values);
        }
    }
    let mut b = with(Some(lora(&["l"], 0.0)));
    let _ = b.linear("l", (400, 4));
    let [a, up] = [&b.adapters.params[0], &b.adapters.params[1]].map(|p| b.store.param(*p).to_vec());
    // kaiming_uniform(a = √5): a variance of 1/(3·fan in).
    let (most, square) = (a.iter().fold(0.0f32, |m, v| m.max(v.abs())), a.iter().map(|v| v * v).sum::<f32>());
    assert!((0.0485..=0.05).contains(&most) && (square * 400.0 * 3.0 / 1200.0 - 1.0).abs() < 0.1, "{most} {square}");
    assert!(up.iter().all(|v| *v == 0.0) && b.adapters.late == b.adapters.params[..1]);
}

#[test]
fn parts_worked_into_the_weights_are_the_same_layer() {
    for plan in plans() {
        for conv in [false, true] {
            let (with, mut b, shape) = layer(Some(plan.clone()), conv);
            shake(&mut b, 0.4);
            let merged = b.adapters.merged(&b.store);
            let (without, plain, _) = layer(None, conv);
            assert_eq!(merged.values.len(), plain.store.values.len());
            assert_ne!(merged.values, plain.store.values);
            let x = testing::array(shape);
            let run = |l: &dyn Layer, s: &Store| l.forward(&x, &Pass::eval(s), &mut Tape::default()).unwrap();
            testing::assert_close(&run(&*without, &merged), &run(&*with, &b.store), 1e-5);
        }
    }
}

#[test]
fn weights_that_stay_cost_no_gradient_and_keep_no_input() {
    let (layer, b, shape) = layer(Some(lora(&["l"], 0.0)), false);
    let layout = Layout::new(&b.store, &b.adapters.params, &[]);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(&b.store) };
    let mut tape = Tape::default();
    let y = layer.forward(&testing::array(shape), &pass, &mut tape).unwrap();
    assert_eq!(layout.total_len(), 3 * 7 + 4 * 3);
    let mut grads = Gradients::new(&layout);
    assert!(layer.backward(&y, &pass, &mut tape, &mut grads, false).unwrap().is_none());
    let touched: Vec<usize> = (0..grads.touched.len()).filter(|i| grads.touched[*i]).collect();
    assert_eq!(touched, b.adapters.params.iter().map(|p| p.0).collect::<Vec<_>>());
    // Nothing is left on the tape.
    assert!(layer.backward(&y, &pass, &mut tape, &mut grads, false).is_err());
}

fn block(b: &mut Builder) -> EncoderBlock {
    EncoderBlock {
        attention: b.attention(["q", "k", "v", "o"], 6, (2, 3), Mask::NONE),
        norms: [("n1", "a1", Place::Attention), ("n2", "a2", Place::Dense)]
            .map(|(name, adapter, place)| b.add_norm(name, adapter, place, 6, 1e-5)),
        order: Order::After,
        up: b.linear("up", (6, 10)),
        act: Activation(Act::Gelu),
        down: b.linear("down", (10, 6)),
        drops: [Mask::NONE; 3],
    }
}

#[test]
fn blocks_with_parts_have_the_gradients_of_finite_differences() {
    let bottleneck = |twice| {
        let kind = Kind::Bottleneck { twice, reduction: 2 };
        Plan { kind, targets: Vec::new(), strict: false }
    };
    let plans =
        [bottleneck(false), bottleneck(true), lora(&["q", "v", "down"], 0.0), ia3(&["k", "v", "down"], &["down"])];
    for (plan, parts) in plans.into_iter().zip([4, 8, 6, 3]) {
        for state in 0..4 {
            let mut b = with(Some(plan.clone()));
            let block = block(&mut b);
            assert_eq!(b.adapters.params.len(), parts);
            shake_all(&mut b, state);
            check(&block, &b.store, 6);
        }
    }
}

#[test]
fn blocks_that_normalise_before_take_parts_on_fused_projections() {
    for plan in [lora(&["qkv", "up"], 0.0), ia3(&["qkv", "down"], &["down"])] {
        let fused = |plan: Option<Plan>| {
            let mut b = with(plan);
            let block = EncoderBlock {
                attention: b.attention_fused(["qkv", "o"], 6, (2, 3), Mask::NONE),
                norms: ["n1", "n2"].map(|name| b.layer_norm(name, 6, 1e-5).into()),
                order: Order::Before,
                ..block(&mut b)
            };
            (block, b)
        };
        let (block, mut b) = fused(Some(plan.clone()));
        shake_all(&mut b, 1);
        check(&block, &b.store, 6);
        let (plain, _) = fused(None);
        assert!(!b.adapters.sites.is_empty());
        same(&plain, &b.adapters.merged(&b.store), &block, &b.store, 6);
    }
}

#[test]
fn gradients_under_dropout_of_parts_and_blocks_are_those_of_finite_differences() {
    for order in [Order::After, Order::Before] {
        let mut b = with(Some(lora(&["q", "v", "o", "up", "down"], 0.3)));
        let mut block = EncoderBlock { drops: [1, 2, 3].map(|site| Mask { p: 0.3, site }), ..block(&mut b) };
        block.attention.drop = Mask { p: 0.3, site: 4 };
        block.order = order;
        shake_all(&mut b, 2);
        check_dropped(&block, &b.store, 6, DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[11, 12, 13, 14] });
    }
}

#[test]
fn rows_have_masks_of_their_own_whatever_else_is_in_the_batch() {
    let mut b = with(Some(lora(&["q", "v"], 0.4)));
    let block = block(&mut b);
    shake(&mut b, 0.4);
    let x = testing::array(&[3, 5, 6]);
    let run = |x: &Array, lengths: &[usize], draws: Option<&[u64]>| {
        let draw = draws.map(|draws| DropoutDraw { rng: Philox::new(1, "dropout"), draws });
        let pass = Pass { dropout: draw, ..Pass::eval(&b.store) };
        let y = Framed(&block, lengths).forward(x, &pass, &mut Tape::default()).unwrap();
        host(&y).unwrap().to_vec()
    };
    let all = run(&x, &[2, 5, 3], Some(&[10, 11, 12]));
    let one = testing::part(&x, 0, 1, 1);
    let alone = run(&one, &[5], Some(&[11]));
    assert_eq!(alone, all[6 * 6..2 * 6 * 6]);
    assert_ne!(alone, run(&one, &[5], None));
    assert_ne!(alone, run(&one, &[5], Some(&[12])));
}
