//! Batch-norms of what lies on a GPU. What grains tell each other are a few numbers for each channel: they meet on the host.

use std::sync::Arc;

use super::{Array, BatchNorm, BufferId, Gradients, Join, Pass, Saved, Tape, grains, join_grains};
use crate::{
    Result,
    gpu::{
        self, Device, Fault, Mixed, Placed, either,
        ops::{self, Affine, Slopes},
    },
    nn::{Packs, placed::add_to},
};

impl BatchNorm {
    /// The running statistics, in the form of others, where nothing changes them. They go up once.
    fn placed_running(&self, pass: &Pass<'_>, at: &Arc<Device>) -> Result<Placed> {
        if let Some(known) = pass.packs.and_then(|packs| packs.kept().running.get(&self.mean).cloned()) {
            return Ok(known);
        }
        let up = |id| at.upload(pass.store.buffer(id), &[self.c]);
        let stats = ops::running_statistics(at, &up(self.mean)?, &up(self.var)?, self.eps)?;
        let made = Placed::new(at.clone(), stats);
        if let Some(mut kept) = pass.packs.map(Packs::kept) {
            kept.running.insert(self.mean, made.clone());
        }
        Ok(made)
    }

    /// Where the running means are that deposits are made around, and the place of the first one. All of a store go up at once,
    /// before the first deposit of a step.
    fn placed_means(&self, pass: &Pass<'_>, at: &Arc<Device>) -> Result<(Placed, usize)> {
        let first = pass.store.buffers[self.mean.0].range.start;
        let all = &pass.store.buffer_values;
        if let Some(known) = pass.packs.and_then(|packs| packs.kept().buffers.clone()) {
            return Ok((known, first));
        }
        let made = Placed::new(at.clone(), at.upload(all, &[all.len()])?);
        if let Some(mut kept) = pass.packs.map(Packs::kept) {
            kept.buffers = Some(made.clone());
        }
        Ok((made, first))
    }

    /// Mean, 1/√(var + eps) and var of each channel, of all that the statistics are of.
    fn placed_statistics(&self, x: &Mixed, pass: &Pass<'_>) -> Result<Placed> {
        let device = x.device();
        if !self.is_training(pass) {
            return self.placed_running(pass, device);
        }
        if pass.packs.is_some() {
            // Already here: later the GPU has much to do before it takes them.
            self.placed_means(pass, device)?;
        }
        let stats = match pass.grains {
            None => either!(x, |x| ops::own_statistics(device, x.array(), self.eps))?,
            Some(grains) => {
                let own = either!(x, |x| ops::moments(device, x.array()))?;
                let all = grains.joined(device.download(&own)?, Join::Fold(join_grains))?;
                ops::statistics(device, &device.upload(&all[..], own.shape())?, self.eps)?
            }
        };
        Ok(Placed::new(device.clone(), stats))
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
            // Without an input what is made lies as the slope does.
            let dx = match x {
                Some(x) => self.through_fixed(&beside(dy, x)?, x, stats, affine),
                None => self.through_fixed(dy, dy, stats, affine),
            };
            return pass.handed(dx?).map(Some);
        };
        let dy = beside(dy, x)?;
        let slopes =
            either!(&dy, |dy| either!(x, |x| ops::slopes(device, dy.array(), x.array(), stats, affine, self.act)))?;
        grads.add_placed(self.gamma, &width, device, |device, dgamma| {
            ops::scale_gradient(device, &slopes, stats, dgamma)
        })?;
        grads.add_placed(self.beta, &width, device, |device, dbeta| ops::shift_gradient(device, &slopes, dbeta))?;
        if training {
            let ((means, first), rows) = (self.placed_means(pass, device)?, dy.rows());
            grads.add_placed_stats(self.mean, device, |device, slot| {
                ops::deposit(device, stats, (means.array(), first), rows, slot)
            })?;
        }
        if !need_dx {
            return Ok(None);
        }
        let dx = if training {
            let all = self.of_all(slopes, device, pass)?;
            either!(&dy, |dy| {
                either!(x, |x| {
                    x.made(|device, x| ops::through(device, dy.array(), x, &all, stats, affine, self.act))
                        .map(Mixed::from)
                })
            })
        } else {
            self.through_fixed(&dy, x, stats, affine)
        };
        pass.handed(dx?).map(Some)
    }

    /// The input's gradient through fixed statistics; without an activation the input is not read.
    fn through_fixed(&self, dy: &Mixed, x: &Mixed, stats: &gpu::Array, affine: Affine<'_>) -> Result<Mixed, Fault> {
        either!(dy, |dy| {
            either!(x, |x| {
                x.made(|device, x| ops::fixed_back(device, dy.array(), x, stats, affine, self.act)).map(Mixed::from)
            })
        })
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

/// Slopes as kernels take them with such an input: in f32 if it is.
fn beside(dy: &Mixed, x: &Mixed) -> Result<Mixed, Fault> {
    if dy.is_half() && !x.is_half() { dy.full().map(Mixed::from) } else { Ok(dy.clone()) }
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
