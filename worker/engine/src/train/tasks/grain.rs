//! One grain of a step with several tasks: its share of the samples of each, one pass through what all of them share, a
//! head for each, and back.

use std::ops::Range;

use candle_core::Tensor;
use tl_proto::spec::JobSpec;

use super::{
    TaskSums, Tasked,
    judge::{Judged, Seen, judge, rows},
};
use crate::{
    Result,
    backbone::Unit,
    data::sampler::grain,
    eval,
    modifier::Mix,
    nn::{DRAW_BITS, DropoutDraw, Gradients, Grains, Layout, ParamId, Pass, Store, Tape, host, tensor},
    num::rng::Philox,
    objective::Objective,
    train::{
        chain::{self, Wanted},
        grain::{Draw, GrainSums},
        stage::Stage,
        step::Step,
    },
};

/// Draws of tasks are told apart by the highest bits of their numbers that rows of sequences keep.
const TASK_BITS: u32 = DRAW_BITS - 8;

/// The number of a draw for the task `t` of those with samples of their own.
fn marked(number: u64, t: usize) -> u64 {
    number ^ ((t as u64 + 1) << TASK_BITS)
}

/// Rows of a grain that a head looks at.
struct Part {
    at: Range<usize>,
    labels: Vec<usize>,
}

/// Target probabilities.
fn targets(labels: &[usize], classes: usize, mix: Option<&Mix>) -> Result<Tensor> {
    let mut targets = vec![0.0; labels.len() * classes];
    labels.iter().enumerate().for_each(|(i, l)| targets[i * classes + l] = 1.0);
    if let Some(mix) = mix {
        targets = mix.targets(&targets, classes);
    }
    tensor(targets, &[labels.len(), classes])
}

/// The unit with the last shared tensor that a stage trains, and that tensor, where weights follow its gradients.
fn followed(spec: &JobSpec, objective: &Objective, stage: &Stage) -> Option<(usize, ParamId)> {
    (objective.several.as_ref()?.balance)(&spec.objective)?;
    stage.shared
}

/// Numbers of a grain behind those of the stage's layout, for so many tasks beside the first.
pub(in crate::train) fn asides(
    spec: &JobSpec,
    objective: &Objective,
    stage: &Stage,
    store: &Store,
    tasks: usize,
) -> usize {
    followed(spec, objective, stage).map_or(0, |(_, id)| (tasks + 1) * store.params[id.0].range.len())
}

impl<'a> Step<'a> {
    /// The unit with the last shared tensor that is trained, and that tensor, where weights follow its gradients.
    fn shared(&self) -> Option<(usize, ParamId)> {
        followed(self.run.spec, self.run.objective, self.stage)
    }

    /// Numbers behind those of the layout: for each task, the gradient of its weighed loss at the last shared tensor.
    pub(in crate::train) fn asides(&self) -> usize {
        let Some(tasked) = self.tasks else { return 0 };
        asides(self.run.spec, self.run.objective, self.stage, &self.state.store, tasked.tasks.len())
    }

    /// Samples of the step over those of each task in it.
    fn scales(&self, tasked: Tasked<'_>, slots: &Range<usize>, count: usize) -> Vec<f64> {
        let n = slots.len() as f64;
        let of = |task: &super::Task| {
            let own = task.own.as_ref()?;
            let drawn = self.drawn(own, slots, count);
            Some((drawn.end - drawn.start) as f64)
        };
        std::iter::once(1.0).chain(tasked.tasks.iter().map(|task| of(task).map_or(1.0, |m| n / m))).collect()
    }

    fn drawn(&self, own: &super::Own, slots: &Range<usize>, count: usize) -> Range<u64> {
        own.drawn(self.epoch.draw(slots.start).1, slots.len(), self.run.data.batch as usize, count)
    }

    /// Has the samples of tasks prepared that come with these `slots` of the epoch, for the grains in `own`.
    pub(in crate::train) fn expect_tasks(&self, slots: &Range<usize>, count: usize, own: Range<usize>, mixes: bool) {
        let Some(tasked) = self.tasks else { return };
        for (task, inputs) in tasked.tasks.iter().zip(tasked.inputs) {
            let (Some(samples), Some(inputs)) = (&task.own, inputs) else { continue };
            let drawn = self.drawn(samples, slots, count);
            let batches = own.clone().map(|s| {
                let (samples, rounds, _) = samples.of_grain(&drawn, (s, count));
                (samples, rounds)
            });
            inputs.expect(&batches.collect::<Vec<_>>(), mixes);
        }
    }

    /// Computes grain `s` of `count` of the samples in `slots` of the epoch, and of those of tasks that go with them.
    pub(in crate::train) fn grain_of_tasks(
        &self,
        tasked: Tasked<'a>,
        slots: &Range<usize>,
        (s, count): (usize, usize),
        grains: Option<&dyn Grains>,
    ) -> Result<GrainSums> {
        let (net, store) = (self.inputs.net, &self.state.store);
        let draws: Vec<Draw> = grain(slots.len(), count, s).map(|p| self.epoch.draw(slots.start + p)).collect();
        let (indices, mut ids): (Vec<usize>, Vec<u64>) = draws.iter().copied().unzip();
        let (n, turns, mix) = (indices.len(), self.turns(&ids), self.mix(s));
        let mut inputs = vec![self.inputs.batch(store, &indices, &turns, mix.as_ref())?];
        let of = |labels: &[usize], indices: &[usize]| indices.iter().map(|i| labels[*i]).collect::<Vec<_>>();
        let mut parts = vec![Part { at: 0..n, labels: of(self.inputs.samples.dataset.labels(), &indices) }];
        for (t, (task, theirs)) in tasked.tasks.iter().zip(tasked.inputs).enumerate() {
            let (Some(own), Some(theirs)) = (&task.own, theirs) else {
                parts.push(Part { at: 0..n, labels: of(&task.labels[0], &indices) });
                continue;
            };
            let (samples, rounds, numbers) = own.of_grain(&self.drawn(own, slots, count), (s, count));
            inputs.push(theirs.batch(store, &samples, &rounds, mix.as_ref())?);
            let at = ids.len()..ids.len() + samples.len();
            ids.extend(numbers.iter().map(|number| marked(*number, t)));
            parts.push(Part { at, labels: of(&task.labels[0], &samples) });
        }
        let x = match inputs.len() {
            1 => inputs.swap_remove(0),
            _ => Tensor::cat(&inputs, 0)?.contiguous()?,
        };

        let rng = Philox::new(self.run.spec.job.seed, "dropout");
        let (layout, joined) = (Some(&self.stage.layout), grains.filter(|_| self.stage.lockstep));
        let pass = Pass {
            store,
            layout,
            dropout: Some(DropoutDraw { rng, draws: &ids }),
            grains: joined,
            packs: Some(&self.stage.packs),
        };
        // Where weights follow gradients at a shared tensor, its unit and what lies above it is gone through more than once.
        // A head that is the only one may be frozen in part.
        let (cut, shared) = (self.stage.cut, self.shared());
        let head = net.network.head.max(cut);
        let above = shared.map_or(head, |(unit, _)| unit);
        let (lower, upper) = (&net.network.units[cut..above], &net.network.units[above..head]);
        let (mut lower_tape, mut upper_tape) = (Tape::default(), Tape::default());
        let x = chain::forward(lower, x, &[], &pass, &mut lower_tape)?.out;
        let features = chain::forward(upper, x, &[], &pass, &mut upper_tape)?.out;

        let heads: Vec<(&[Unit], Pass<'_>)> = net
            .heads()
            .zip(&parts)
            .map(|(units, part)| {
                let units = if tasked.tasks.is_empty() { &net.network.units[head..] } else { units };
                let draws = &ids[part.at.clone()];
                (units, Pass { dropout: Some(DropoutDraw { rng, draws }), ..pass })
            })
            .collect();
        let mut tapes: Vec<Tape> = heads.iter().map(|_| Tape::default()).collect();
        let mut seen = Seen { logits: Vec::new(), targets: Vec::new(), samples: n };
        for (t, (((units, pass), part), tape)) in heads.iter().zip(&parts).zip(&mut tapes).enumerate() {
            seen.logits.push(chain::forward(units, rows(&features, &part.at)?, &[], pass, tape)?.out);
            seen.targets.push(targets(&part.labels, net.classes_of(t), mix.as_ref())?);
        }
        let weights = &self.state.progress.weighing.weights;
        let scales = self.scales(tasked, slots, count);
        let judged = judge(self.run, (net, store), tasked.tasks, (weights, &scales), &seen)?;

        let mut grads = Gradients::unmade(&self.stage.layout);
        let mut below = Vec::new();
        for (((units, pass), dy), tape) in heads.iter().zip(&judged.logits).zip(&mut tapes) {
            below.extend(chain::backward(units, Wanted::of(dy), pass, tape, &mut grads, cut < head)?);
        }
        let mut asides = Vec::new();
        if cut < head {
            if let Some((_, id)) = shared {
                // Nothing else is kept of these passes.
                let one = Layout::new(store, &[id], &[]);
                for t in 0..parts.len() {
                    let alone = joined_rows(&parts, &below, Some(t))?;
                    let mut scratch = Gradients::unmade(&one);
                    let tape = &mut upper_tape.clone();
                    chain::backward(upper, Wanted::of(&alone), &pass, tape, &mut scratch, false)?;
                    asides.extend(scratch.finish()?.0.into_host()?);
                }
            }
            let all = joined_rows(&parts, &below, None)?;
            let dy = chain::backward(upper, Wanted::of(&all), &pass, &mut upper_tape, &mut grads, cut < above)?;
            if let Some(dy) = dy {
                chain::backward(lower, Wanted::of(&dy), &pass, &mut lower_tape, &mut grads, false)?;
            }
        }
        self.summed(&judged, &seen, &parts, grads, asides)
    }

    /// What a grain adds to its step.
    fn summed(
        &self,
        judged: &Judged,
        seen: &Seen,
        parts: &[Part],
        mut grads: Gradients<'_>,
        asides: Vec<f32>,
    ) -> Result<GrainSums> {
        for (id, gradient) in &judged.own {
            let gradient = host(gradient)?;
            if let Some(slot) = grads.slot(*id) {
                slot.iter_mut().zip(gradient.iter()).for_each(|(s, g)| *s += g);
            }
        }
        let mut tasks = Vec::new();
        for ((logits, part), loss) in seen.logits.iter().zip(parts).zip(&judged.losses) {
            let values = host(logits)?;
            let rows = values.chunks_exact(logits.dim(1)?.max(1)).zip(&part.labels);
            let correct = rows.filter(|(row, label)| eval::judge(row, **label).predicted == **label).count() as u64;
            tasks.push(TaskSums { samples: part.labels.len() as u64, loss: *loss, correct });
        }
        let (mut flat, touched) = grads.finish()?;
        if !asides.is_empty() {
            flat.here()?.extend(asides);
        }
        let correct = tasks.first().map_or(0, |t| t.correct);
        Ok(GrainSums { samples: seen.samples as u64, flat, touched, loss: judged.loss, correct, tasks })
    }
}

/// The gradient at all rows, from those of each head: of rows that several look at, the sum; of one head alone if `only`.
fn joined_rows(parts: &[Part], below: &[Tensor], only: Option<usize>) -> Result<Tensor> {
    let mut segments: Vec<(usize, Option<Tensor>, &Tensor)> = Vec::new();
    for (t, (part, dx)) in parts.iter().zip(below).enumerate() {
        let dx_of = only.is_none_or(|only| only == t).then(|| dx.clone());
        match segments.iter_mut().find(|(start, ..)| *start == part.at.start) {
            Some((_, sum, _)) => {
                *sum = match (sum.take(), dx_of) {
                    (Some(a), Some(b)) => Some((a + b)?),
                    (a, b) => a.or(b),
                };
            }
            None => segments.push((part.at.start, dx_of, dx)),
        }
    }
    let filled = segments.into_iter().map(|(_, sum, like)| match sum {
        Some(sum) => Ok(sum),
        None => Ok(like.zeros_like()?),
    });
    let filled = filled.collect::<Result<Vec<_>>>()?;
    match &filled[..] {
        [one] => Ok(one.contiguous()?),
        all => Ok(Tensor::cat(all, 0)?.contiguous()?),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        nn::{Builder, Ragged},
        train::grain::SECOND,
    };

    #[test]
    fn rows_of_what_draws_by_the_same_numbers_are_told_apart() {
        let draws = [7, 8].map(|k| [k, marked(k, 0), marked(k, 1), k ^ SECOND]).concat();
        let (store, rng) = (Builder::new(1).store, Philox::new(1, "dropout"));
        let pass = Pass { dropout: Some(DropoutDraw { rng, draws: &draws }), ..Pass::eval(&store) };
        let rows = Ragged { lengths: vec![3; draws.len()], room: 3 }.draws(&pass);
        assert_eq!((rows.len(), rows.iter().collect::<BTreeSet<_>>().len()), (24, 24));
    }
}
