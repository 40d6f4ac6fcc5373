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
        own.extend(rows(batch, run.get(i + 1).copied())?.concat());
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
    gathered(inputs.samples.count(), group, |batch, next| {
        let next = next.map(|next| (next.to_vec(), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        net::rows(&inputs.net.forward(store, x, inputs.cut, to)?)
    })
}

/// Judges every sample of `inputs`, in index order, on every rank.
///
/// # Errors
/// A sample that cannot be read, a lost peer.
pub fn evaluate(store: &Store, inputs: &Inputs<'_>, group: &mut dyn Collective) -> Result<Vec<Outcome>> {
    let n = inputs.samples.count();
    let labels = inputs.samples.dataset.labels();
    let indices: Vec<usize> = (0..n).collect();
    let mut said = Vec::new();
    // Whole batches, so that what is computed together is the same for any number of ranks.
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let own = &batches[group.shares(batches.len())[group.rank()].clone()];
    for (i, batch) in own.iter().enumerate() {
        let next = own.get(i + 1).map(|next| (next.to_vec(), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        let logits = inputs.net.forward(store, x, inputs.cut, inputs.net.network.units.len())?;
        for (i, row) in batch.iter().zip(net::rows(&logits)?) {
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
    let all: Option<Vec<Outcome>> = outcomes.into_iter().collect();
    all.ok_or_else(|| Error::Internal("a sample was not evaluated".into()))
}
