//! What the objective says of what a network made of samples: the loss, and its gradient at the network's last layer.
//!
//! An objective that couples samples sees the whole batch. Every grain hands in its features, logits and targets; a rank
//! works the loss out once and each of its grains takes its own rows of the gradient. All ranks compute the same from
//! the same numbers, so the sum over grains is the gradient of the whole loss for any number of ranks.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Tensor, Var};

use super::{Run, net::Net};
use crate::{
    Error, Result,
    nn::{Grains, Join, OWN, ParamId, Store, host, tensor},
    objective::Batch,
};

/// What a network made of the samples of a grain, those with labels first.
pub(super) struct Seen {
    /// `[n + m, d]`
    pub features: Tensor,
    /// `[n + m, classes]`
    pub logits: Tensor,
    /// `[n, classes]`
    pub targets: Tensor,
    /// `[n, classes]`
    pub teacher: Option<Tensor>,
    /// `[m, classes]`
    pub averaged: Option<Tensor>,
}

/// The loss and what it asks of the network.
pub(super) struct Judged {
    /// Σ over the samples.
    pub loss: f64,
    /// `[n + m, classes]`
    pub logits: Tensor,
    /// `[n + m, d]`, if the loss looks at features.
    pub features: Option<Tensor>,
    /// Of the objective's own tensors.
    pub own: Vec<(ParamId, Tensor)>,
}

/// What all that judge a step have in common.
pub(super) struct Judge<'a> {
    pub run: &'a Run<'a>,
    pub net: &'a Net,
    pub store: &'a Store,
    /// Steps done, as a part of all steps of the run.
    pub progress: f64,
    /// The loss of the whole batch, once a grain of this rank has worked it out.
    whole: Mutex<Option<Arc<Whole>>>,
}

/// The whole batch: what was said of it, and which rows are whose.
struct Whole {
    judged: Judged,
    /// Samples with labels, and without, of each grain.
    counts: Vec<[usize; 2]>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(run: &'a Run<'a>, net: &'a Net, store: &'a Store, progress: f64) -> Self {
        Self { run, net, store, progress, whole: Mutex::default() }
    }

    /// The loss of what was seen, alone or with all other grains of the step; what concerns the whole batch is counted by
    /// its first grain.
    ///
    /// # Errors
    /// A loss that does not depend on the network, a grain that failed elsewhere, a lost peer.
    pub(super) fn judge(&self, seen: &Seen, grain: usize, grains: Option<&dyn Grains>) -> Result<Judged> {
        let Some(grains) = grains.filter(|_| self.run.objective.coupled) else { return self.alone(seen) };
        let all = grains.joined(handed_in(seen)?, Join::Append)?;
        let mut known = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = match &*known {
            Some(whole) => whole.clone(),
            None => known.insert(Arc::new(self.whole(&all)?)).clone(),
        };
        drop(known);
        whole.of_grain(grain)
    }

    fn whole(&self, all: &[f64]) -> Result<Whole> {
        let (counts, seen) = put_together(all, self.net.network.width, self.net.network.outputs)?;
        Ok(Whole { judged: self.alone(&seen)?, counts })
    }

    fn alone(&self, seen: &Seen) -> Result<Judged> {
        let (features, logits) = (Var::from_tensor(&seen.features)?, Var::from_tensor(&seen.logits)?);
        let mut vars: Vec<(ParamId, Var)> = Vec::new();
        let mut own = BTreeMap::new();
        for id in &self.net.network.own {
            let entry = &self.store.params[id.0];
            let var = Var::from_tensor(&tensor(self.store.param(*id).to_vec(), &entry.shape)?)?;
            own.insert(entry.name.trim_start_matches(OWN).to_owned(), var.as_tensor().clone());
            vars.push((*id, var));
        }
        let batch = Batch {
            features: features.as_tensor(),
            logits: logits.as_tensor(),
            targets: &seen.targets,
            teacher: seen.teacher.as_ref(),
            averaged: seen.averaged.as_ref(),
            weights: self.run.weights.as_ref(),
            own: &own,
            progress: self.progress,
        };
        let loss = (self.run.objective.loss)(&self.run.spec.objective, &batch)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let grads = loss.backward()?;
        let of = |var: &Var| grads.get(var).map(Tensor::contiguous).transpose();
        let logits = of(&logits)?.ok_or_else(|| Error::Internal("the loss does not depend on the network".into()))?;
        let own = vars.iter().filter_map(|(id, var)| Some(of(var).transpose()?.map(|g| (*id, g))));
        let own = own.collect::<candle_core::Result<_>>()?;
        Ok(Judged { loss: value, logits, features: of(&features)?, own })
    }
}

impl Whole {
    fn of_grain(&self, grain: usize) -> Result<Judged> {
        let before = |which: usize| self.counts[..grain].iter().map(|c| c[which]).sum::<usize>();
        let labelled: usize = self.counts.iter().map(|c| c[0]).sum();
        let [n, m] = self.counts[grain];
        let (first, others) = (before(0), labelled + before(1));
        let rows = |t: &Tensor| -> Result<Tensor> {
            let part = |r: Range<usize>| t.narrow(0, r.start, r.len());
            Ok(Tensor::cat(&[part(first..first + n)?, part(others..others + m)?], 0)?.contiguous()?)
        };
        let Judged { loss, logits, features, own } = &self.judged;
        let once = grain == 0;
        Ok(Judged {
            loss: if once { *loss } else { 0.0 },
            logits: rows(logits)?,
            features: features.as_ref().map(rows).transpose()?,
            own: if once { own.clone() } else { Vec::new() },
        })
    }
}

/// One grain as numbers: how many samples it has with and without labels, whether an average speaks for the latter; then
/// features, logits, targets, and what the average says.
fn handed_in(seen: &Seen) -> Result<Vec<f64>> {
    let (all, n) = (seen.logits.dim(0)?, seen.targets.dim(0)?);
    let mut out = vec![n as f64, (all - n) as f64, f64::from(u8::from(seen.averaged.is_some()))];
    for t in [&seen.features, &seen.logits, &seen.targets].into_iter().chain(&seen.averaged) {
        out.extend(host(t)?.iter().map(|v| f64::from(*v)));
    }
    Ok(out)
}

/// The grains of a step as one, for `width` features and so many `classes`.
fn put_together(mut all: &[f64], width: usize, classes: usize) -> Result<(Vec<[usize; 2]>, Seen)> {
    let odd = || Error::Internal("the grains of a step do not fit together".into());
    let mut counts = Vec::new();
    // Features, logits, averages: of samples with labels, and of the others. Then targets.
    let mut parts: [[Vec<f32>; 2]; 3] = Default::default();
    let mut targets: Vec<f32> = Vec::new();
    while let [n, m, average, rest @ ..] = all {
        let (n, m) = (*n as usize, *m as usize);
        all = rest;
        let mut take = |rows: usize, width: usize| {
            let (head, tail) = rows.checked_mul(width).and_then(|len| all.split_at_checked(len)).ok_or_else(odd)?;
            all = tail;
            Ok::<_, Error>(head.iter().map(|v| *v as f32))
        };
        for (part, width) in parts.iter_mut().zip([width, classes]) {
            part[0].extend(take(n, width)?);
            part[1].extend(take(m, width)?);
        }
        targets.extend(take(n, classes)?);
        if *average != 0.0 {
            parts[2][1].extend(take(m, classes)?);
        }
        counts.push([n, m]);
    }
    if !all.is_empty() {
        return Err(odd());
    }
    let (n, m): (usize, usize) = (counts.iter().map(|c| c[0]).sum(), counts.iter().map(|c| c[1]).sum());
    let [features, logits, [_, averaged]] = parts;
    let averaged = (!averaged.is_empty()).then(|| tensor(averaged, &[m, classes])).transpose()?;
    let seen = Seen {
        features: tensor(features.concat(), &[n + m, width])?,
        logits: tensor(logits.concat(), &[n + m, classes])?,
        targets: tensor(targets, &[n, classes])?,
        teacher: None,
        averaged,
    };
    Ok((counts, seen))
}
