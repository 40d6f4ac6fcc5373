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
    objective::{Batch, Taught},
};

/// What a network made of the samples of a grain, those with labels first.
pub(super) struct Seen {
    /// `[n + m, d]`
    pub features: Tensor,
    /// `[n + m, classes]`
    pub logits: Tensor,
    /// `[n, classes]`
    pub targets: Tensor,
    /// What teachers say, where there are some.
    pub teacher: Option<Said>,
    /// What came out of units inside, and of the teacher's that they are compared with.
    pub taps: Vec<(Tensor, Tensor)>,
    /// `[m, classes]`
    pub averaged: Option<Tensor>,
    /// `[n, d]`: what a second network that is trained makes of the other halves.
    pub paired: Option<Tensor>,
    /// `[n, 2]`: which samples and which halves are there, where some may be missing.
    pub present: Option<Tensor>,
}

/// Logits of all teachers `[n, teachers · classes]`, and the first one's features `[n, d]` if the objective looks at them.
pub(super) type Said = (Tensor, Option<Tensor>);

/// The loss and what it asks of the network.
pub(super) struct Judged {
    /// Σ over the samples.
    pub loss: f64,
    /// `[n + m, classes]`
    pub logits: Tensor,
    /// `[n + m, d]`, if the loss looks at features.
    pub features: Option<Tensor>,
    /// `[n, d]`, of what a second network makes of the other halves.
    pub paired: Option<Tensor>,
    /// Of what came out of units inside.
    pub taps: Vec<Option<Tensor>>,
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
        let Some(grains) = grains.filter(|_| (self.run.objective.coupled)(&self.run.spec.objective)) else {
            return self.alone(seen);
        };
        if !seen.taps.is_empty() {
            return Err(Error::Internal("a loss of the whole batch does not look inside".into()));
        }
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
        let (counts, seen) = put_together(all)?;
        Ok(Whole { judged: self.alone(&seen)?, counts })
    }

    fn alone(&self, seen: &Seen) -> Result<Judged> {
        let (features, logits) = (Var::from_tensor(&seen.features)?, Var::from_tensor(&seen.logits)?);
        let paired = seen.paired.as_ref().map(Var::from_tensor).transpose()?;
        let (vars, own) = own_tensors(self.net, self.store)?;
        let inside = seen.taps.iter().map(|(own, _)| Var::from_tensor(own)).collect::<candle_core::Result<Vec<_>>>()?;
        let pairs = inside.iter().zip(&seen.taps).map(|(var, (_, theirs))| (var.as_tensor().clone(), theirs.clone()));
        let taps: Vec<(Tensor, Tensor)> = pairs.collect();
        let batch = Batch {
            taps: &taps,
            features: features.as_tensor(),
            logits: logits.as_tensor(),
            targets: &seen.targets,
            teacher: seen.teacher.as_ref().map(|(logits, features)| Taught { logits, features: features.as_ref() }),
            averaged: seen.averaged.as_ref(),
            paired: paired.as_ref().map(Var::as_tensor),
            present: seen.present.as_ref(),
            weights: self.run.weights.as_ref(),
            own: &own,
            progress: self.progress,
        };
        let loss = (self.run.objective.loss)(&self.run.spec.objective, &batch)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let grads = loss.backward()?;
        let of = |var: &Var| grads.get(var).map(Tensor::contiguous).transpose();
        // A loss of hints alone says nothing of the logits; what no loss reaches is told by the gate.
        let logits = of(&logits)?.map_or_else(|| logits.zeros_like(), Ok)?;
        let own = vars.iter().filter_map(|(id, var)| Some(of(var).transpose()?.map(|g| (*id, g))));
        let own = own.collect::<candle_core::Result<_>>()?;
        let paired = paired.as_ref().map(of).transpose()?.flatten();
        let taps = inside.iter().map(of).collect::<candle_core::Result<_>>()?;
        Ok(Judged { loss: value, logits, features: of(&features)?, paired, taps, own })
    }
}

/// An objective's own tensors as variables, and by name.
type OwnTensors = (Vec<(ParamId, Var)>, BTreeMap<String, Tensor>);

/// Takes an objective's own tensors out of a store.
///
/// # Errors
/// None that can be caused from outside.
pub(super) fn own_tensors(net: &Net, store: &Store) -> Result<OwnTensors> {
    let mut vars: Vec<(ParamId, Var)> = Vec::new();
    let mut own = BTreeMap::new();
    for id in &net.network.own {
        let entry = &store.params[id.0];
        let var = Var::from_tensor(&tensor(store.param(*id).to_vec(), &entry.shape)?)?;
        own.insert(entry.name.trim_start_matches(OWN).to_owned(), var.as_tensor().clone());
        vars.push((*id, var));
    }
    Ok((vars, own))
}

impl Whole {
    fn of_grain(&self, grain: usize) -> Result<Judged> {
        let before = |which: usize| self.counts[..grain].iter().map(|c| c[which]).sum::<usize>();
        let labelled: usize = self.counts.iter().map(|c| c[0]).sum();
        let [n, m] = self.counts[grain];
        let (first, others) = (before(0), labelled + before(1));
        let labelled_rows = |t: &Tensor| Ok::<_, Error>(t.narrow(0, first, n)?.contiguous()?);
        let rows = |t: &Tensor| -> Result<Tensor> {
            let part = |r: Range<usize>| t.narrow(0, r.start, r.len());
            Ok(Tensor::cat(&[part(first..first + n)?, part(others..others + m)?], 0)?.contiguous()?)
        };
        let Judged { loss, logits, features, paired, own, .. } = &self.judged;
        let once = grain == 0;
        Ok(Judged {
            loss: if once { *loss } else { 0.0 },
            logits: rows(logits)?,
            features: features.as_ref().map(rows).transpose()?,
            paired: paired.as_ref().map(labelled_rows).transpose()?,
            taps: Vec::new(),
            own: if once { own.clone() } else { Vec::new() },
        })
    }
}

/// Tensors that a grain hands in, in this order: features, logits, targets, the teacher's logits and features, what the
/// average says, what a second network makes of the other halves, which halves are there. Each has rows of samples with
/// labels, of the others, or of both.
const ROWS: [[bool; 2]; 8] = [
    [true, true],
    [true, true],
    [true, false],
    [true, false],
    [true, false],
    [false, true],
    [true, false],
    [true, false],
];

/// One grain as numbers: how many samples it has with and without labels; how wide each tensor is, with 0 for what is not
/// there; then the tensors.
fn handed_in(seen: &Seen) -> Result<Vec<f64>> {
    let (all, n) = (seen.logits.dim(0)?, seen.targets.dim(0)?);
    let (taught, inside) = match &seen.teacher {
        Some((logits, features)) => (Some(logits), features.as_ref()),
        None => (None, None),
    };
    let (averaged, paired, present) = (seen.averaged.as_ref(), seen.paired.as_ref(), seen.present.as_ref());
    let (features, logits, targets) = (Some(&seen.features), Some(&seen.logits), Some(&seen.targets));
    let tensors = [features, logits, targets, taught, inside, averaged, paired, present];
    let mut out = vec![n as f64, (all - n) as f64];
    for t in tensors {
        out.push(t.map_or(Ok(0), |t| t.dim(1))? as f64);
    }
    for t in tensors.into_iter().flatten() {
        out.extend(host(t)?.iter().map(|v| f64::from(*v)));
    }
    Ok(out)
}

/// The grains of a step as one: samples with and without labels of each, and what was seen of all.
fn put_together(mut all: &[f64]) -> Result<(Vec<[usize; 2]>, Seen)> {
    let odd = || Error::Internal("the grains of a step do not fit together".into());
    let mut counts: Vec<[usize; 2]> = Vec::new();
    // Of each tensor, rows of samples with labels and of the others.
    let mut parts: [[Vec<f32>; 2]; ROWS.len()] = Default::default();
    let mut widths = [0; ROWS.len()];
    while !all.is_empty() {
        let (head, rest) = all.split_first_chunk::<{ 2 + ROWS.len() }>().ok_or_else(odd)?;
        let own = head.map(|v| v as usize);
        all = rest;
        counts.push([own[0], own[1]]);
        for (t, part) in parts.iter_mut().enumerate() {
            widths[t] = own[2 + t];
            for kind in (0..2).filter(|kind| ROWS[t][*kind]) {
                let len = own[kind].checked_mul(widths[t]);
                let (head, tail) = len.and_then(|len| all.split_at_checked(len)).ok_or_else(odd)?;
                part[kind].extend(head.iter().map(|v| *v as f32));
                all = tail;
            }
        }
    }
    let rows = |kind: usize| counts.iter().map(|c| c[kind]).sum::<usize>();
    let rows = [rows(0), rows(1)];
    let mut tensors = parts.into_iter().enumerate().map(|(t, part)| {
        let rows = (0..2).filter(|kind| ROWS[t][*kind]).map(|kind| rows[kind]).sum();
        (widths[t] > 0).then(|| tensor(part.concat(), &[rows, widths[t]])).transpose()
    });
    let mut next = || tensors.next().unwrap_or(Ok(None));
    let (features, logits, targets) = (next()?, next()?, next()?);
    let (taught, inside, averaged, paired, present) = (next()?, next()?, next()?, next()?, next()?);
    let seen = Seen {
        features: features.ok_or_else(odd)?,
        logits: logits.ok_or_else(odd)?,
        targets: targets.ok_or_else(odd)?,
        teacher: taught.map(|logits| (logits, inside)),
        taps: Vec::new(),
        averaged,
        paired,
        present,
    };
    Ok((counts, seen))
}
