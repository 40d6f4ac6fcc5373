//! Two grains are the whole batch, and nobody is left waiting.

use candle_core::Tensor;

use super::*;
use crate::{
    collective::Solo,
    nn::{
        Act, Array, Builder, Conv2d, Gradients, Layer, Layout, Padding, ParamId, Pass, Residual, Sequential, Shortcut,
        Tape, host, testing,
    },
};

/// A layer run as two grains: the first takes two samples, the second the others.
struct InTwo<L>(L, Mutex<Vec<Tape>>);

impl<L: Layer> InTwo<L> {
    fn halves(x: &Array) -> Vec<Array> {
        let n = x.dims()[0];
        [(0, 2), (2, n - 2)].map(|(from, len)| testing::part(x, 0, from, len)).into()
    }

    fn whole(parts: &[&Array]) -> Array {
        let parts: Vec<Tensor> = parts.iter().map(|part| part.to_tensor().unwrap()).collect();
        Tensor::cat(&parts, 0).unwrap().into()
    }
}

/// One rank has both grains.
const BOTH: Range<usize> = 0..2;

impl<L: Layer> Layer for InTwo<L> {
    fn forward(&self, x: &Array, pass: &Pass<'_>, _: &mut Tape) -> Result<Array> {
        let halves = Self::halves(x);
        let outs = run(std::slice::from_ref(&BOTH), &mut Solo, |i, grains| {
            let pass = Pass { layout: pass.layout, grains: Some(grains), ..Pass::eval(pass.store) };
            let mut tape = Tape::default();
            Ok((self.0.forward(&halves[i], &pass, &mut tape)?, tape))
        })?;
        let (outs, tapes): (Vec<Array>, Vec<Tape>) = outs.into_iter().unzip();
        *self.1.lock().unwrap() = tapes;
        Ok(Self::whole(&outs.iter().collect::<Vec<_>>()))
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        _: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let halves = Self::halves(dy);
        let layout = pass.layout.unwrap();
        let tapes: Vec<_> = self.1.lock().unwrap().drain(..).map(|t| Mutex::new(Some(t))).collect();
        let outs = run(std::slice::from_ref(&BOTH), &mut Solo, |i, grains| {
            let pass = Pass { layout: pass.layout, grains: Some(grains), ..Pass::eval(pass.store) };
            let (mut own, mut tape) = (Gradients::new(layout), tapes[i].lock().unwrap().take().unwrap());
            let dx = self.0.backward(&halves[i], &pass, &mut tape, &mut own, need_dx)?;
            Ok((dx, own.flat, own.touched))
        })?;
        for (_, flat, touched) in &outs {
            grads.flat.iter_mut().zip(flat).for_each(|(a, b)| *a += b);
            grads.touched.iter_mut().zip(touched).for_each(|(a, b)| *a |= b);
        }
        let parts: Option<Vec<&Array>> = outs.iter().map(|o| o.0.as_ref()).collect();
        Ok(parts.map(|p| Self::whole(&p)))
    }

    fn describe(&self, out: &mut String) {
        self.0.describe(out);
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        self.0.params(out);
    }

    fn norms(&self, out: &mut Vec<(crate::nn::BufferId, crate::nn::BufferId)>) {
        self.0.norms(out);
    }
}

fn conv(b: &mut Builder, name: &str) -> Conv2d {
    b.conv(name, (3, 3), 3, 1, Padding::Symmetric(1))
}

fn block() -> (Residual, Builder) {
    let mut b = Builder::new(1);
    let body = Sequential::default()
        .with(conv(&mut b, "a"))
        .with(b.norm("n", 3).act(Act::Silu))
        .with(conv(&mut b, "b"))
        .with(b.norm("m", 3));
    let residual = Residual { body, shortcut: Shortcut::Identity, act: Act::None };
    b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 5) as f32 * 0.03);
    (residual, b)
}

#[test]
fn gradients_over_two_grains_are_those_of_finite_differences() {
    let mut b = Builder::new(1);
    let norm = b.norm("n", 3).act(Act::Relu);
    b.store.values = vec![0.5, 1.5, -0.7, 0.1, 0.2, 0.3];
    testing::check_gradients(&InTwo(norm, Mutex::default()), &b.store, &[5, 2, 2, 3]);
    let (block, b) = block();
    testing::check_gradients(&InTwo(block, Mutex::default()), &b.store, &[5, 3, 2, 3]);
}

#[test]
fn two_grains_are_the_whole_batch_to_rounding() {
    let ((apart, b), (whole, _)) = (block(), block());
    let apart = InTwo(apart, Mutex::default());
    let (mut params, mut norms) = (Vec::new(), Vec::new());
    whole.params(&mut params);
    whole.norms(&mut norms);
    let means: Vec<_> = norms.iter().map(|n| n.0).collect();
    let layout = Layout::new(&b.store, &params, &means);
    let pass = Pass { layout: Some(&layout), ..Pass::eval(&b.store) };
    let x = testing::array(&[7, 4, 3, 3]);
    let pass_of = |layer: &dyn Layer| {
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let y = layer.forward(&x, &pass, &mut tape).unwrap();
        let dx = layer.backward(&x, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        [host(&y).unwrap().to_vec(), host(&dx).unwrap().to_vec(), grads.flat]
    };
    let ours = pass_of(&apart);
    // Whoever waits may hold the only thread of the rank's pool.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(pool.install(|| pass_of(&apart)) == ours);
    for (ours, wanted) in ours.iter().zip(&pass_of(&whole)) {
        for (a, b) in ours.iter().zip(wanted) {
            assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
        }
    }
    // Nothing is waited for where batch-norms do not learn.
    let frozen = Layout::new(&b.store, &params, &[]);
    let pass = Pass { layout: Some(&frozen), grains: Some(&Nobody), ..Pass::eval(&b.store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&frozen));
    whole.forward(&x, &pass, &mut tape).unwrap();
    whole.backward(&x, &pass, &mut tape, &mut grads, true).unwrap();
}

struct Nobody;

impl Grains for Nobody {
    fn joined(&self, _: Vec<f64>, _: Join) -> Result<Arc<[f64]>> {
        panic!("a layer waits for nobody")
    }
}

fn add(sums: &mut [f64], next: &[f64]) {
    sums[0] = sums[0] * 10.0 + next[0];
}

#[test]
fn numbers_are_joined_in_the_order_of_grains_as_often_as_grains_ask() {
    let all = run(std::slice::from_ref(&(0..4)), &mut Solo, |i, grains| {
        (0..3).map(|round| Ok(grains.joined(vec![(i + round) as f64], Join::Fold(add))?[0])).collect::<Result<Vec<_>>>()
    });
    assert_eq!(all.unwrap(), vec![vec![123.0, 1234.0, 2345.0]; 4]);
}

#[test]
fn grains_hand_in_what_they_have_one_after_the_other() {
    let all = run(std::slice::from_ref(&(0..3)), &mut Solo, |i, grains| {
        Ok(grains.joined(vec![i as f64; i], Join::Append)?.to_vec())
    });
    assert_eq!(all.unwrap(), vec![vec![1.0, 2.0, 2.0]; 3]);
    let odd = run(std::slice::from_ref(&(1..3)), &mut Solo, |i, grains| {
        grains.joined(vec![0.0; i], Join::Fold(add)).map(|_| ())
    });
    assert!(odd.unwrap_err().to_string().contains("same layers"));
}

#[test]
fn a_grain_that_fails_or_breaks_down_ends_the_others() {
    for at in 0..4 {
        let work = |how: &(dyn Fn() -> Result<()> + Sync)| {
            run(std::slice::from_ref(&(0..4)), &mut Solo, |i, grains| {
                grains.joined(vec![0.0], Join::Fold(add))?;
                if i == at {
                    how()?;
                }
                grains.joined(vec![0.0], Join::Fold(add)).map(|_| ())
            })
        };
        let error = work(&|| Err(Error::NotFinite("the loss is gone".into()))).unwrap_err();
        assert_eq!(error.to_string(), "the loss is gone");
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&|| panic!("boom"))));
        assert_eq!(broken.unwrap_err().downcast_ref::<&str>(), Some(&"boom"));
    }
    let uneven = run(std::slice::from_ref(&(0..2)), &mut Solo, |i, grains| match i {
        0 => Ok(()),
        _ => grains.joined(vec![0.0], Join::Fold(add)).map(|_| ()),
    });
    assert!(uneven.unwrap_err().to_string().contains("do not wait at the same layers"));
}

/// Two ranks, of which the other is gone after so many messages.
struct Lost(usize);

impl Collective for Lost {
    fn rank(&self) -> usize {
        0
    }
    fn weights(&self) -> &[u32] {
        &[1, 1]
    }
    fn messages(&self) -> u64 {
        0
    }
    fn send_parts(&mut self, _: usize, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }
    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        self.0 = self.0.checked_sub(1).ok_or(Error::LostPeer { peer: from, cause: "gone".into() })?;
        Ok([&[Word::Waiting as u8][..], &1u64.to_le_bytes(), &2.0f64.to_le_bytes()].concat())
    }
}

#[test]
fn a_lost_peer_releases_every_grain() {
    for messages in 0..3 {
        let shares = [0..3, 3..4];
        let outcome = run(&shares, &mut Lost(messages), |_, grains| {
            loop {
                assert_eq!(grains.joined(vec![1.0], Join::Fold(add))?[0], 1112.0);
            }
        });
        let error: Result<Vec<()>> = outcome;
        assert!(matches!(error.unwrap_err(), Error::LostPeer { peer: 1, .. }));
    }
    // Also where this rank has none, and when the other says what cannot be.
    let none = run(&[0..0, 0..1], &mut Lost(2), |_, _| Ok(()));
    assert!(matches!(none.unwrap_err(), Error::LostPeer { .. }));
    let odd = run(&[0..1, 1..3], &mut Lost(2), |_, grains| grains.joined(vec![1.0], Join::Fold(add)).map(|_| ()));
    assert!(odd.unwrap_err().to_string().contains("same layers"));
}

#[test]
fn what_is_too_much_for_a_gpu_are_all_grains_of_a_rank() {
    let work = |_: usize, _: &dyn Grains| -> Result<()> { Err(Error::GpuMemory(Full::Grain)) };
    let full = run(std::slice::from_ref(&BOTH), &mut Solo, work);
    assert!(matches!(full, Err(Error::GpuMemory(Full::Grains))), "{full:?}");
}
