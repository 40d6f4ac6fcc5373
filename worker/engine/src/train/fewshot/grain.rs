//! One grain of a step on episodes: whole ones, whose losses are added up.

use candle_core::Tensor;

use super::{
    super::{
        chain::{self, Wanted},
        grain::{Draw, GrainSums},
        step::Step,
    },
    Few,
    adapt::Tuner,
    judge::right,
};
use crate::{
    Result,
    data::episodes::Episode,
    nn::{DropoutDraw, Gradients, Grains, Pass, Tape},
    num::rng::Philox,
    objective::fewshot::{Learns, Shown, graded},
};

/// Samples that pass the network together, and the turn of each.
pub(in crate::train) type Together = (Vec<usize>, Vec<u64>);

impl Few {
    /// What the network is fed for episodes of a grain, in order: all of it at once, or, of a method that adapts, what an
    /// episode shows and then what it asks for.
    pub(in crate::train) fn batches(&self, ids: &[u64]) -> Result<Vec<Together>> {
        let one = |indices: Vec<usize>, id: u64| (vec![id; indices.len()], indices);
        let mut parts = Vec::new();
        for id in ids {
            let Episode { support, query } = self.drawn(*id)?;
            parts.extend([one(support, *id), one(query, *id)]);
        }
        if let Learns::Adapts(_) = self.method.learns {
            return Ok(parts.into_iter().map(|(turns, indices)| (indices, turns)).collect());
        }
        let (turns, indices): (Vec<Vec<u64>>, Vec<Vec<usize>>) = parts.into_iter().unzip();
        Ok(vec![(indices.concat(), turns.concat())])
    }
}

impl Step<'_> {
    /// Computes a grain of episodes.
    pub(in crate::train) fn episodes(
        &self,
        few: &Few,
        draws: &[Draw],
        grains: Option<&dyn Grains>,
    ) -> Result<GrainSums> {
        let ids: Vec<u64> = draws.iter().map(|(_, id)| *id).collect();
        let fed = few.batches(&ids)?;
        let fed = fed.iter().map(|(indices, turns)| self.inputs.batch(&self.state.store, indices, turns, None));
        let fed = fed.collect::<Result<Vec<Tensor>>>()?;
        let mut grads = Gradients::unmade(&self.stage.layout);
        let (loss, correct) = match few.method.learns {
            Learns::Adapts(_) => self.adapted(few, &ids, &fed, &mut grads)?,
            _ => self.compared(few, &ids, &fed, &mut grads, grains)?,
        };
        let (samples, tasks, (flat, touched)) = (draws.len() as u64, Vec::new(), grads.finish()?);
        Ok(GrainSums { samples, flat, touched, loss, correct, tasks })
    }

    /// Random numbers of dropout for so many samples of the run, from `first` on.
    fn dropout<'d>(&self, draws: &'d [u64]) -> DropoutDraw<'d> {
        DropoutDraw { rng: Philox::new(self.run.spec.job.seed, "dropout"), draws }
    }

    fn compared(
        &self,
        few: &Few,
        ids: &[u64],
        fed: &[Tensor],
        grads: &mut Gradients<'_>,
        grains: Option<&dyn Grains>,
    ) -> Result<(f64, u64)> {
        let shape = few.trained();
        let (support, each) = (shape.support(), shape.support() + shape.queries());
        let draws: Vec<u64> = ids.iter().flat_map(|id| numbers(*id, each)).collect();
        let layout = Some(&self.stage.layout);
        let joined = grains.filter(|_| self.stage.lockstep);
        let pass = Pass {
            store: &self.state.store,
            layout,
            dropout: Some(self.dropout(&draws)),
            grains: joined,
            packs: Some(&self.stage.packs),
        };
        let mut tape = Tape::default();
        let units = &self.inputs.net.network.units[self.stage.cut..];
        let x = fed.first().ok_or_else(|| crate::Error::Internal("a grain without episodes".into()))?;
        let features = chain::through(units, x.clone(), &pass, &mut tape)?;
        let counts = vec![shape.shot; shape.way];
        let (mut sum, mut correct, mut gradients) = (0.0, 0, Vec::new());
        for i in 0..ids.len() {
            let own = features.narrow(0, i * each, each)?;
            let (loss, gradient, scores) = graded(&own, |own| {
                let (shown, query) = (own.narrow(0, 0, support)?, own.narrow(0, support, each - support)?);
                few.scores(&Shown { support: &shown, counts: &counts, query: &query })
            })?;
            sum += loss;
            correct += right(&scores)?;
            gradients.push(gradient);
        }
        let dy = Tensor::cat(&gradients, 0)?.contiguous()?;
        chain::backward(units, Wanted::of(&dy), &pass, &mut tape, grads, false)?;
        Ok((sum, correct))
    }

    /// First-order MAML: the gradient of the queries' loss at the adapted weights, as that of the weights before.
    fn adapted(&self, few: &Few, ids: &[u64], fed: &[Tensor], grads: &mut Gradients<'_>) -> Result<(f64, u64)> {
        let (shape, store) = (few.trained(), &self.state.store);
        let tuner = Tuner::in_stage(few, self.inputs.net, store, self.stage)?;
        let tuner = tuner.ok_or_else(|| crate::Error::Internal("a method that does not adapt".into()))?;
        let (mut sum, mut correct, packs) = (0.0, 0, &self.stage.packs);
        let steps = tuner.trained_steps();
        for (id, fed) in ids.iter().zip(fed.chunks_exact(2)) {
            // Numbers of their own for what is shown, step by step, and for what is asked.
            let each = shape.support();
            let draws: Vec<u64> = numbers(*id, steps * each + shape.queries()).collect();
            let of_step = |step: usize| Some(self.dropout(&draws[step * each..(step + 1) * each]));
            let own = tuner.adapt(packs, &fed[0], steps, of_step)?;
            let asked = Some(self.dropout(&draws[steps * each..]));
            let (loss, scores) = tuner.learn(&own, packs, &fed[1], asked, grads)?;
            sum += loss;
            correct += right(&scores)?;
        }
        Ok((sum, correct))
    }
}

/// Numbers of the samples of an episode: no other has the same.
fn numbers(id: u64, each: usize) -> impl Iterator<Item = u64> {
    (0..each as u64).map(move |k| id * each as u64 + k)
}
