//! Parameters and their gradients on the GPU that a layer's input lies on.

use std::{collections::BTreeMap, sync::Arc};

use super::{Array, BufferId, Flat, Gradients, Packs, ParamId, Pass, Saved, Tape, precision::Rounds};
use crate::{
    Error, Result,
    gpu::{self, Device, Fault, Mixed, Operand, Placed, ops},
};

/// What an operation makes of a weight before it takes it.
pub(super) type Turn = fn(&Device, &gpu::Array) -> Result<gpu::Array, Fault>;

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

    /// What a layer of images hands on: in the memory of bf16 where that is what it computes with.
    pub(super) fn handed(&self, made: impl Into<Mixed>) -> Result<Mixed> {
        let made = made.into();
        if self.precision().outside().is_f32() { Ok(made) } else { Ok(made.rounded()?) }
    }

    /// A weight of a product, as it takes it, where `at` lies: turned, if the operation wants it so. It goes up once a step,
    /// and once for all steps where nothing trains it. All layers of a weight must want the same.
    pub(super) fn operand_of(
        &self,
        id: ParamId,
        shape: &[usize],
        at: &Arc<Device>,
        turn: Option<Turn>,
    ) -> Result<Operand> {
        if let Some(known) = self.packs.and_then(|packs| packs.kept().operands.get(&id).cloned()) {
            return Ok(known);
        }
        let own = self.lying(id, shape, at)?;
        let turned = match turn {
            Some(turn) => own.made(turn)?,
            None => own,
        };
        let made = self.operand(&turned.into())?;
        if let Some(mut kept) = self.packs.map(Packs::kept)
            && kept.keeps(self.trains(id))
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
        let own = self.lying(id, shape, at)?;
        let made = if exact || self.precision().outside().is_f32() { own } else { own.made(ops::round_bf16)? };
        if let Some(packs) = self.packs {
            packs.keep((id, exact), &made, self.trains(id));
        }
        Ok(made)
    }

    /// A parameter as it is.
    fn lying(&self, id: ParamId, shape: &[usize], at: &Arc<Device>) -> Result<Placed> {
        match self.resident(id, shape)? {
            Some(own) => Ok(own),
            None => Ok(Placed::new(at.clone(), at.upload(self.store.param(id), shape)?)),
        }
    }

    /// The elements of a parameter that stays on the GPU between steps, in any precision: there the store has none.
    fn resident(&self, id: ParamId, shape: &[usize]) -> Result<Option<Placed>> {
        let all = self.packs.and_then(|packs| packs.kept().resident.clone());
        let (Some(all), Some(slot)) = (all, self.layout.and_then(|layout| layout.slot(id))) else { return Ok(None) };
        Ok(Some(all.made(|device, all| device.part(all, slot, shape))?))
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

impl Packs {
    fn placed(&self, id: ParamId, exact: bool) -> Option<Placed> {
        self.kept().placed.get(&(id, exact)).cloned()
    }

    fn keep(&self, which: (ParamId, bool), placed: &Placed, trained: bool) {
        let mut kept = self.kept();
        if kept.keeps(trained) {
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
        let slopes = self.placed.iter().filter_map(|(id, sum)| Some((self.layout.slot(*id)?, sum)));
        let sums = self.placed_stats.iter().filter_map(|(mean, sum)| Some((self.layout.stats(*mean)?, sum)));
        let sums = slopes.chain(sums);
        let flat = at.made(|device, _| {
            let mut flat = device.zeros(&[self.layout.total_len()])?;
            for (slot, sum) in sums {
                ops::add_run(device, &mut flat, slot.start, sum.array())?;
            }
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
