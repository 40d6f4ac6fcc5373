//! What the objective says of all tasks: the losses, and their gradients at the last layer of each head. And what
//! validation samples come to, task by task.

use std::ops::Range;

use candle_core::{Tensor, Var};
use tl_proto::spec::MAIN;

use super::{
    super::{Loop, Run, evaluate, inputs::Inputs, judge::own_tensors, net::Net},
    Fed, Task,
};
use crate::{
    Error, Result,
    collective::Collective,
    eval::Evaluation,
    nn::{ParamId, Store},
    objective,
};

/// What the heads made of a grain.
pub(super) struct Seen {
    /// `[n, classes]` of each.
    pub logits: Vec<Tensor>,
    /// `[n, classes]`
    pub targets: Vec<Tensor>,
    /// Samples of the first task.
    pub samples: usize,
}

/// The losses, and what they ask of the heads.
pub(super) struct Judged {
    /// Weighed, Σ over the samples of the first task.
    pub loss: f64,
    /// Σ over the samples of each task.
    pub losses: Vec<f64>,
    /// `[n, classes]` of each.
    pub logits: Vec<Tensor>,
    /// Of the objective's own tensors.
    pub own: Vec<(ParamId, Tensor)>,
}

/// The losses of what was seen. `scales` are samples of the first task in the step over those of each.
///
/// # Errors
/// A loss that does not depend on a head.
pub(super) fn judge(
    run: &Run<'_>,
    (net, store): (&Net, &Store),
    tasks: &[Task],
    (weights, scales): (&[f64], &[f64]),
    seen: &Seen,
) -> Result<Judged> {
    let several = run.objective.several.as_ref();
    let several = several.ok_or_else(|| Error::Internal("several tasks of a kind of job that has one".into()))?;
    let logits = seen.logits.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<Var>>>()?;
    let (vars, own) = own_tensors(net, store)?;
    let classes = std::iter::once(run.weights.as_ref()).chain(tasks.iter().map(|t| t.weights.as_ref()));
    let each = logits.iter().zip(&seen.targets).zip(classes);
    let each =
        each.map(|((logits, targets), classes)| objective::Task { logits: logits.as_tensor(), targets, classes });
    let all = objective::Tasks { each: each.collect(), scales, weights, samples: seen.samples, own: &own };
    let (loss, losses) = (several.loss)(&run.spec.objective, &all)?;
    let grads = loss.backward()?;
    let of = |var: &Var| grads.get(var).map(Tensor::contiguous).transpose();
    let missing = || Error::Internal("the loss does not depend on a head".into());
    let logits = logits.iter().map(|var| of(var)?.ok_or_else(missing)).collect::<Result<_>>()?;
    let own = vars.iter().filter_map(|(id, var)| Some(of(var).transpose()?.map(|g| (*id, g))));
    let own = own.collect::<candle_core::Result<_>>()?;
    Ok(Judged { loss: f64::from(loss.to_scalar::<f32>()?), losses, logits, own })
}

/// The rows of some samples.
///
/// # Errors
/// Rows that are not there.
pub(super) fn rows(t: &Tensor, at: &Range<usize>) -> Result<Tensor> {
    if *at == (0..t.dim(0)?) {
        return Ok(t.clone());
    }
    Ok(t.narrow(0, at.start, at.len())?.contiguous()?)
}

impl<'a> Loop<'a> {
    /// What the network is fed of tasks with samples of their own, beside those of `[data]`.
    pub(in crate::train) fn fed_tasks<'f>(
        &self,
        cut: usize,
        features: &'f super::Features,
        main: &Inputs<'_>,
    ) -> Result<Fed<'f>>
    where
        'a: 'f,
    {
        let net: &'a Net = self.net;
        let tasks: &'a [Task] = self.tasks.unwrap_or_default();
        let mut fed = Fed::default();
        for (t, task) in tasks.iter().enumerate() {
            let own = task.own.as_ref().map(|own| [&own.train, &own.val]);
            let inputs = |part: usize| {
                let kept = features.get(t).and_then(|kept| kept[part].get(&cut));
                own.map(|own| self.inputs(net, own[part], cut, kept).map(|inputs| inputs.beside(main))).transpose()
            };
            fed.train.push(inputs(0)?);
            fed.val.push(inputs(1)?);
        }
        Ok(fed)
    }

    /// Judges the validation samples of every task, that of `[data]` first; nothing where the job has but one.
    ///
    /// # Errors
    /// A sample that cannot be read, a lost peer.
    pub(in crate::train) fn judged_tasks(
        &self,
        val: &Inputs<'_>,
        fed: &Fed<'_>,
        group: &mut dyn Collective,
    ) -> Result<Vec<(String, Evaluation)>> {
        let Some(tasks) = self.tasks else { return Ok(Vec::new()) };
        // What has the samples of `[data]` is judged with them, in one pass.
        let mut heads = vec![(0, val.samples.dataset.labels())];
        let shared = tasks.iter().enumerate().filter(|(_, task)| task.own.is_none());
        heads.extend(shared.map(|(t, task)| (t + 1, task.labels[1].as_slice())));
        let mut outcomes: Vec<_> = tasks.iter().map(|_| Vec::new()).chain([Vec::new()]).collect();
        let found = evaluate::evaluate_heads(&self.state.store, val, &heads, group)?;
        heads.iter().zip(found).for_each(|((head, _), found)| outcomes[*head] = found);
        for (t, (task, inputs)) in tasks.iter().zip(&fed.val).enumerate() {
            if let Some(inputs) = inputs {
                let head = [(t + 1, task.labels[1].as_slice())];
                let found = evaluate::evaluate_heads(&self.state.store, inputs, &head, group)?;
                outcomes[t + 1] = found.into_iter().next().unwrap_or_default();
            }
        }
        let all = std::iter::once((MAIN, self.classes)).chain(tasks.iter().map(|t| (t.name.as_str(), &t.classes[..])));
        Ok(all
            .zip(&outcomes)
            .map(|((name, classes), found)| (name.to_owned(), Evaluation::new(classes, found)))
            .collect())
    }
}
