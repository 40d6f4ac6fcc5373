//! Evaluation over all ranks: fixed batches, outcomes folded by index, no sample twice.

use super::{inputs::Inputs, net};
use crate::{
    Error, Result,
    collective::Collective,
    eval::{self, Outcome},
    nn::Store,
};

/// Samples of one evaluation batch.
const BATCH: usize = 32;
/// Bytes of a sample's index, and of what one head says of it: class, loss, entropy.
const INDEX: usize = 8;
const LINE: usize = 24;

/// Judges every sample of `inputs`, in index order, on every rank.
///
/// # Errors
/// A sample that cannot be read, a lost peer.
pub fn evaluate(store: &Store, inputs: &Inputs<'_>, group: &mut dyn Collective) -> Result<Vec<Outcome>> {
    let found = evaluate_heads(store, inputs, &[(0, inputs.samples.dataset.labels())], group)?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// The same by several heads, each by its number, with the classes of the samples in its task.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_heads(
    store: &Store,
    inputs: &Inputs<'_>,
    heads: &[(usize, &[usize])],
    group: &mut dyn Collective,
) -> Result<Vec<Vec<Outcome>>> {
    let n = inputs.samples.count();
    let numbers: Vec<usize> = heads.iter().map(|(head, _)| *head).collect();
    let indices: Vec<usize> = (0..n).collect();
    let mut said = Vec::new();
    // Whole batches, so that what is computed together is the same for any number of ranks.
    let batches: Vec<&[usize]> = indices.chunks(BATCH).collect();
    let own = &batches[group.shares(batches.len())[group.rank()].clone()];
    for (i, batch) in own.iter().enumerate() {
        let next = own.get(i + 1).map(|next| (next.to_vec(), vec![0; next.len()]));
        inputs.expect(next.as_slice(), false);
        let x = inputs.batch(store, batch, &vec![0; batch.len()], None)?;
        let logits = inputs.net.forward_heads(store, x, inputs.cut, &numbers)?;
        let logits = logits.iter().map(net::rows).collect::<Result<Vec<_>>>()?;
        for (at, i) in batch.iter().enumerate() {
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
    all.ok_or_else(|| Error::Internal("a sample was not evaluated".into()))
}
