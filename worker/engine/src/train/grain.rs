//! One grain of a step: forward, what the objective says of it, backward.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{
    judge::{Judge, Said, Seen},
    step::Step,
};
use crate::{
    Result, eval,
    modifier::{self, Mix},
    nn::{DropoutDraw, Gradients, Grains, Layer, Pass, Store, Tape, host, tensor},
    num::rng::Philox,
};

/// What a grain adds to its step.
pub(super) struct GrainSums {
    pub samples: u64,
    pub flat: Vec<f32>,
    pub touched: Vec<bool>,
    pub loss: f64,
    pub correct: u64,
}

/// A sample and the id of this draw of it.
pub(super) type Draw = (usize, u64);

impl Step<'_> {
    fn mix(&self, grain: usize) -> Option<Mix> {
        let (spec, side) = (self.run.spec, self.inputs.net.contract.side());
        modifier::mix(&spec.modifiers, spec.job.seed, self.state.progress.step, grain as u32, side)
    }

    /// Target probabilities of samples with labels, and the labels.
    fn targets(&self, indices: &[usize], mix: Option<&Mix>) -> Result<(Tensor, Vec<usize>)> {
        let labels: Vec<usize> = indices.iter().map(|i| self.inputs.samples.dataset.labels()[*i]).collect();
        let classes = self.inputs.net.network.outputs;
        let mut targets = vec![0.0; labels.len() * classes];
        labels.iter().enumerate().for_each(|(i, l)| targets[i * classes + l] = 1.0);
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

    /// Computes one grain. `averaged` are the averages of the weights, where the objective lets them speak.
    pub(super) fn grain(
        &self,
        draws: &[Draw],
        grain: usize,
        judge: &Judge<'_>,
        averaged: Option<&Store>,
        grains: Option<&dyn Grains>,
    ) -> Result<GrainSums> {
        let (indices, mut ids): (Vec<usize>, Vec<u64>) = draws.iter().copied().unzip();
        let turns = self.turns(&ids);
        let mix = self.mix(grain);
        let (targets, labels) = self.targets(&indices, mix.as_ref())?;
        let (teacher, theirs) = self.taught(&indices, &turns, mix.as_ref())?;
        let mut x = self.inputs.batch(&self.state.store, &indices, &turns, mix.as_ref())?;
        let mut second = None;
        if let Some(other) = &self.other {
            let (indices, turns): (Vec<usize>, Vec<u64>) = ids.iter().map(|id| other.order.draw(*id)).unzip();
            let theirs = other.inputs.batch(&self.state.store, &indices, &turns, None)?;
            if let Some(store) = averaged {
                let (net, cut) = (self.inputs.net, self.stage.cut);
                second = Some(net.forward(store, theirs.clone(), cut, net.network.units.len())?);
            }
            x = Tensor::cat(&[&x, &theirs], 0)?.contiguous()?;
            // Their own draws of dropout: counted from the other end.
            ids.extend(ids.clone().iter().map(|id| !id));
        }

        let dropout = DropoutDraw { rng: Philox::new(self.run.spec.job.seed, "dropout"), draws: &ids };
        let layout = Some(&self.stage.layout);
        let joined = grains.filter(|_| self.stage.lockstep);
        let pass = Pass { store: &self.state.store, layout, dropout: Some(dropout), grains: joined };
        let mut tape = Tape::default();
        let units = &self.inputs.net.network.units[self.stage.cut..];
        let Some((last, below)) = units.split_last() else {
            return Err(crate::Error::Internal("a stage without layers".into()));
        };
        let (taps, mut inside) = (&self.inputs.net.taps.own, BTreeMap::new());
        let mut features = x;
        for (at, unit) in (self.stage.cut..).zip(below) {
            features = unit.layer.forward(&features, &pass, &mut tape)?;
            if taps.contains(&at) {
                inside.insert(at, features.clone());
            }
        }
        let own = taps.iter().filter_map(|at| inside.get(at).cloned());
        let taps = own.zip(theirs).collect();
        let logits = last.layer.forward(&features, &pass, &mut tape)?;

        // The cut: candle differentiates the loss, our layers everything below.
        let seen = Seen { features, logits, targets, teacher, taps, averaged: second };
        let judged = judge.judge(&seen, grain, grains)?;
        let mut grads = Gradients::new(&self.stage.layout);
        let mut dy = last.layer.backward(&judged.logits, &pass, &mut tape, &mut grads, !below.is_empty())?;
        if let (Some(dy), Some(more)) = (&mut dy, &judged.features) {
            *dy = (&*dy + more)?.contiguous()?;
        }
        for (i, unit) in below.iter().enumerate().rev() {
            if let Some(mut g) = dy.take() {
                // What comes from above, and what the loss wants of the unit itself.
                for (_, more) in
                    self.inputs.net.taps.own.iter().zip(&judged.taps).filter(|(t, _)| **t == self.stage.cut + i)
                {
                    if let Some(more) = more {
                        g = (g + more)?.contiguous()?;
                    }
                }
                dy = unit.layer.backward(&g, &pass, &mut tape, &mut grads, i > 0)?;
            }
        }
        for (id, gradient) in &judged.own {
            let gradient = host(gradient)?;
            if let Some(slot) = grads.slot(*id) {
                slot.iter_mut().zip(gradient.iter()).for_each(|(s, g)| *s += g);
            }
        }
        let values = host(&seen.logits)?;
        let rows = values.chunks_exact(self.inputs.net.network.outputs).zip(&labels);
        let correct = rows.filter(|(row, label)| eval::judge(row, **label).predicted == **label).count() as u64;
        let samples = draws.len() as u64;
        Ok(GrainSums { samples, flat: grads.flat, touched: grads.touched, loss: judged.loss, correct })
    }
}
