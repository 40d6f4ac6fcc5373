//! Evaluation over all ranks: fixed batches, outcomes folded by index, no sample twice.

use super::{inputs::Inputs, net};
use crate::{
    Error, Full, Result,
    collective::{self, Collective},
    eval::{self, Outcome},
    nn::{Packs, Pass, Store},
};

/// Samples of one evaluation batch.
const BATCH: usize = 32;
/// Bytes of a sample's index, and of what one head says of it: class, loss, entropy.
const INDEX: usize = 8;
const LINE: usize = 24;

/// Of which samples more is wanted than how they were judged, by index, ascending.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    /// What the last layer takes.
    pub features: &'a [usize],
    /// What it gives.
    pub logits: &'a [usize],
}

/// What the network made of the samples that were asked for, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// What its last layer takes.
    pub features: Vec<Vec<f32>>,
    /// What it gives.
    pub logits: Vec<Vec<f32>>,
}

/// What `rows` makes of every one of `n` samples, in index order, on every rank: each computes a run of whole batches, and
/// hears which comes next.
///
/// # Errors
/// Those of `rows`; a lost peer.
pub fn gathered(
    n: usize,
    group: &mut dyn Collective,
    mut rows: impl FnMut(&[usize], Option<&[usize]>) -> Result<Vec<Vec<f32>>>,
) -> Result<Vec<Vec<f32>>> {
    let indices: Vec<usize> = (0..n).collect();
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let mut own = Vec::new();
    let run = &batches[group.shares(batches.len())[group.rank()].clone()];
    for (i, batch) in run.iter().enumerate() {
        own.extend(rows(batch, run.get(i + 1).copied()).map_err(batched)?.concat());
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
    let all: Vec<usize> = (0..inputs.samples.count()).collect();
    embed_some(store, inputs, &all, to, group)
}

/// What the last layer takes of some samples of `inputs`, in their order, on every rank; nothing else is computed.
///
/// # Errors
/// As [`embed`].
pub(super) fn features(
    store: &Store,
    inputs: &Inputs<'_>,
    some: &[usize],
    group: &mut dyn Collective,
) -> Result<Vec<Vec<f32>>> {
    embed_some(store, inputs, some, last(inputs), group)
}

/// The same as [`embed`] of some samples, in their order.
fn embed_some(
    store: &Store,
    inputs: &Inputs<'_>,
    some: &[usize],
    to: usize,
    group: &mut dyn Collective,
) -> Result<Vec<Vec<f32>>> {
    let packs = Packs::default();
    let pass = Pass::again(store, &packs);
    gathered(some.len(), group, |batch, next| {
        let picked = |places: &[usize]| -> Vec<usize> { places.iter().map(|at| some[*at]).collect() };
        let next = next.map(|next| (picked(next), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let x = inputs.batch(store, &picked(batch), &vec![0; batch.len()], None)?;
        net::rows(&inputs.net.forward(&pass, x, inputs.cut, to)?)
    })
}

/// The last unit. A network whose every unit is frozen hands over logits; then they are its features too.
fn last(inputs: &Inputs<'_>) -> usize {
    (inputs.net.network.units.len() - 1).max(inputs.cut)
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
    let heads = [(0, inputs.samples.dataset.labels())];
    let (mut found, rows) = judged(store, inputs, &heads, wanted, group).map_err(batched)?;
    Ok((found.pop().unwrap_or_default(), rows))
}

/// The same as [`evaluate`] by several heads, each by its number, with the classes of the samples in its task.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_heads(
    store: &Store,
    inputs: &Inputs<'_>,
    heads: &[(usize, &[usize])],
    group: &mut dyn Collective,
) -> Result<Vec<Vec<Outcome>>> {
    Ok(judged(store, inputs, heads, Wanted::default(), group).map_err(batched)?.0)
}

/// Batches here are nobody's but ours.
fn batched(error: Error) -> Error {
    error.full_of(Full::Samples)
}

/// What each of some heads makes of every sample, and what the first of them makes of those that are `wanted`.
fn judged(
    store: &Store,
    inputs: &Inputs<'_>,
    heads: &[(usize, &[usize])],
    wanted: Wanted<'_>,
    group: &mut dyn Collective,
) -> Result<(Vec<Vec<Outcome>>, Rows)> {
    let n = inputs.samples.count();
    let numbers: Vec<usize> = heads.iter().map(|(head, _)| *head).collect();
    let indices: Vec<usize> = (0..n).collect();
    let (mut said, mut inside, mut given) = (Vec::new(), Vec::new(), Vec::new());
    let last = last(inputs);
    // Whole batches, so that what is computed together is the same for any number of ranks.
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let own = &batches[group.shares(batches.len())[group.rank()].clone()];
    let packs = Packs::default();
    let pass = Pass::again(store, &packs);
    for (i, batch) in own.iter().enumerate() {
        let next = own.get(i + 1).map(|next| (next.to_vec(), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let mut x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        let (mut from, mut kept) = (inputs.cut, Vec::new());
        if !wanted.features.is_empty() {
            x = inputs.net.forward(&pass, x, from, last)?;
            (from, kept) = (last, net::rows(&x)?);
        }
        let logits = inputs.net.forward_heads(&pass, x, from, &numbers)?;
        let logits = logits.iter().map(net::rows).collect::<Result<Vec<_>>>()?;
        for (at, i) in batch.iter().enumerate() {
            let logits_of = logits.first().and_then(|rows| rows.get(at));
            for (some, row, out) in
                [(wanted.features, kept.get(at), &mut inside), (wanted.logits, logits_of, &mut given)]
            {
                if let Some(values) = row.filter(|_| some.binary_search(i).is_ok()) {
                    out.extend(collective::to_bytes(values));
                }
            }
            said.extend((*i as u64).to_le_bytes());
            for (rows, (_, labels)) in logits.iter().zip(heads) {
                let outcome = eval::judge(&rows[at], labels[*i]);
                said.extend((outcome.predicted as u64).to_le_bytes());
                said.extend(outcome.loss.to_le_bytes());
                said.extend(outcome.entropy.to_le_bytes());
            }
        }
    }
    let mut outcomes: Vec<Vec<Option<Outcome>>> = vec![vec![None; n]; heads.len()];
    for bytes in group.all_gather(said)? {
        for line in bytes.chunks_exact(INDEX + LINE * heads.len()) {
            let word = |at: usize| u64::from_le_bytes(line[at..at + 8].try_into().expect("eight bytes"));
            let index = word(0) as usize;
            for (h, ((head, labels), found)) in heads.iter().zip(&mut outcomes).enumerate() {
                let slot = found.get_mut(index).filter(|s| s.is_none());
                let slot = slot.ok_or_else(|| Error::Internal(format!("sample {index} was evaluated twice")))?;
                let at = INDEX + LINE * h;
                let predicted = (word(at) as usize).min(inputs.net.classes_of(*head) - 1);
                let (loss, entropy) = (f64::from_bits(word(at + 8)), f64::from_bits(word(at + 16)));
                *slot = Some(Outcome { label: labels[index], predicted, loss, entropy });
            }
        }
    }
    let all = outcomes.into_iter().map(|found| found.into_iter().collect::<Option<Vec<Outcome>>>());
    let all: Option<Vec<Vec<Outcome>>> = all.collect();
    let all = all.ok_or_else(|| Error::Internal("a sample was not evaluated".into()))?;
    let features = shown(wanted.features.len(), inside, group)?;
    Ok((all, Rows { features, logits: shown(wanted.logits.len(), given, group)? }))
}

/// The rows of `n` samples that ranks have as bytes.
fn shown(n: usize, own: Vec<u8>, group: &mut dyn Collective) -> Result<Vec<Vec<f32>>> {
    if n == 0 {
        return Ok(Vec::new());
    }
    // Ranks have runs of batches in their order, so what they say comes in the order of samples.
    let values = collective::from_bytes(&group.all_gather(own)?.concat())?;
    if values.is_empty() || !values.len().is_multiple_of(n) {
        return Err(Error::Internal("a sample that was asked for was not shown".into()));
    }
    Ok(values.chunks_exact(values.len() / n).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Solo;

    #[test]
    fn what_is_too_much_for_a_gpu_is_not_laid_on_grains() {
        let error = gathered(BATCH + 1, &mut Solo, |_, _| Err(Error::GpuMemory(Full::Grain))).unwrap_err();
        assert!(matches!(error, Error::GpuMemory(Full::Samples)), "{error:?}");
    }
}
