//! One step: own grains forward and backward, one reduction, one update.

use candle_core::Var;
use tl_proto::spec::{Reduction, Sampling};

use super::{Run, inputs::Inputs, lockstep, stage::Stage, state::RunState};
use crate::{
    Error, Result,
    collective::{self, Collective, tree},
    data::sampler::{Epoch, grain, grains_of},
    eval,
    modifier::{self, Mix},
    nn::{DropoutDraw, Gradients, Grains, Layer, Pass, Tape, host, tensor},
    num::rng::Philox,
    objective::Batch,
};

/// What all ranks know of a step once it is reduced.
pub struct Reduced {
    /// Sums over all grains: gradients, then batch-norm sums.
    pub flat: Vec<f32>,
    /// Samples.
    pub samples: u64,
    /// Σ loss.
    pub loss: f64,
    /// Right predictions.
    pub correct: u64,
    /// Which parameters backward reached, here.
    pub touched: Vec<bool>,
    /// Whether any rank wants to stop.
    pub stop: bool,
}

/// Bytes of one grain's line in the tally: index, samples, right ones, Σ loss.
const LINE: usize = 32;

/// Everything that a step reads.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The job.
    pub run: &'a Run<'a>,
    /// Where it stands.
    pub state: &'a RunState,
    /// What is trained.
    pub stage: &'a Stage,
    /// What the network sees.
    pub inputs: &'a Inputs<'a>,
    /// The teacher's logits, where there is a teacher.
    pub teacher: Option<&'a Inputs<'a>>,
    /// The order of samples.
    pub epoch: &'a Epoch,
}

/// Computes and reduces step `k` of an epoch. Nothing of `state` changes.
///
/// # Errors
/// A sample that cannot be read, a loss that is not finite, a lost peer.
pub fn compute(step: &Step<'_>, k: usize, group: &mut dyn Collective, stop: bool) -> Result<Reduced> {
    let Step { run, state, stage, epoch, .. } = *step;
    let slots = epoch.step(k);
    let (batch, full) = (run.data.batch as usize, run.spec.grains() as usize);
    let count = grains_of(slots.len(), batch, full);
    let shares = group.shares(count);
    let own = shares[group.rank()].clone();
    if k + 1 < epoch.steps() {
        step.expect(k + 1, group);
    }
    // In the fast reduction a leaf is the sum of a rank that owns anything.
    let before = shares[..group.rank()].iter().filter(|s| !s.is_empty()).count();
    let (fast, busy) = (run.spec.cluster.reduction == Reduction::Fast, shares.iter().filter(|s| !s.is_empty()).count());
    let mut stack: Vec<tree::Node> = Vec::new();
    let mut tally = vec![u8::from(stop)];
    let mut touched = vec![own.is_empty(); state.store.params.len()];
    let draws =
        |s: usize| -> Vec<(usize, u64)> { grain(slots.len(), count, s).map(|p| epoch.draw(slots.start + p)).collect() };
    let mut add = |s: usize, one: GrainSums| {
        touched.iter_mut().zip(&one.touched).for_each(|(t, o)| *t |= o);
        tally.extend((s as u64).to_le_bytes());
        tally.extend(one.samples.to_le_bytes());
        tally.extend(one.correct.to_le_bytes());
        tally.extend(one.loss.to_le_bytes());
        match (fast, stack.last_mut()) {
            // A rank adds its grains as they come.
            (true, Some(sum)) => sum.data.iter_mut().zip(&one.flat).for_each(|(a, b)| *a += b),
            (true, None) => stack.push(tree::Node::leaf(before, one.flat)),
            (false, _) => tree::push(&mut stack, tree::Node::leaf(s, one.flat), count),
        }
    };
    if stage.lockstep {
        let all = lockstep::run(&shares, group, |s, grains| step.grain(&draws(s), s, Some(grains)))?;
        own.zip(all).for_each(|(s, one)| add(s, one));
    } else {
        for s in own {
            add(s, step.grain(&draws(s), s, None)?);
        }
    }
    let flat = collective::reduce(group, stack, if fast { busy } else { count }, stage.layout.total_len())?;
    let mut reduced = Reduced { flat, samples: 0, loss: 0.0, correct: 0, touched, stop: false };
    let mut lines = Vec::new();
    for bytes in group.all_gather(tally)? {
        let (stop, rest) = bytes.split_first().ok_or_else(|| Error::Internal("a peer sent no tally".into()))?;
        reduced.stop |= *stop != 0;
        lines.extend(rest.chunks_exact(LINE).map(|l| {
            let word = |at: usize| u64::from_le_bytes(l[at..at + 8].try_into().expect("eight bytes"));
            (word(0), word(8), word(16), f64::from_bits(word(24)))
        }));
    }
    lines.sort_by_key(|l| l.0);
    if lines.len() != count || lines.iter().enumerate().any(|(i, l)| l.0 != i as u64) {
        return Err(Error::Internal(format!(
            "step {} has {} grains instead of {count}",
            state.progress.step,
            lines.len()
        )));
    }
    for (_, samples, correct, loss) in lines {
        reduced.samples += samples;
        reduced.correct += correct;
        reduced.loss += loss;
    }
    if reduced.samples != slots.len() as u64 {
        return Err(Error::Internal(format!(
            "step {} counted {} samples instead of {}",
            state.progress.step,
            reduced.samples,
            slots.len()
        )));
    }
    if !reduced.loss.is_finite() {
        return Err(Error::NotFinite(format!(
            "the {} loss of step {} is {}",
            run.spec.job.kind,
            state.progress.step + 1,
            reduced.loss
        )));
    }
    Ok(reduced)
}

struct GrainSums {
    samples: u64,
    flat: Vec<f32>,
    touched: Vec<bool>,
    loss: f64,
    correct: u64,
}

impl Step<'_> {
    /// Has the samples of this rank's grains of step `k` prepared, while it computes the step before.
    fn expect(&self, k: usize, group: &dyn Collective) {
        let slots = self.epoch.step(k);
        let count = grains_of(slots.len(), self.run.data.batch as usize, self.run.spec.grains() as usize);
        let own = group.shares(count)[group.rank()].clone();
        let batches: Vec<(Vec<usize>, Vec<u64>)> = own
            .map(|s| {
                let draws = grain(slots.len(), count, s).map(|p| self.epoch.draw(slots.start + p));
                let (indices, ids): (Vec<usize>, Vec<u64>) = draws.unzip();
                let turns = self.turns(&ids);
                (indices, turns)
            })
            .collect();
        let mixes = modifier::mixes(&self.run.spec.modifiers);
        [Some(self.inputs), self.teacher].into_iter().flatten().for_each(|i| i.expect(&batches, mixes));
    }

    /// Which view of its sample each draw sees. What may be drawn twice in an epoch must not look the same twice.
    fn turns(&self, ids: &[u64]) -> Vec<u64> {
        match self.run.data.sampling {
            Sampling::Shuffled => {
                vec![self.state.progress.epochs_before + u64::from(self.state.progress.epoch); ids.len()]
            }
            Sampling::Balanced => ids.to_vec(),
        }
    }

    fn mix(&self, grain: usize) -> Option<Mix> {
        let (spec, side) = (self.run.spec, self.inputs.net.contract.side());
        modifier::mix(&spec.modifiers, spec.job.seed, self.state.progress.step, grain as u32, side)
    }

    fn grain(&self, draws: &[(usize, u64)], grain: usize, grains: Option<&dyn Grains>) -> Result<GrainSums> {
        let (indices, ids): (Vec<usize>, Vec<u64>) = draws.iter().copied().unzip();
        let turns = self.turns(&ids);
        let mix = self.mix(grain);
        let labels: Vec<usize> = indices.iter().map(|i| self.inputs.samples.dataset.labels()[*i]).collect();
        let classes = self.inputs.net.network.outputs;
        let mut targets = vec![0.0; labels.len() * classes];
        labels.iter().enumerate().for_each(|(i, l)| targets[i * classes + l] = 1.0);
        if let Some(mix) = &mix {
            targets = mix.targets(&targets, classes);
        }
        let targets = tensor(targets, &[labels.len(), classes])?;
        let teacher = match self.teacher {
            Some(inputs) => {
                let store = &inputs.net.network.initial;
                Some(inputs.batch(store, &indices, &turns, mix.as_ref())?)
            }
            None => None,
        };

        let x = self.inputs.batch(&self.state.store, &indices, &turns, mix.as_ref())?;
        let dropout = DropoutDraw { rng: Philox::new(self.run.spec.job.seed, "dropout"), draws: &ids };
        let layout = Some(&self.stage.layout);
        let pass = Pass { store: &self.state.store, layout, dropout: Some(dropout), grains };
        let mut tape = Tape::default();
        let units = &self.inputs.net.network.units[self.stage.cut..];
        let logits = units.iter().try_fold(x, |x, unit| unit.layer.forward(&x, &pass, &mut tape))?;

        // The cut: candle differentiates the loss, our layers everything below.
        let leaf = Var::from_tensor(&logits)?;
        let weights = self.run.weights.as_ref();
        let batch = Batch { logits: leaf.as_tensor(), targets: &targets, teacher: teacher.as_ref(), weights };
        let loss = (self.run.objective.loss)(&self.run.spec.objective, &batch)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let store = loss.backward()?;
        let mut dy = match store.get(&leaf) {
            Some(g) => Some(g.contiguous()?),
            None => return Err(Error::Internal("the loss does not depend on the network".into())),
        };
        let mut grads = Gradients::new(&self.stage.layout);
        for (i, unit) in units.iter().enumerate().rev() {
            if let Some(g) = dy.take() {
                dy = unit.layer.backward(&g, &pass, &mut tape, &mut grads, i > 0)?;
            }
        }
        let values = host(&logits)?;
        let rows = values.chunks_exact(classes).zip(&labels);
        let correct = rows.filter(|(row, label)| eval::judge(row, **label).predicted == **label).count() as u64;
        let samples = draws.len() as u64;
        Ok(GrainSums { samples, flat: grads.flat, touched: grads.touched, loss: value, correct })
    }
}
