//! Batch-norms of what lies on a GPU. What grains tell each other are a few numbers for each channel: they meet on the host.

use super::{Array, BatchNorm, BufferId, Gradients, Join, Pass, Saved, Tape, grains, join_grains};
use crate::{
    Result,
    gpu::{
        self, Device, Fault, Placed,
        ops::{self, Affine, Slopes},
    },
    nn::{Packs, placed::add_to},
};

impl BatchNorm {
    /// The running statistics, in the form of others. They go up as often as a weight does.
    fn placed_running(&self, pass: &Pass<'_>, at: &Placed) -> Result<Placed> {
        if let Some(known) = pass.packs.and_then(|packs| packs.kept().running.get(&self.mean).cloned()) {
            return Ok(known);
        }
        let made = at.made(|device, _| {
            let up = |id| device.upload(pass.store.buffer(id), &[self.c]);
            ops::running_statistics(device, &up(self.mean)?, &up(self.var)?, self.eps)
        })?;
        if let Some(mut kept) = pass.packs.map(Packs::kept)
            && (kept.several || !self.is_training(pass))
        {
            kept.running.insert(self.mean, made.clone());
        }
        Ok(made)
    }

    /// Mean, 1/√(var + eps) and var of each channel, of all that the statistics are of.
    fn placed_statistics(&self, x: &Placed, pass: &Pass<'_>) -> Result<Placed> {
        if !self.is_training(pass) {
            return self.placed_running(pass, x);
        }
        let device = x.device();
        let mut moments = ops::moments(device, x.array())?;
        if let Some(grains) = pass.grains {
            let all = grains.joined(device.download(&moments)?, Join::Fold(join_grains))?;
            moments = device.upload(&all[..], moments.shape())?;
        }
        Ok(x.beside(ops::statistics(device, &moments, self.eps)?))
    }

    /// γ and β.
    fn placed_affine(&self, pass: &Pass<'_>, at: &Placed) -> Result<(Placed, Placed)> {
        let exact = |id| pass.placed_exact(id, &[self.c], at);
        Ok((exact(self.gamma)?, exact(self.beta)?))
    }

    pub(super) fn placed(&self, x: &Placed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Placed> {
        let (stats, (gamma, beta)) = (self.placed_statistics(x, pass)?, self.placed_affine(pass, x)?);
        let affine = Affine { gamma: gamma.array(), beta: beta.array() };
        let y = x.made(|device, x| ops::normalise(device, x, stats.array(), affine, self.act))?;
        if pass.records() {
            if self.keeps(pass) {
                tape.push(Saved::Array(x.clone().into()));
            }
            tape.push(Saved::Array(stats.into()));
        }
        Ok(y)
    }

    pub(super) fn placed_backward(
        &self,
        dy: &Placed,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Placed>> {
        let stats = tape.pop_array()?;
        let stats = stats.placed()?.array();
        let x = if self.keeps(pass) { Some(tape.pop_array()?) } else { None };
        let x = x.as_ref().map(Array::placed).transpose()?.map(Placed::array);
        let (gamma, beta) = self.placed_affine(pass, dy)?;
        let affine = Affine { gamma: gamma.array(), beta: beta.array() };
        let (device, training, width) = (dy.device(), self.is_training(pass), [self.c]);
        let (Some(x), true) = (x, self.learns(pass)) else {
            // Where nothing was kept, there is no activation, and only β may learn.
            grads.add_placed(self.beta, &width, dy, |device, dbeta| ops::add_sums(device, dy.array(), dbeta))?;
            if !need_dx {
                return Ok(None);
            }
            let dx = dy.made(|device, dy| ops::fixed_back(device, dy, x, stats, affine, self.act))?;
            return Ok(Some(dx));
        };
        let slopes = ops::slopes(device, dy.array(), x, stats, affine, self.act)?;
        grads
            .add_placed(self.gamma, &width, dy, |device, dgamma| ops::scale_gradient(device, &slopes, stats, dgamma))?;
        grads.add_placed(self.beta, &width, dy, |device, dbeta| ops::shift_gradient(device, &slopes, dbeta))?;
        let rows = dy.array().rows();
        if training {
            let running = self.placed_running(pass, dy)?;
            grads.add_placed_stats(self.mean, dy, |device, slot| {
                ops::deposit(device, stats, running.array(), rows, slot)
            })?;
        }
        if !need_dx {
            return Ok(None);
        }
        let dx = if training {
            let (slopes, count) = self.of_all(slopes, dy, pass)?;
            ops::through(device, slopes, x, stats, gamma.array(), count)?
        } else {
            ops::through_fixed(device, slopes.dz, stats, gamma.array())?
        };
        Ok(Some(dy.beside(dx)))
    }

    /// The slopes with the sums of all that the statistics are of, and how many rows that is.
    fn of_all(&self, mut slopes: Slopes, dy: &Placed, pass: &Pass<'_>) -> Result<(Slopes, f64)> {
        let rows = dy.array().rows() as f64;
        let Some(grains) = pass.grains else { return Ok((slopes, rows)) };
        let mut own = dy.device().download(&slopes.sums)?;
        own.push(rows);
        let all = grains.joined(own, grains::PLUS)?;
        let sums = &all[..2 * self.c];
        slopes.sums = dy.device().upload(sums, &[sums.len()])?;
        Ok((slopes, all[sums.len()]))
    }
}

impl Gradients<'_> {
    /// Adds to the sums of a batch-norm where `at` lies, if it takes the statistics of the grain.
    fn add_placed_stats(
        &mut self,
        mean: BufferId,
        at: &Placed,
        add: impl FnOnce(&Device, &mut gpu::Array) -> Result<(), Fault>,
    ) -> Result<()> {
        let Some(slot) = self.layout.stats(mean) else { return Ok(()) };
        add_to(&mut self.placed_stats, mean, &[slot.len()], at, add)
    }
}
