//! Weights as products take them, packed once for all grains of a step, and once for all steps where nothing trains them:
//! for a few samples, packing takes as long as their product. What only evaluates has as many samples as fit, and leaves
//! nothing packed behind, which would take the memory of the weights once more; what it has sent to a GPU stays there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[cfg(feature = "cuda")]
use super::BufferId;
use super::{Layout, ParamId, Pass};
#[cfg(feature = "cuda")]
use crate::gpu::{Operand, Placed};
use crate::num::gemm::Packed;

/// Which product takes the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// That of the outputs.
    Forward,
    /// That of the gradient of the input.
    Back,
}

#[derive(Default)]
pub(super) struct Kept {
    weights: BTreeMap<(ParamId, Way), Arc<Packed>>,
    /// The same on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) operands: BTreeMap<ParamId, Operand>,
    /// And parameters there that lie as in the store, and whether they are exact: else they are in the precision of products.
    #[cfg(feature = "cuda")]
    pub(super) placed: BTreeMap<(ParamId, bool), Placed>,
    /// Running statistics there, by their means.
    #[cfg(feature = "cuda")]
    pub(super) running: BTreeMap<BufferId, Placed>,
    /// All buffers there, as they are in this step.
    #[cfg(feature = "cuda")]
    pub(super) buffers: Option<Placed>,
    /// What is trained, where it stays on a GPU between steps: in the order of the flat gradient.
    #[cfg(feature = "cuda")]
    pub(super) resident: Option<Placed>,
    /// Whether what is trained is worth keeping: there are several grains.
    pub(super) several: bool,
}

impl Kept {
    /// Whether what a parameter has gone up as is worth keeping. What is trained would be made a second time on the way back,
    /// also of one grain. Of what stays there, and is at hand, only what takes little memory is kept for one grain.
    #[cfg(feature = "cuda")]
    pub(super) fn keeps(&self, trained: bool, takes_little: bool) -> bool {
        takes_little || self.several || !trained || self.resident.is_none()
    }

    /// Forgets what has other values after a step.
    fn forget(&mut self, layout: &Layout) {
        self.weights.retain(|(id, _), _| layout.slot(*id).is_none());
        #[cfg(feature = "cuda")]
        self.operands.retain(|id, _| layout.slot(*id).is_none());
        #[cfg(feature = "cuda")]
        self.placed.retain(|(id, _), _| layout.slot(*id).is_none());
        #[cfg(feature = "cuda")]
        {
            self.buffers = None;
            self.running.retain(|mean, _| layout.stats(*mean).is_none());
        }
    }
}

/// Packed weights of one store. Their memory is that of the weights once more, and twice where gradients go through them.
#[derive(Default)]
pub struct Packs(Mutex<Kept>);

impl Packs {
    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a step of so many grains: what the layout trains has other values than in the last one.
    pub fn begin(&self, layout: &Layout, grains: usize) {
        let mut kept = self.kept();
        kept.several = grains > 1;
        kept.forget(layout);
    }

    /// Ends a step: the optimizer needs memory too.
    pub fn end(&self, layout: &Layout) {
        self.kept().forget(layout);
    }

    /// Has `work` take what is trained from other values than everybody else: nothing that is kept of one shows in the other.
    #[cfg(feature = "cuda")]
    pub fn lend<T>(&self, layout: &Layout, values: &Placed, work: impl FnOnce() -> T) -> T {
        let instead = |several, resident| {
            let mut kept = self.kept();
            kept.forget(layout);
            (std::mem::replace(&mut kept.several, several), std::mem::replace(&mut kept.resident, resident))
        };
        // What goes forward goes back.
        let (several, resident) = instead(true, Some(values.clone()));
        let done = work();
        instead(several, resident);
        done
    }

    /// What is trained, if it is taken from anywhere but the store.
    #[cfg(feature = "cuda")]
    pub fn resident(&self) -> Option<Placed> {
        self.kept().resident.clone()
    }

    /// From here on what is trained is taken from these values, in the order of the flat gradient; again from the store if
    /// there are none. Nothing is kept of what it was before.
    #[cfg(feature = "cuda")]
    pub fn take_from(&self, layout: &Layout, resident: Option<&Placed>) {
        let mut kept = self.kept();
        kept.forget(layout);
        kept.resident = resident.cloned();
    }

    /// Leaves what is kept where it lies, for good: where something has failed, giving memory back could wait for what will
    /// never be done.
    #[cfg(feature = "cuda")]
    pub fn lose(&self) {
        std::mem::forget(std::mem::take(&mut *self.kept()));
    }
}

impl Pass<'_> {
    /// Weights as a product takes them, packed by `pack` unless they are at hand.
    pub(super) fn packed(&self, id: ParamId, way: Way, pack: impl FnOnce(&[f32]) -> Packed) -> Arc<Packed> {
        let known = self.packs.and_then(|packs| packs.kept().weights.get(&(id, way)).cloned());
        known.unwrap_or_else(|| {
            // Nobody waits for it meanwhile: a thread that packs takes up other tasks, which may want weights too. What two
            // have packed at a time is the same.
            let made = Arc::new(pack(&self.weight(id)));
            if let Some(mut kept) = self.packs.filter(|_| self.records()).map(Packs::kept)
                && (kept.several || !self.trains(id))
            {
                kept.weights.insert((id, way), made.clone());
            }
            made
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::Builder,
        num::gemm::{View, rows_product},
    };

    #[test]
    fn what_is_trained_is_packed_once_a_step_and_what_is_frozen_once() {
        let mut b = Builder::new(1);
        let (trained, frozen) = (b.linear("trained", (3, 2)).w, b.linear("frozen", (3, 2)).w);
        let layout = Layout::new(&b.store, &[trained], &[]);
        let packs = Packs::default();
        let mut store = b.store;
        // How often either is packed in a step of so many grains, and that products are those of the values of now.
        let mut step = |grains: usize| {
            store.values.iter_mut().for_each(|v| *v += 1.0);
            packs.begin(&layout, grains);
            let pass = Pass { packs: Some(&packs), layout: Some(&layout), ..Pass::eval(&store) };
            let mut counts = [0, 0];
            for _ in 0..grains {
                for (id, count) in [trained, frozen].into_iter().zip(&mut counts) {
                    for way in [Way::Forward, Way::Back] {
                        let packed = pass.packed(id, way, |w| {
                            *count += 1;
                            Packed::of(View::transposed(w, 3), 3, 2)
                        });
                        if id == trained {
                            let want = store.param(id).chunks_exact(3).map(|row| row.iter().sum::<f32>());
                            let got = rows_product(&[1.0; 3], &packed, 2);
                            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "values of a step before");
                        }
                    }
                }
            }
            packs.end(&layout);
            counts
        };
        assert_eq!(step(4), [2, 2]);
        assert_eq!(step(4), [2, 0]);
        assert_eq!(step(1), [2, 0], "one grain keeps nothing that is trained");
        assert!(packs.kept().weights.keys().all(|(id, _)| *id == frozen));
    }

    #[test]
    fn what_only_evaluates_leaves_nothing_packed_and_takes_what_is_there() {
        let mut b = Builder::new(1);
        let w = b.linear("l", (3, 2)).w;
        let (store, packs) = (b.store, Packs::default());
        let layout = Layout::new(&store, &[], &[]);
        let packed = |pass: &Pass<'_>| {
            let mut count = 0;
            pass.packed(w, Way::Forward, |w| {
                count += 1;
                Packed::of(View::transposed(w, 3), 3, 2)
            });
            (count, packs.kept().weights.len())
        };
        let evaluates = Pass::again(&store, &packs);
        let records = Pass { layout: Some(&layout), ..evaluates };
        assert_eq!([packed(&evaluates), packed(&evaluates)], [(1, 0); 2]);
        assert_eq!([packed(&records), packed(&records), packed(&evaluates)], [(1, 1), (0, 1), (0, 1)]);
    }
}
