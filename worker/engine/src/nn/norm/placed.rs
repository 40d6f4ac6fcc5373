//! Batch-norms of what lies on a GPU. What grains tell each other are a few numbers for each channel: they meet on the host.

use std::sync::Arc;

use super::{Array, BatchNorm, BufferId, Gradients, Join, Pass, Saved, Tape, grains, join_grains};
use crate::{
    Result,
    gpu::{
        self, Device, Fault, Mixed, Placed, both, either,
        ops::{self, Affine, Element, Slopes},
    },
    nn::{Packs, placed::add_to},
};

impl BatchNorm {
    /// The running statistics, in the form of others. They go up as often as a weight does.
    fn placed_running(&self, pass: &Pass<'_>, at: &Arc<Device>) -> Result<Placed> {
        if let Some(known) = pass.packs.and_then(|packs| packs.kept().running.get(&self.mean).cloned()) {
            return Ok(known);
        }
        let up = |id| at.upload(pass.store.buffer(id), &[self.c]);
        let stats = ops::running_statistics(at, &up(self.mean)?, &up(self.var)?, self.eps)?;
        let made = Placed::new(at.clone(), stats);
        if let Some(mut kept) = pass.packs.map(Packs::kept)
            && (kept.several || !self.is_training(pass))
        {
            kept.running.insert(self.mean, made.clone());
        }
        Ok(made)
    }

    /// Mean, 1/√(var + eps) and var of each channel, of all that the statistics are of.
    fn placed_statistics(&self, x: &Mixed, pass: &Pass<'_>) -> Result<Placed> {
        let device = x.device();
        if !self.is_training(pass) {
            return self.placed_running(pass, device);
        }
        let mut moments = either!(x, |x| ops::moments(device, x.array()))?;
        if let Some(grains) = pass.grains {
            let all = grains.joined(device.download(&moments)?, Join::Fold(join_grains))?;
            moments = device.upload(&all[..], moments.shape())?;
        }
        Ok(Placed::new(device.clone(), ops::statistics(device, &moments, self.eps)?))
    }

    /// γ and β.
    fn placed_affine(&self, pass: &Pass<'_>, at: &Arc<Device>) -> Result<(Placed, Placed)> {
        let exact = |id| pass.placed_exact(id, &[self.c], at);
        Ok((exact(self.gamma)?, exact(self.beta)?))
    }

    pub(super) fn placed(&self, x: &Mixed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Mixed> {
        let (stats, (gamma, beta)) = (self.placed_statistics(x, pass)?, self.placed_affine(pass, x.device())?);
        let affine = Affine { gamma: gamma.array(), beta: beta.array() };
        let y = either!(x, |x| {
            x.made(|device, x| ops::normalise(device, x, stats.array(), affine, self.act)).map(Mixed::from)
        })?;
        if pass.records() {
            if self.keeps(pass) {
                tape.push(Saved::Array(x.clone().into()));
            }
            tape.push(Saved::Array(stats.into()));
        }
        pass.handed(y)
    }

    pub(super) fn placed_backward(
        &self,
        dy: &Mixed,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Mixed>> {
        let stats = tape.pop_array()?.placed()?;
        let stats = stats.array();
        let x = if self.keeps(pass) { Some(tape.pop_array()?) } else { None };
        let x = x.as_ref().map(Array::mixed).transpose()?;
        let (device, training, width) = (dy.device(), self.is_training(pass), [self.c]);
        let (gamma, beta) = self.placed_affine(pass, device)?;
        let affine = Affine { gamma: gamma.array(), beta: beta.array() };
        let (Some(x), true) = (x, self.learns(pass)) else {
            // Where nothing was kept, there is no activation, and only β may learn.
            grads.add_placed(self.beta, &width, device, |device, dbeta| {
                either!(dy, |dy| ops::add_sums(device, dy.array(), dbeta))
            })?;
            if !need_dx {
                return Ok(None);
            }
            let dx = match x {
                Some(x) => both!(dy, x, |dy, x| self.through_fixed(dy, Some(x), stats, affine)),
                None => either!(dy, |dy| self.through_fixed(dy, None, stats, affine)),
            };
            return pass.handed(dx?).map(Some);
        };
        // Once for all that follows: widened where only one of them lies in bf16.
        let (dy, x) = both!(dy, x, |dy, x| Ok((Mixed::from(dy.clone()), Mixed::from(x.clone()))))?;
        let slopes = both!(&dy, &x, |dy, x| ops::slopes(device, dy.array(), x.array(), stats, affine, self.act))?;
        grads.add_placed(self.gamma, &width, device, |device, dgamma| {
            ops::scale_gradient(device, &slopes, stats, dgamma)
        })?;
        grads.add_placed(self.beta, &width, device, |device, dbeta| ops::shift_gradient(device, &slopes, dbeta))?;
        if training {
            let (running, rows) = (self.placed_running(pass, device)?, dy.rows());
            grads.add_placed_stats(self.mean, device, |device, slot| {
                ops::deposit(device, stats, running.array(), rows, slot)
            })?;
        }
        if !need_dx {
            return Ok(None);
        }
        let dx = if training {
            let all = self.of_all(slopes, device, pass)?;
            both!(&dy, &x, |dy, x| {
                dy.made(|device, dy| ops::through(device, dy, x.array(), &all, stats, affine, self.act))
                    .map(Mixed::from)
            })
        } else {
            both!(&dy, &x, |dy, x| self.through_fixed(dy, Some(x), stats, affine))
        };
        pass.handed(dx?).map(Some)
    }

    /// The input's gradient through fixed statistics; without an activation it needs no input.
    fn through_fixed<T: Element>(
        &self,
        dy: &Placed<T>,
        x: Option<&Placed<T>>,
        stats: &gpu::Array,
        affine: Affine<'_>,
    ) -> Result<Mixed, Fault> {
        let x = x.map(Placed::array);
        dy.made(|device, dy| ops::fixed_back(device, dy, x, stats, affine, self.act)).map(Mixed::from)
    }

    /// The slopes of all that the statistics are of.
    fn of_all(&self, own: Slopes, device: &Device, pass: &Pass<'_>) -> Result<Slopes> {
        let Some(grains) = pass.grains else { return Ok(own) };
        let mut told = device.download(&own.sums)?;
        told.push(own.count);
        let all = grains.joined(told, grains::PLUS)?;
        let sums = &all[..2 * self.c];
        Ok(Slopes { sums: device.upload(sums, &[sums.len()])?, count: all[sums.len()] })
    }
}

impl Gradients<'_> {
    /// Adds to the sums of a batch-norm where `at` lies, if it takes the statistics of the grain.
    fn add_placed_stats(
        &mut self,
        mean: BufferId,
        at: &Arc<Device>,
        add: impl FnOnce(&Device, &mut gpu::Array) -> Result<(), Fault>,
    ) -> Result<()> {
        let Some(slot) = self.layout.stats(mean) else { return Ok(()) };
        add_to(&mut self.placed_stats, mean, &[slot.len()], at, add)
    }
}
