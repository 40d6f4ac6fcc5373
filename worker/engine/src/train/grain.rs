//! One grain of a step: forward, what the objective says of it, backward.

use candle_core::Tensor;

use super::{
    chain::{self, Wanted},
    judge::{Judge, Said, Seen},
    masked,
    remember::remember,
    step::Step,
    tasks::TaskSums,
};
use crate::{
    Result,
    backbone::Unit,
    eval,
    modifier::{self, Mix},
    nn::{DRAW_BITS, DropoutDraw, Flat, Gradients, Grains, Packs, Pass, Store, Taker, Tape, host, tensor},
    num::rng::Philox,
};

/// What a grain adds to its step.
pub(super) struct GrainSums {
    pub samples: u64,
    pub flat: Flat,
    pub touched: Vec<bool>,
    pub loss: f64,
    pub correct: u64,
    /// By task, where there are several.
    pub tasks: Vec<TaskSums>,
}

/// The bit by which draws of a second network are told apart.
pub(super) const SECOND: u64 = 1 << (DRAW_BITS - 1);

/// A sample and the id of this draw of it.
pub(super) type Draw = (usize, u64);

impl Step<'_> {
    pub(super) fn mix(&self, grain: usize) -> Option<Mix> {
        let (spec, side) = (self.run.spec, self.inputs.net.contract.side());
        modifier::mix(&spec.modifiers, spec.job.seed, self.state.progress.step, grain as u32, side)
    }

    /// Target probabilities of samples with labels, and the labels.
    fn targets(&self, indices: &[usize], mix: Option<&Mix>) -> Result<(Tensor, Vec<usize>)> {
        let labels: Vec<usize> = indices.iter().map(|i| self.inputs.samples.dataset.labels()[*i]).collect();
        let classes = self.inputs.net.network.outputs;
        let mut targets = vec![0.0; labels.len() * classes];
        // What has no label has no class either.
        let known = labels.iter().enumerate().filter(|(_, l)| **l < classes);
        known.for_each(|(i, l)| targets[i * classes + l] = 1.0);
        if let Some(mix) = mix {
            targets = mix.targets(&targets, classes);
        }
        Ok((tensor(targets, &[labels.len(), classes])?, labels))
    }

    /// What teachers say of samples, and what comes out of the first one's units that are compared.
    fn taught(&self, indices: &[usize], turns: &[u64], mix: Option<&Mix>) -> Result<(Option<Said>, Vec<Tensor>)> {
        let Some((first, others)) = self.teachers.split_first() else { return Ok((None, Vec::new())) };
        let says = first.says(indices, turns, mix)?;
        let theirs = self.inputs.net.taps.teacher.iter().map(|unit| says.at(unit + 1)).collect::<Result<_>>()?;
        let inside = (self.run.objective.looks_inside)(&self.run.spec.objective);
        let features = first.features().filter(|_| inside).map(|cut| says.at(cut)).transpose()?;
        let mut logits = says.logits;
        for other in others {
            logits = Tensor::cat(&[logits, other.says(indices, turns, mix)?.logits], 1)?.contiguous()?;
        }
        Ok((Some((logits, features)), theirs))
    }

    /// Computes one grain. `averaged` are the averages of the weights, where the objective lets them speak; `early` takes its
    /// gradient while it goes backward, and leaves nothing of it in the sums.
    pub(super) fn grain(
        &self,
        draws: &[Draw],
        grain: usize,
        judge: &Judge<'_>,
        averaged: Option<&(Store, Packs)>,
        grains: Option<&dyn Grains>,
        early: Option<&mut dyn Taker>,
    ) -> Result<GrainSums> {
        if let Some(few) = &self.run.few {
            return self.episodes(few, draws, grains);
        }
        let all: Vec<u64> = draws.iter().map(|(_, id)| *id).collect();
        let (own, halves) = self.sides(draws);
        let (indices, turns, mut ids) = (&own.indices, &own.turns, own.of(&all));
        let outputs = self.inputs.net.network.outputs;
        let present = match (&self.paired, &halves) {
            (Some(paired), Some(halves)) if paired.pairs.masks() => Some(masked::present([&own, halves])?),
            _ => None,
        };
        let mix = self.mix(grain);
        let (targets, labels) = match &present {
            // Pairs have no labels.
            Some(_) => (masked::nothing(draws.len(), outputs)?, Vec::new()),
            None => self.targets(indices, mix.as_ref())?,
        };
        let shown = halves.as_ref().unwrap_or(&own);
        let (teacher, theirs) = self.taught(&shown.indices, &shown.turns, mix.as_ref())?;
        let mut x = match own.is_empty() {
            true => None,
            false => Some(self.inputs.batch(&self.state.store, indices, turns, mix.as_ref())?),
        };
        let mut second = None;
        if let (Some(other), Some(x)) = (&self.other, &mut x) {
            let (indices, turns): (Vec<usize>, Vec<u64>) = ids.iter().map(|id| other.order.draw(*id)).unzip();
            let theirs = other.inputs.batch(&self.state.store, &indices, &turns, None)?;
            if let Some((store, packs)) = averaged {
                let (net, cut) = (self.inputs.net, self.stage.cut);
                let pass = Pass::again(store, packs);
                second = Some(net.forward(&pass, theirs.clone(), cut, net.network.units.len())?);
            }
            *x = Tensor::cat(&[&*x, &theirs], 0)?.contiguous()?;
            // Their own draws of dropout: counted from the other end.
            ids.extend(ids.clone().iter().map(|id| !id));
        }

        let rng = Philox::new(self.run.spec.job.seed, "dropout");
        let layout = Some(&self.stage.layout);
        let joined = grains.filter(|_| self.stage.lockstep);
        let dropout = Some(DropoutDraw { rng, draws: &ids });
        let pass = Pass { store: &self.state.store, layout, dropout, grains: joined, packs: Some(&self.stage.packs) };
        let (mut tape, units) = (Tape::default(), &self.inputs.net.network.units[self.stage.cut..]);
        // A stage that does not reach one of them is refused.
        let looks: Vec<usize> =
            self.inputs.net.taps.own.iter().filter_map(|at| at.checked_sub(self.stage.cut)).collect();
        // Where the old head goes on, it takes what the unit below the new one gives.
        let below = self.said.map(|_| self.inputs.net.network.head - 1 - self.stage.cut);
        let places: Vec<usize> = looks.iter().copied().chain(below).collect();
        let (features, logits, mut inside) = match x {
            Some(x) => {
                let chain::Outputs { features, out, inside } = chain::forward(units, x, &places, &pass, &mut tape)?;
                (own.spread(features)?, own.spread(out)?, inside)
            }
            None => {
                let width = if units.is_empty() { outputs } else { self.inputs.net.network.width };
                (masked::nothing(draws.len(), width)?, masked::nothing(draws.len(), outputs)?, Vec::new())
            }
        };
        let before = below.and_then(|_| inside.pop());
        let taps = inside.into_iter().zip(theirs).collect();

        // A second network has its own draws of dropout: of numbers that no draw of a sample has.
        let other_ids = halves.as_ref().map(|halves| halves.of(&all)).unwrap_or_default();
        let other_ids: Vec<u64> = other_ids.iter().map(|id| id ^ SECOND).collect();
        let dropout = Some(DropoutDraw { rng, draws: &other_ids });
        let other_pass = Pass { dropout, ..pass };
        let mut other_tape = Tape::default();
        let mut other_units: &[Unit] = &[];
        let mut paired = None;
        if let (Some(inputs), Some(halves)) = (self.paired.and_then(|p| p.inputs), &halves) {
            other_units = &inputs.net.network.units[inputs.cut..];
            paired = Some(if halves.is_empty() {
                masked::nothing(draws.len(), inputs.net.network.outputs)?
            } else {
                let x = inputs.batch(&self.state.store, &halves.indices, &halves.turns, None)?;
                halves.spread(chain::forward(other_units, x, &[], &other_pass, &mut other_tape)?.out)?
            });
        }

        // The cut: candle differentiates the loss, our layers everything below.
        let seen = Seen { features, logits, targets, teacher, taps, averaged: second, paired, present };
        let judged = judge.judge(&seen, grain, grains)?;
        let mut grads = Gradients::unmade(&self.stage.layout);
        if let Some(to) = early {
            grads = grads.taken_by(to, self.uses());
        }
        for (id, gradient) in &judged.own {
            let gradient = host(gradient)?;
            if let Some(slot) = grads.slot(*id) {
                slot.iter_mut().zip(gradient.iter()).for_each(|(s, g)| *s += g);
            }
        }
        grads.passed(|| self.inputs.net.network.own.clone())?;
        match (&judged.paired, &halves) {
            (Some(_), Some(halves)) if halves.is_empty() => masked::passed_over(other_units, &mut grads),
            (Some(dy), Some(halves)) => {
                let dy = halves.gather(dy)?;
                chain::backward(other_units, Wanted::of(&dy), &other_pass, &mut other_tape, &mut grads, false)?;
            }
            _ => {}
        }
        let (mut loss, mut more) = (judged.loss, None);
        if let (Some(inputs), Some(before), Some(how)) =
            (self.said, &before, modifier::remembers(&self.run.spec.modifiers))
        {
            let said = inputs.batch(&inputs.net.network.initial, indices, turns, mix.as_ref())?;
            let (own, dx) = remember(self.inputs.net, before, &said, how, &pass, &mut grads)?;
            (loss, more) = (loss + own, Some(dx));
        }
        let inside = looks.into_iter().zip(&judged.taps).filter_map(|(at, more)| Some((at, more.as_ref()?)));
        let inside: Vec<(usize, &Tensor)> = inside.chain(below.zip(more.as_ref())).collect();
        if own.is_empty() {
            masked::passed_over(units, &mut grads);
        } else {
            let features = judged.features.as_ref().map(|features| own.gather(features)).transpose()?;
            let out = own.gather(&judged.logits)?;
            let wanted = Wanted { out: &out, features: features.as_ref(), inside: &inside };
            chain::backward(units, wanted, &pass, &mut tape, &mut grads, false)?;
        }
        let values = host(&seen.logits)?;
        let rows = values.chunks_exact(outputs).zip(&labels);
        let correct = rows.filter(|(row, label)| eval::judge(row, **label).predicted == **label).count() as u64;
        let samples = self.counted(draws.iter().copied());
        let (tasks, (flat, touched)) = (Vec::new(), grads.finish()?);
        Ok(GrainSums { samples, flat, touched, loss, correct, tasks })
    }
}
