//! A gradient whose parts are taken while backward goes on, each as soon as it is final.

use std::{mem, ops::Range};

use super::{Flat, Gradients, ParamId};
use crate::{Error, Result};

/// Who takes a gradient part by part.
pub trait Taker: Send {
    /// Takes what there is of a run of the flat gradient, if there is anything: nothing more will come of it.
    ///
    /// # Errors
    /// Those of what is done with it.
    fn take(&mut self, run: Range<usize>, part: Option<Flat>) -> Result<()>;
}

/// Who takes the parts, and what they wait for.
pub(super) struct Early<'a> {
    to: &'a mut dyn Taker,
    /// Of each parameter that is trained and has not gone: how often it will still be passed.
    waits: Vec<Option<usize>>,
}

impl Early<'_> {
    /// A parameter is passed: whether that was the last time.
    fn was_last(&mut self, id: ParamId) -> bool {
        let Some(Some(times)) = self.waits.get_mut(id.0) else { return false };
        let last = *times == 1;
        *times = times.saturating_sub(1);
        if last {
            self.waits[id.0] = None;
        }
        last
    }
}

impl<'a> Gradients<'a> {
    /// The same, which `to` takes. `uses` names each parameter as often as [`Gradients::passed`] will at most: one that is
    /// passed less often goes at the end.
    pub fn taken_by(self, to: &'a mut dyn Taker, uses: impl IntoIterator<Item = ParamId>) -> Self {
        let layout = self.layout;
        let trained = |id| layout.slot(ParamId(id)).map(|_| 0);
        let mut waits: Vec<Option<usize>> = (0..self.touched.len()).map(trained).collect();
        for id in uses {
            if let Some(Some(times)) = waits.get_mut(id.0) {
                *times += 1;
            }
        }
        Self { early: Some(Early { to, waits }), ..self }
    }

    /// Says that what uses these parameters has gone backward. Those that nothing else uses are final, reached or not.
    ///
    /// # Errors
    /// Those of who takes them.
    pub fn passed(&mut self, used: impl FnOnce() -> Vec<ParamId>) -> Result<()> {
        if self.early.is_none() {
            return Ok(());
        }
        for id in used() {
            let goes = self.early.as_mut().is_some_and(|early| early.was_last(id));
            if let Some(run) = self.layout.slot(id).filter(|_| goes) {
                let there = self.taken(id)?;
                self.hand(run, there)?;
            }
        }
        Ok(())
    }

    /// Hands on all that has not gone: backward is over.
    pub(super) fn hand_rest(&mut self) -> Result<()> {
        let Some(early) = &mut self.early else { return Ok(()) };
        let (waits, layout) = (mem::take(&mut early.waits), self.layout);
        for (id, run) in layout.trained().filter(|(id, _)| waits[id.0].is_some()) {
            let there = self.taken(id)?;
            self.hand(run, there)?;
        }
        for (mean, run) in layout.norms() {
            let there = self.taken_stats(mean)?;
            self.hand(run, there)?;
        }
        if self.opened.is_empty() && self.all_taken() {
            return Ok(());
        }
        Err(Error::Internal("a gradient came after it had gone to the others".into()))
    }

    /// Hands on a run, with what has gathered of it in either memory.
    fn hand(&mut self, run: Range<usize>, there: Option<Flat>) -> Result<()> {
        let here = self.opened.remove(&run.start).map(|end| Flat::Host(self.flat[run.start..end].to_vec()));
        let part = match (there, here) {
            (Some(there), Some(here)) => Some(there.plus(here)?),
            (there, here) => there.or(here),
        };
        match &mut self.early {
            Some(early) => early.to.take(run, part),
            None => Ok(()),
        }
    }
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
impl Gradients<'_> {
    fn taken(&mut self, _: ParamId) -> Result<Option<Flat>> {
        Ok(None)
    }

    fn taken_stats(&mut self, _: super::BufferId) -> Result<Option<Flat>> {
        Ok(None)
    }

    fn all_taken(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{BatchNorm, Builder, Fill, Layer, Layout, Linear, Own, Pass, Store, Tape, testing};

    /// Layers in a line, of which the second comes again behind the third, without its bias being trained; and a tensor of an
    /// objective's own.
    struct Net {
        first: Linear,
        shared: Linear,
        norm: BatchNorm,
        last: Linear,
        own: ParamId,
        store: Store,
        layout: Layout,
    }

    fn net() -> Net {
        let mut b = Builder::new(3);
        let (first, shared) = (b.linear("first", (3, 3)), b.linear("shared", (3, 3)));
        let (norm, last) = (b.norm("norm", 3), b.linear("last", (3, 2)));
        let own = b.own(&Own { name: "own".into(), shape: vec![2], fill: Fill::Constant(1.0), span: None });
        let trained: Vec<ParamId> = (0..=own.0).filter(|id| *id != 3).map(ParamId).collect();
        let layout = Layout::new(&b.store, &trained, &[norm.mean]);
        Net { first, shared, norm, last, own, store: b.store, layout }
    }

    fn params(unit: &dyn Layer) -> Vec<ParamId> {
        let mut out = Vec::new();
        unit.params(&mut out);
        out
    }

    impl Net {
        fn units(&self) -> [&dyn Layer; 5] {
            [&self.first, &self.shared, &self.norm, &self.shared, &self.last]
        }

        fn uses(&self) -> Vec<ParamId> {
            self.units().into_iter().flat_map(params).chain([self.own]).collect()
        }

        fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
            let pass = Pass { layout: Some(&self.layout), ..Pass::eval(&self.store) };
            let (mut tape, mut x) = (Tape::default(), testing::array(&[4, 3]));
            for unit in self.units() {
                x = unit.forward(&x, &pass, &mut tape)?;
            }
            grads.slot(self.own).unwrap().copy_from_slice(&[0.5, -2.0]);
            grads.passed(|| vec![self.own])?;
            for unit in self.units().into_iter().rev() {
                x = unit.backward(&x, &pass, &mut tape, grads, true)?.unwrap();
                grads.passed(|| params(unit))?;
            }
            Ok(())
        }

        fn slots<const N: usize>(&self, ids: [usize; N]) -> Vec<Range<usize>> {
            ids.iter().map(|id| self.layout.slot(ParamId(*id)).unwrap()).collect()
        }
    }

    /// Adds up what it takes, and knows in which order it came; refuses more than so many.
    struct Sum {
        flat: Vec<f32>,
        taken: Vec<Range<usize>>,
        most: usize,
    }

    impl Sum {
        fn of(net: &Net) -> Self {
            Self { flat: vec![0.0; net.layout.total_len()], taken: Vec::new(), most: usize::MAX }
        }
    }

    impl Taker for Sum {
        fn take(&mut self, run: Range<usize>, part: Option<Flat>) -> Result<()> {
            if self.taken.len() == self.most {
                return Err(Error::Stopped);
            }
            let part = part.map(Flat::into_host).transpose()?.unwrap_or_default();
            self.flat[run.clone()].iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
            self.taken.push(run);
            Ok(())
        }
    }

    #[test]
    fn each_part_goes_when_nothing_uses_it_any_more_and_together_they_are_the_gradient() {
        let net = net();
        let mut whole = Gradients::new(&net.layout);
        net.backward(&mut whole).unwrap();
        let (want, touched) = whole.finish().unwrap();

        let mut sum = Sum::of(&net);
        let mut early = Gradients::unmade(&net.layout).taken_by(&mut sum, net.uses());
        net.backward(&mut early).unwrap();
        let (left, reached) = early.finish().unwrap();
        assert_eq!((left.count(), reached), (0, touched));
        assert_eq!(sum.flat, want.into_host().unwrap());
        // What is gone through twice goes when the layer between has, and the sums of the norm when all have.
        let mut order = net.slots([8, 6, 7, 4, 5, 2, 0, 1]);
        order.extend(net.layout.stats(net.norm.mean));
        assert_eq!(sum.taken, order);
    }

    #[test]
    fn what_is_not_passed_goes_at_the_end_and_what_comes_later_is_an_error() {
        let net = net();
        let mut sum = Sum::of(&net);
        // One is to be passed once more, and one was not announced.
        let mut early = Gradients::unmade(&net.layout).taken_by(&mut sum, [6, 6, 0].map(ParamId));
        early.slot(ParamId(6)).unwrap().fill(1.0);
        early.slot(ParamId(0)).unwrap().fill(2.0);
        early.passed(|| [6, 0, 4].map(ParamId).to_vec()).unwrap();
        early.finish().unwrap();
        assert_eq!(sum.taken[..8], net.slots([0, 1, 2, 4, 5, 6, 7, 8]));
        let (zero, six) = (net.layout.slot(ParamId(0)).unwrap(), net.layout.slot(ParamId(6)).unwrap());
        let value = |i: usize| if zero.contains(&i) { 2.0 } else { f32::from(u8::from(six.contains(&i))) };
        assert_eq!(sum.flat, (0..net.layout.total_len()).map(value).collect::<Vec<_>>());

        let mut sum = Sum::of(&net);
        let mut early = Gradients::unmade(&net.layout).taken_by(&mut sum, [ParamId(0)]);
        early.passed(|| vec![ParamId(0), ParamId(0)]).unwrap();
        early.slot(ParamId(0)).unwrap().fill(1.0);
        assert!(early.finish().is_err());
    }

    #[test]
    fn who_takes_them_ends_it() {
        let net = net();
        for most in 0..9 {
            let mut sum = Sum { most, ..Sum::of(&net) };
            let mut early = Gradients::unmade(&net.layout).taken_by(&mut sum, net.uses());
            let ended = net.backward(&mut early).and_then(|()| early.finish().map(drop));
            assert!(matches!(ended, Err(Error::Stopped)), "after {most}");
            assert_eq!(sum.taken.len(), most);
        }
    }
}
