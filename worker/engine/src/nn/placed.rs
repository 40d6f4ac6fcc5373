//! Parameters and their gradients on the GPU that a layer's input lies on.

use std::borrow::Cow;

use super::{Array, Gradients, Packs, ParamId, Pass};
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
        self.sent(id, shape, at, || self.weight(id))
    }

    /// The same of a parameter that no product takes, which is f32 in any precision.
    pub(super) fn placed_exact(&self, id: ParamId, shape: &[usize], at: &Placed) -> Result<Placed> {
        self.sent(id, shape, at, || Cow::Borrowed(self.store.param(id)))
    }

    fn sent<'v>(
        &self,
        id: ParamId,
        shape: &[usize],
        at: &Placed,
        values: impl FnOnce() -> Cow<'v, [f32]>,
    ) -> Result<Placed> {
        if let Some(known) = self.packs.and_then(|packs| packs.placed(id)) {
            return Ok(known);
        }
        let values = values();
        let made = at.made(|device, _| device.upload(&values[..], shape))?;
        if let Some(packs) = self.packs {
            packs.keep(id, &made, self.trains(id));
        }
        Ok(made)
    }

    /// What a product takes, or gives, in the pass's precision.
    pub(super) fn rounded(&self, x: Placed) -> Result<Placed> {
        if self.precision().is_f32() { Ok(x) } else { Ok(x.made(ops::round_bf16)?) }
    }
}

impl Packs {
    fn placed(&self, id: ParamId) -> Option<Placed> {
        self.kept().placed.get(&id).cloned()
    }

    fn keep(&self, id: ParamId, placed: &Placed, trained: bool) {
        let mut kept = self.kept();
        if kept.several || !trained {
            kept.placed.insert(id, placed.clone());
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
        if self.slot(id).is_none() {
            return Ok(());
        }
        let mut sum = match self.placed.remove(&id) {
            Some(sum) => sum,
            None => at.made(|device, _| device.zeros(shape))?,
        };
        sum.change(add)?;
        self.placed.insert(id, sum);
        Ok(())
    }

    /// Adds what has gathered on a GPU to the flat gradient.
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
        Ok(())
    }
}
