//! Parameters and their gradients on the GPU that a layer's input lies on.

use std::borrow::Cow;

use super::{Array, BufferId, Flat, Gradients, Packs, ParamId, Pass};
use crate::{
    Error, Result,
    gpu::{self, Device, Fault, Placed, ops},
};

impl Array {
    /// What lies on a GPU.
    pub(super) fn placed(&self) -> Result<&Placed> {
        match self {
            Self::Device(placed) => Ok(placed),
            Self::Host(_) => Err(Error::Internal("numbers of the host were opened as a GPU's".into())),
        }
    }
}

impl Pass<'_> {
    /// A weight or a bias of a product, as it takes it, where `at` lies. It goes up once for the grains of a step, and once
    /// for all steps where nothing trains it.
    pub(super) fn placed(&self, id: ParamId, shape: &[usize], at: &Placed) -> Result<Placed> {
        self.sent(id, shape, at, false)
    }

    /// The same of a parameter that no product takes: it is never rounded.
    pub(super) fn placed_exact(&self, id: ParamId, shape: &[usize], at: &Placed) -> Result<Placed> {
        self.sent(id, shape, at, true)
    }

    fn sent(&self, id: ParamId, shape: &[usize], at: &Placed, exact: bool) -> Result<Placed> {
        if let Some(known) = self.packs.and_then(|packs| packs.placed(id, exact)) {
            return Ok(known);
        }
        let made = match self.resident(id, shape)? {
            Some(own) if exact => own,
            Some(own) => self.rounded(own)?,
            None => {
                let values: Cow<'_, [f32]> = if exact { self.store.param(id).into() } else { self.weight(id) };
                at.made(|device, _| device.upload(&values, shape))?
            }
        };
        if let Some(packs) = self.packs {
            packs.keep((id, exact), &made, self.trains(id));
        }
        Ok(made)
    }

    /// A weight turned into what an operation takes, which is kept in its place. All layers of a weight must want the same.
    pub(super) fn placed_turned(
        &self,
        id: ParamId,
        shape: &[usize],
        at: &Placed,
        turn: impl FnOnce(&Device, &gpu::Array) -> Result<gpu::Array, Fault>,
    ) -> Result<Placed> {
        if let Some(known) = self.packs.and_then(|packs| packs.kept().turned.get(&id).cloned()) {
            return Ok(known);
        }
        let made = self.placed(id, shape, at)?.made(turn)?;
        if let Some(mut kept) = self.packs.map(Packs::kept)
            && (kept.several || !self.trains(id))
        {
            kept.placed.remove(&(id, false));
            kept.turned.insert(id, made.clone());
        }
        Ok(made)
    }

    /// The elements of a parameter that stays on the GPU between steps, in any precision: there the store has none.
    fn resident(&self, id: ParamId, shape: &[usize]) -> Result<Option<Placed>> {
        let all = self.packs.and_then(|packs| packs.kept().resident.clone());
        let (Some(all), Some(slot)) = (all, self.layout.and_then(|layout| layout.slot(id))) else { return Ok(None) };
        Ok(Some(all.made(|device, all| device.part(all, slot, shape))?))
    }

    /// What a product takes, or gives, in the pass's precision.
    pub(super) fn rounded(&self, x: Placed) -> Result<Placed> {
        if self.precision().is_f32() { Ok(x) } else { Ok(x.made(ops::round_bf16)?) }
    }
}

impl Packs {
    fn placed(&self, id: ParamId, exact: bool) -> Option<Placed> {
        self.kept().placed.get(&(id, exact)).cloned()
    }

    fn keep(&self, which: (ParamId, bool), placed: &Placed, trained: bool) {
        let mut kept = self.kept();
        if kept.several || !trained {
            kept.placed.insert(which, placed.clone());
        }
    }
}

impl Gradients<'_> {
    /// Adds to the gradient of a parameter where `at` lies, if it is trained.
    pub(super) fn add_placed(
        &mut self,
        id: ParamId,
        shape: &[usize],
        at: &Placed,
        add: impl FnOnce(&Device, &mut gpu::Array) -> Result<(), Fault>,
    ) -> Result<()> {
        if self.layout.slot(id).is_none() {
            return Ok(());
        }
        self.touched[id.0] = true;
        let mut sum = match self.placed.remove(&id) {
            Some(sum) => sum,
            None => at.made(|device, _| device.zeros(shape))?,
        };
        sum.change(add)?;
        self.placed.insert(id, sum);
        Ok(())
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
