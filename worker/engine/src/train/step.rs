//! One step: own grains forward and backward, one reduction, one update.

use tl_proto::spec::{Reduction, Sampling, StageSection};

use super::{
    Run,
    grain::{Draw, GrainSums},
    inputs::Inputs,
    judge::Judge,
    lockstep,
    masked::Side,
    overlap,
    pairs::Pairs,
    stage::Stage,
    state::{Progress, RunState},
    tasks::{TaskSums, Tasked},
    teacher::Teacher,
};
use crate::{
    Error, Result,
    collective::{self, Collective, tree},
    data::sampler::{Endless, Epoch, grain, grains_of},
    link::Norms,
    modifier,
    nn::{Flat, Grains, Packs, Store},
    num,
};

/// What all ranks know of a step once it is reduced.
pub struct Reduced {
    /// Sums over all grains: gradients, then batch-norm sums.
    pub flat: Flat,
    /// What was drawn.
    pub draws: usize,
    /// Samples that count; of pairs, those that are whole.
    pub samples: u64,
    /// Σ loss.
    pub loss: f64,
    /// Right predictions.
    pub correct: u64,
    /// Norms of the gradients of grains; none where nobody asked for them.
    pub norms: Norms,
    /// What holds the network to its weights, once it is added to the mean gradient.
    pub penalty: f64,
    /// Which parameters backward reached, here.
    pub touched: Vec<bool>,
    /// Whether any rank wants to stop.
    pub stop: bool,
    /// By task, where there are several.
    pub tasks: Vec<TaskSums>,
}

/// What a rank's tally begins with: it wants to stop.
const STOPS: u8 = 1;

/// And: it tells the norms of its gradients.
const MEASURES: u8 = 2;

/// Bytes of one grain's line in the tally: index, samples, right ones, Σ loss.
const LINE: usize = 32;

/// And of each task, where there are several: samples, right ones, Σ loss.
const TASK_LINE: usize = 24;

/// And of each tensor, where somebody asks: the squared norm of its gradient.
const NORM_LINE: usize = 8;

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
    /// What teachers say of it, where there are some.
    pub(super) teachers: &'a [Teacher<'a>],
    /// What the network said as it came, where its old head goes on.
    pub said: Option<&'a Inputs<'a>>,
    /// The order of samples.
    pub epoch: &'a Epoch,
    /// Whether the norm of each grain's gradient is wanted.
    pub measures: bool,
    /// Samples of another domain, where the objective learns from them.
    pub other: Option<Other<'a>>,
    /// What the samples go with, where the objective learns from pairs.
    pub paired: Option<Paired<'a>>,
    /// Further tasks, where the objective learns several.
    pub tasks: Option<Tasked<'a>>,
}

/// The other halves of the epoch's samples.
#[derive(Clone, Copy)]
pub struct Paired<'a> {
    /// What the second network sees of them, where one is trained.
    pub inputs: Option<&'a Inputs<'a>>,
    /// Which goes with which.
    pub(super) pairs: &'a Pairs,
}

/// Samples without labels beside those of the epoch: one for each.
#[derive(Clone, Copy)]
pub struct Other<'a> {
    /// What the network sees of them.
    pub inputs: &'a Inputs<'a>,
    /// Their order.
    pub order: &'a Endless,
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
    let mut stack: Vec<tree::Node<Flat>> = Vec::new();
    let mut tally = vec![u8::from(stop) * STOPS + u8::from(step.measures) * MEASURES];
    let mut touched = vec![own.is_empty(); state.store.params.len()];
    let draws =
        |s: usize| -> Vec<(usize, u64)> { grain(slots.len(), count, s).map(|p| epoch.draw(slots.start + p)).collect() };
    if (run.objective.coupled)(&run.spec.objective) && own.start > 0 {
        // A loss of the whole batch is counted where its first grain is.
        step.inputs.net.network.own.iter().for_each(|id| touched[id.0] = true);
    }
    stage.packs.begin(&stage.layout, own.len());
    let mut note = |s: usize, one: &GrainSums| -> Result<()> {
        touched.iter_mut().zip(&one.touched).for_each(|(t, o)| *t |= o);
        tally.extend((s as u64).to_le_bytes());
        tally.extend(one.samples.to_le_bytes());
        tally.extend(one.correct.to_le_bytes());
        tally.extend(one.loss.to_le_bytes());
        for task in &one.tasks {
            tally.extend(task.samples.to_le_bytes());
            tally.extend(task.correct.to_le_bytes());
            tally.extend(task.loss.to_le_bytes());
        }
        if step.measures {
            let gradient = one.flat.run(0..stage.layout.params_len())?;
            let squares = stage.layout.trained().map(|(_, at)| num::squared_norm(&gradient[at]));
            tally.extend(squares.flat_map(f64::to_le_bytes));
        }
        Ok(())
    };
    let mut add = |s: usize, one: GrainSums| -> Result<()> {
        note(s, &one)?;
        if !fast {
            return tree::push_with(&mut stack, tree::Node::leaf(s, one.flat), count, Flat::plus);
        }
        // A rank adds its grains as they come.
        let sum = match stack.pop() {
            Some(sum) => sum.data.plus(one.flat)?,
            None => one.flat,
        };
        stack.push(tree::Node::leaf(before, sum));
        Ok(())
    };
    let judge = Judge::new(run, step.inputs.net, &state.store, step.progress());
    let averaged = step.averaged();
    let compute = |s: usize, grains: Option<&dyn Grains>| match step.tasks {
        Some(tasked) => step.grain_of_tasks(tasked, &slots, (s, count), grains),
        None => step.grain(&draws(s), s, &judge, averaged.as_ref(), grains, None),
    };
    let together = stage.lockstep || (run.objective.coupled)(&run.spec.objective);
    let early = fast && !together && overlap::may(step, group);
    // The last grain goes to the others while it is computed, but where its own norm is wanted.
    let last = (early && !step.measures).then(|| own.clone().next_back()).flatten();
    if together {
        let all = lockstep::run(&shares, group, |s, grains| compute(s, Some(grains)))?;
        own.zip(all).try_for_each(|(s, one)| add(s, one))?;
    } else {
        for s in own.filter(|s| Some(*s) != last) {
            add(s, compute(s, None)?)?;
        }
    }
    let flat = if early {
        let sum = stack.pop().map(|sum| sum.data);
        let flat = overlap::sum(step, group, sum, last, |s, to| {
            note(s, &step.grain(&draws(s), s, &judge, averaged.as_ref(), None, Some(to))?)
        })?;
        stage.packs.end(&stage.layout);
        flat
    } else {
        stage.packs.end(&stage.layout);
        let leaves = if fast { busy } else { count };
        let len = stage.layout.total_len() + step.asides();
        collective::reduce_flat(group, stack, fast, leaves, len)?
    };
    let several = step.tasks.map_or(0, |tasked| tasked.tasks.len() + 1);
    let tensors = stage.layout.trained().count();
    let (tasks, norms) = (vec![TaskSums::default(); several], Norms::default());
    let (draws, [loss, penalty]) = (slots.len(), [0.0; 2]);
    let mut reduced =
        Reduced { flat, draws, samples: 0, loss, correct: 0, norms, penalty, touched, stop: false, tasks };
    let mut lines = Vec::new();
    for bytes in group.all_gather(tally)? {
        let (says, rest) = bytes.split_first().ok_or_else(|| Error::Internal("a peer sent no tally".into()))?;
        reduced.stop |= says & STOPS != 0;
        let measured = if says & MEASURES != 0 { tensors } else { 0 };
        lines.extend(rest.chunks_exact(LINE + several * TASK_LINE + measured * NORM_LINE).map(|l| {
            let word = |at: usize| u64::from_le_bytes(l[at..at + 8].try_into().expect("eight bytes"));
            let task = |at: usize| {
                let (samples, correct, loss) = (word(at), word(at + 8), f64::from_bits(word(at + 16)));
                TaskSums { samples, loss, correct }
            };
            let tasks = (0..several).map(|t| task(LINE + t * TASK_LINE)).collect::<Vec<_>>();
            let square = |t: usize| f64::from_bits(word(LINE + several * TASK_LINE + t * NORM_LINE));
            let squares = (0..measured).map(square).collect::<Vec<_>>();
            (word(0), word(8), word(16), f64::from_bits(word(24)), squares, tasks)
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
    for (_, samples, correct, loss, squares, tasks) in lines {
        reduced.tasks.iter_mut().zip(&tasks).for_each(|(sum, one)| sum.add(one));
        reduced.norms.add(&squares);
        reduced.samples += samples;
        reduced.correct += correct;
        reduced.loss += loss;
    }
    let counts = step.counted(slots.map(|at| epoch.draw(at)));
    if reduced.samples != counts {
        return Err(Error::Internal(format!(
            "step {} counted {} samples instead of {counts}",
            state.progress.step, reduced.samples
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

/// Steps done, as a part of those of all stages, whose epochs have `each`. Not the steps that were counted: those of searches
/// for a rate are no part of the run.
fn done(stages: &[StageSection], p: &Progress, each: u64) -> f64 {
    let epochs: u64 = stages.iter().map(|s| u64::from(s.epochs)).sum();
    ((p.epochs_before * each + p.stage_step) as f64 / (epochs * each).max(1) as f64).min(1.0)
}

impl Step<'_> {
    /// Steps done, as a part of all steps that the job asks for.
    fn progress(&self) -> f64 {
        done(&self.run.spec.stage, &self.state.progress, self.epoch.steps() as u64)
    }

    /// The averages of the weights, where the objective lets them speak and they are kept, and a place for what is packed of
    /// them.
    fn averaged(&self) -> Option<(Store, Packs)> {
        self.other.as_ref().filter(|_| (self.run.objective.averages)(&self.run.spec.objective))?;
        let (values, buffer_values) = self.state.averages.clone()?;
        Some((Store { values, buffer_values, ..self.state.store.names() }, Packs::default()))
    }

    /// Has the samples of this rank's grains of step `k` prepared, while it computes the step before.
    fn expect(&self, k: usize, group: &dyn Collective) {
        let slots = self.epoch.step(k);
        let count = grains_of(slots.len(), self.run.data.batch as usize, self.run.spec.grains() as usize);
        let shares = group.shares(count)[group.rank()].clone();
        let draws = |s| grain(slots.len(), count, s).map(|p| self.epoch.draw(slots.start + p)).unzip();
        let drawn: Vec<(Vec<usize>, Vec<u64>)> = shares.clone().map(draws).collect();
        if let Some(few) = &self.run.few {
            let batches: Result<Vec<_>> = drawn.iter().map(|(_, ids)| few.batches(ids)).collect();
            // Who cannot draw an episode says so when it is computed.
            self.inputs.expect(&batches.map(|b| b.concat()).unwrap_or_default(), false);
            return;
        }
        let sides = |(indices, ids): &(Vec<usize>, Vec<u64>)| {
            let draws: Vec<Draw> = indices.iter().copied().zip(ids.iter().copied()).collect();
            self.sides(&draws)
        };
        let (own, halves): (Vec<Side>, Vec<Option<Side>>) = drawn.iter().map(sides).unzip();
        let seen = |side: Side| (!side.is_empty()).then_some((side.indices, side.turns));
        let batches: Vec<(Vec<usize>, Vec<u64>)> = own.into_iter().filter_map(seen).collect();
        let halves: Vec<(Vec<usize>, Vec<u64>)> = halves.into_iter().flatten().filter_map(seen).collect();
        if let Some(other) = &self.other {
            let theirs = |(_, ids): &(Vec<usize>, Vec<u64>)| ids.iter().map(|id| other.order.draw(*id)).unzip();
            let ids: Vec<(Vec<usize>, Vec<u64>)> = drawn.iter().map(theirs).collect();
            other.inputs.expect(&ids, false);
        }
        let mixes = modifier::mixes(&self.run.spec.modifiers);
        self.expect_tasks(&slots, count, shares, mixes);
        [Some(self.inputs), self.said].into_iter().flatten().for_each(|i| i.expect(&batches, mixes));
        let second = self.paired.and_then(|paired| paired.inputs);
        let others = self.teachers.iter().filter_map(Teacher::inputs).chain(second);
        let shown = if self.paired.is_some() { &halves } else { &batches };
        others.for_each(|i| i.expect(shown, mixes));
    }

    /// What the network sees of some draws, and where they are of pairs, what their other halves are.
    pub(super) fn sides(&self, draws: &[Draw]) -> (Side, Option<Side>) {
        let ids: Vec<u64> = draws.iter().map(|(_, id)| *id).collect();
        let turns = self.turns(&ids);
        let Some(paired) = &self.paired else {
            return (Side::new(draws.iter().zip(turns).map(|((sample, _), turn)| (Some(*sample), turn))), None);
        };
        let drawn: Vec<[Option<usize>; 2]> = draws.iter().map(|(entry, id)| paired.pairs.drawn(*entry, *id)).collect();
        let own = Side::new(drawn.iter().zip(turns).map(|([sample, _], turn)| (*sample, turn)));
        // A half that is drawn twice in an epoch does not look the same twice.
        (own, Some(Side::new(drawn.iter().zip(ids).map(|([_, half], id)| (*half, id)))))
    }

    /// How many of some draws count in the mean of a loss: all of them, or of pairs those that are whole.
    pub(super) fn counted(&self, draws: impl Iterator<Item = Draw>) -> u64 {
        draws.filter(|(entry, _)| self.paired.is_none_or(|paired| paired.pairs.is_whole(*entry))).count() as u64
    }

    /// Which view of its sample each draw sees. What may be drawn twice in an epoch must not look the same twice.
    pub(super) fn turns(&self, ids: &[u64]) -> Vec<u64> {
        match self.run.data.sampling {
            Sampling::Shuffled => {
                vec![self.state.progress.epochs_before + u64::from(self.state.progress.epoch); ids.len()]
            }
            Sampling::Balanced => ids.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_goes_on_from_stage_to_stage_in_equal_steps() {
        let stages = [("first", 1), ("search", 0), ("last", 3)];
        let stages = stages.map(|(name, epochs)| StageSection::new(name, epochs, &["*"], 0.1));
        let mut p = Progress::default();
        let mut seen = Vec::new();
        for stage in &stages {
            for _ in 0..stage.epochs * 4 {
                seen.push(done(&stages, &p, 4));
                // A search has counted more.
                (p.stage_step, p.step) = (p.stage_step + 1, p.step + 3);
            }
            (p.epochs_before, p.stage_step) = (p.epochs_before + u64::from(stage.epochs), 0);
        }
        assert_eq!(seen, (0..16).map(|k| f64::from(k) / 16.0).collect::<Vec<_>>());
        assert_eq!(done(&stages, &p, 4), 1.0);
    }
}
