//! Evaluation over all ranks: fixed batches, outcomes folded by index, no sample twice.

use super::{inputs::Inputs, net};
use crate::{
    Error, Result,
    collective::{self, Collective},
    eval::{self, Outcome},
    nn::Store,
};

/// Samples of one evaluation batch.
const BATCH: usize = 32;
/// Bytes of one sample's line: index, class, loss, entropy.
const LINE: usize = 32;

/// Of which samples more is wanted than how they were judged.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    /// By index, ascending.
    pub samples: &'a [usize],
    /// Whether what the last layer takes of them is wanted, beside what it gives.
    pub features: bool,
}

/// What the network made of the samples that were asked for, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// What its last layer takes; nothing unless it was asked for.
    pub features: Vec<Vec<f32>>,
    /// What it gives.
    pub logits: Vec<Vec<f32>>,
}

/// What `rows` makes of every one of `n` samples, in index order, on every rank: each computes a run of whole batches.
///
/// # Errors
/// Those of `rows`; a lost peer.
pub fn gathered(
    n: usize,
    group: &mut dyn Collective,
    mut rows: impl FnMut(&[usize]) -> Result<Vec<Vec<f32>>>,
) -> Result<Vec<Vec<f32>>> {
    let indices: Vec<usize> = (0..n).collect();
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let mut own = Vec::new();
    for batch in &batches[group.shares(batches.len())[group.rank()].clone()] {
        own.extend(rows(batch)?.concat());
    }
    let all = group.all_gather(collective::to_bytes(&own))?.concat();
    let all = collective::from_bytes(&all)?;
    if n == 0 || all.len() % n != 0 || all.is_empty() {
        return Err(Error::Internal(format!("{} numbers came of {n} samples", all.len())));
    }
    Ok(all.chunks_exact(all.len() / n).map(<[f32]>::to_vec).collect())
}

/// What units up to `to` make of every sample of `inputs`, in index order, on every rank.
///
/// # Errors
/// A sample that cannot be read, a lost peer.
pub fn embed(store: &Store, inputs: &Inputs<'_>, to: usize, group: &mut dyn Collective) -> Result<Vec<Vec<f32>>> {
    gathered(inputs.samples.count(), group, |batch| {
        let x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        net::rows(&inputs.net.forward(store, x, inputs.cut, to)?)
    })
}

/// Judges every sample of `inputs`, in index order, on every rank.
///
/// # Errors
/// A sample that cannot be read, a lost peer.
pub fn evaluate(store: &Store, inputs: &Inputs<'_>, group: &mut dyn Collective) -> Result<Vec<Outcome>> {
    Ok(look(store, inputs, Wanted::default(), group)?.0)
}

/// The same, with what the network makes of some samples.
pub(super) fn look(
    store: &Store,
    inputs: &Inputs<'_>,
    wanted: Wanted<'_>,
    group: &mut dyn Collective,
) -> Result<(Vec<Outcome>, Rows)> {
    let n = inputs.samples.count();
    let labels = inputs.samples.dataset.labels();
    let indices: Vec<usize> = (0..n).collect();
    let (mut said, mut shown) = (Vec::new(), Vec::new());
    // A network whose every unit is frozen hands over logits; then they are its features too.
    let (all, last) = (inputs.net.network.units.len(), (inputs.net.network.units.len() - 1).max(inputs.cut));
    // Whole batches, so that what is computed together is the same for any number of ranks.
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let own = &batches[group.shares(batches.len())[group.rank()].clone()];
    for (i, batch) in own.iter().enumerate() {
        let next = own.get(i + 1).map(|next| (next.to_vec(), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        let features = inputs.net.forward(store, x, inputs.cut, last)?;
        let logits = inputs.net.forward(store, features.clone(), last, all)?;
        let kept = if wanted.features { net::rows(&features)? } else { Vec::new() };
        for (at, (i, row)) in batch.iter().zip(net::rows(&logits)?).enumerate() {
            if wanted.samples.binary_search(i).is_ok() {
                kept.get(at).into_iter().chain([&row]).for_each(|values| shown.extend(collective::to_bytes(values)));
            }
            let outcome = eval::judge(&row, labels[*i]);
            said.extend((*i as u64).to_le_bytes());
            said.extend((outcome.predicted as u64).to_le_bytes());
            said.extend(outcome.loss.to_le_bytes());
            said.extend(outcome.entropy.to_le_bytes());
        }
    }
    let mut outcomes: Vec<Option<Outcome>> = vec![None; n];
    for bytes in group.all_gather(said)? {
        for line in bytes.chunks_exact(LINE) {
            let word = |at: usize| u64::from_le_bytes(line[at..at + 8].try_into().expect("eight bytes"));
            let index = word(0) as usize;
            let slot = outcomes.get_mut(index).filter(|s| s.is_none());
            let slot = slot.ok_or_else(|| Error::Internal(format!("sample {index} was evaluated twice")))?;
            let predicted = (word(8) as usize).min(inputs.net.network.outputs - 1);
            let (loss, entropy) = (f64::from_bits(word(16)), f64::from_bits(word(24)));
            *slot = Some(Outcome { label: labels[index], predicted, loss, entropy });
        }
    }
    let outcomes: Option<Vec<Outcome>> = outcomes.into_iter().collect();
    let outcomes = outcomes.ok_or_else(|| Error::Internal("a sample was not evaluated".into()))?;
    let mut rows = Rows::default();
    if !wanted.samples.is_empty() {
        // Ranks have runs of batches in their order, so what they say comes in the order of samples.
        let values = collective::from_bytes(&group.all_gather(shown)?.concat())?;
        let width = values.len() / wanted.samples.len();
        let classes = inputs.net.network.outputs.min(width);
        if width == 0 || values.len() != width * wanted.samples.len() {
            return Err(Error::Internal("a sample that was asked for was not shown".into()));
        }
        for row in values.chunks_exact(width) {
            let (features, logits) = row.split_at(width - classes);
            rows.features.push(features.to_vec());
            rows.logits.push(logits.to_vec());
        }
    }
    Ok((outcomes, rows))
}
