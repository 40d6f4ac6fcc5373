//! Parameters and their gradients on the GPU that a layer's input lies on.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{Array, BufferId, Flat, Gradients, Packs, ParamId, Pass, Saved, Tape, precision::Rounds};
use crate::{
    Error, Result,
    gpu::{self, Device, Fault, Mixed, Operand, Placed, ops},
};

impl Array {
    /// What lies on a GPU.
    pub(super) fn mixed(&self) -> Result<&Mixed> {
        match self {
            Self::Device(numbers) => Ok(numbers),
            Self::Host(_) => Err(Error::Internal("numbers of the host were opened as a GPU's".into())),
        }
    }

    /// The same in f32.
    pub(super) fn placed(&self) -> Result<Placed> {
        Ok(self.mixed()?.full()?)
    }
}

impl Pass<'_> {
    /// What a product takes of an array, in the pass's precision.
    pub(super) fn operand(&self, x: &Mixed) -> Result<Operand> {
        Ok(Operand::of(x, self.precision())?)
    }

    /// What a layer of images hands on: in the memory of bf16 where that is what it computes with. Elsewhere nothing lies there,
    /// or an operation would have rounded what the host does not.
    pub(super) fn handed(&self, made: impl Into<Mixed>) -> Result<Mixed> {
        let made = made.into();
        if !self.precision().outside().is_f32() {
            return Ok(made.rounded()?);
        }
        if made.is_half() {
            return Err(Error::Internal(format!("a layer was given bf16 in {}", self.precision())));
        }
        Ok(made)
    }

    /// A weight of a product, as it takes it, where `at` lies. It goes up once a step, and once for all steps where nothing
    /// trains it. All layers of a weight must want the same.
    pub(super) fn operand_of(&self, id: ParamId, shape: &[usize], at: &Arc<Device>) -> Result<Operand> {
        self.weights_of(id, shape, at, false)
    }

    /// The same of the kernels of a convolution, as [`ops::channels_last`].
    pub(super) fn kernels_of(&self, id: ParamId, shape: &[usize], at: &Arc<Device>) -> Result<Operand> {
        self.weights_of(id, shape, at, true)
    }

    fn weights_of(&self, id: ParamId, shape: &[usize], at: &Arc<Device>, channels_last: bool) -> Result<Operand> {
        if let Some(known) = self.packs.and_then(|packs| packs.kept().operands.get(&id).cloned()) {
            return Ok(known);
        }
        let precision = self.precision();
        let made = match self.resident(id) {
            Some((all, slot)) => Operand::of_run(&all, slot, shape, channels_last, precision)?,
            None => {
                let own = Placed::new(at.clone(), at.upload(self.store.param(id), shape)?);
                match channels_last {
                    true => Operand::of_run(&own, 0..own.array().count(), shape, true, precision)?,
                    false => self.operand(&own.into())?,
                }
            }
        };
        if let Some(mut kept) = self.packs.map(Packs::kept)
            && kept.keeps(self.trains(id), made.is_half())
        {
            kept.operands.insert(id, made.clone());
        }
        Ok(made)
    }

    /// A bias of a product, or a weight that no library multiplies, in f32: rounded as it is outside of products. It goes up as
    /// often as a weight does.
    pub(super) fn placed(&self, id: ParamId, shape: &[usize], at: &Arc<Device>) -> Result<Placed> {
        self.sent(id, shape, at, false)
    }

    /// The same of a parameter that no product takes: it is never rounded.
    pub(super) fn placed_exact(&self, id: ParamId, shape: &[usize], at: &Arc<Device>) -> Result<Placed> {
        self.sent(id, shape, at, true)
    }

    fn sent(&self, id: ParamId, shape: &[usize], at: &Arc<Device>, exact: bool) -> Result<Placed> {
        if let Some(known) = self.packs.and_then(|packs| packs.placed(id, exact)) {
            return Ok(known);
        }
        let rounds = !exact && !self.precision().outside().is_f32();
        let made = match self.resident(id) {
            Some((all, slot)) => all.made(|device, all| match rounds {
                true => ops::round_bf16_run(device, all, slot, shape),
                false => device.part(all, slot, shape),
            })?,
            None => {
                let own = Placed::new(at.clone(), at.upload(self.store.param(id), shape)?);
                if rounds { own.made(ops::round_bf16)? } else { own }
            }
        };
        if let Some(packs) = self.packs {
            packs.keep((id, exact), &made, self.trains(id));
        }
        Ok(made)
    }

    /// Where a parameter lies that stays on the GPU between steps, in any precision: the store has none of it then.
    fn resident(&self, id: ParamId) -> Option<(Placed, Range<usize>)> {
        let all = self.packs.and_then(|packs| packs.kept().resident.clone())?;
        Some((all, self.layout?.slot(id)?))
    }
}

impl Tape {
    /// As [`Tape::push_input`], of what a product has taken of an input of that shape.
    pub(super) fn push_operand(&mut self, x: Operand, shape: &[usize], pass: &Pass<'_>, weights: ParamId) {
        if pass.records() {
            let shape = shape.to_vec();
            self.push(if pass.trains(weights) { Saved::Operand(x, shape) } else { Saved::Shape(shape) });
        }
    }

    /// The shape of an input, and what a product has taken of it if that was kept.
    pub(super) fn pop_operand(&mut self) -> Result<(Vec<usize>, Option<Operand>)> {
        self.take(|saved| match saved {
            Saved::Operand(x, shape) => Some((shape, Some(x))),
            Saved::Shape(shape) => Some((shape, None)),
            _ => None,
        })
    }
}

/// Numbers of a parameter that take next to no memory: biases, scales and shifts, depthwise kernels.
const LITTLE: usize = 1 << 17;

impl Packs {
    fn placed(&self, id: ParamId, exact: bool) -> Option<Placed> {
        self.kept().placed.get(&(id, exact)).cloned()
    }

    fn keep(&self, which: (ParamId, bool), placed: &Placed, trained: bool) {
        let mut kept = self.kept();
        if kept.keeps(trained, placed.array().count() <= LITTLE) {
            kept.placed.insert(which, placed.clone());
        }
    }
}

/// Adds to a sum where `at` lies; one that is not there yet begins with zeros.
pub(super) fn add_to<K: Ord>(
    sums: &mut BTreeMap<K, Placed>,
    key: K,
    shape: &[usize],
    at: &Arc<Device>,
    add: impl FnOnce(&Device, &mut gpu::Array) -> Result<(), Fault>,
) -> Result<()> {
    let mut sum = match sums.remove(&key) {
        Some(sum) => sum,
        None => Placed::new(at.clone(), at.zeros(shape)?),
    };
    sum.change(add)?;
    sums.insert(key, sum);
    Ok(())
}

impl Gradients<'_> {
    /// Adds to the gradient of a parameter where `at` lies, if it is trained.
    pub(super) fn add_placed(
        &mut self,
        id: ParamId,
        shape: &[usize],
        at: &Arc<Device>,
        add: impl FnOnce(&Device, &mut gpu::Array) -> Result<(), Fault>,
    ) -> Result<()> {
        if self.layout.slot(id).is_none() {
            return Ok(());
        }
        self.touched[id.0] = true;
        add_to(&mut self.placed, id, shape, at, add)
    }

    /// One flat gradient where anything has gathered on a GPU, with what was added in the host's memory; nothing where
    /// nothing has. Each number is the sum that it is in [`Gradients::come_down`].
    pub(super) fn gathered(&self) -> Result<Option<Placed>> {
        let Some(at) = self.placed.values().chain(self.placed_stats.values()).next() else { return Ok(None) };
        let slopes = self.placed.iter().filter_map(|(id, sum)| Some((self.layout.slot(*id)?.start, sum.array())));
        let sums = self.placed_stats.iter();
        let sums = sums.filter_map(|(mean, sum)| Some((self.layout.stats(*mean)?.start, sum.array())));
        let sums: Vec<(usize, &gpu::Array)> = slopes.chain(sums).collect();
        let flat = at.made(|device, _| {
            // No sum is a negative zero, since each has begun with zeros: a copy is what adding it to zeros would be.
            let mut flat = device.laid(self.layout.total_len(), &sums)?;
            for (from, to) in &self.opened {
                let sent = device.upload(&self.flat[*from..*to], &[to - from])?;
                ops::add_run(device, &mut flat, *from, &sent)?;
            }
            Ok(flat)
        })?;
        Ok(Some(flat))
    }

    /// What has gathered on a GPU of the gradient of a parameter, in the form of a run of the flat one.
    pub(super) fn taken(&mut self, id: ParamId) -> Result<Option<Flat>> {
        run_of(self.placed.remove(&id))
    }

    /// The same of the sums of a batch-norm.
    pub(super) fn taken_stats(&mut self, mean: BufferId) -> Result<Option<Flat>> {
        run_of(self.placed_stats.remove(&mean))
    }

    /// Whether nothing lies on a GPU.
    pub(super) fn all_taken(&self) -> bool {
        self.placed.is_empty() && self.placed_stats.is_empty()
    }

    /// Adds what has gathered on a GPU to the elements in the host's memory, and to the sums of batch-norms behind them.
    ///
    /// # Errors
    /// What makes it has failed.
    pub fn come_down(&mut self) -> Result<()> {
        for (id, sum) in std::mem::take(&mut self.placed) {
            let sum = sum.download()?;
            if let Some(slot) = self.slot(id) {
                slot.iter_mut().zip(&sum).for_each(|(to, v)| *to += v);
            }
        }
        for (mean, sums) in std::mem::take(&mut self.placed_stats) {
            let sums = sums.download()?;
            if let Some(slot) = self.stats(mean) {
                slot.iter_mut().zip(&sums).for_each(|(to, v)| *to += v);
            }
        }
        Ok(())
    }
}

fn run_of(sum: Option<Placed>) -> Result<Option<Flat>> {
    let Some(sum) = sum else { return Ok(None) };
    let count = sum.array().count();
    Ok(Some(Flat::Device(sum.reshaped(&[count])?)))
}
