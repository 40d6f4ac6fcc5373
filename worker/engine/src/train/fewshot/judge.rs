//! What a method comes to on episodes of classes that it is judged by. Ranks take contiguous runs of episodes; mean and
//! interval are those of all.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    super::{evaluate, inputs::Inputs, net},
    Few,
    adapt::Tuner,
};
use crate::{
    Error, Result,
    collective::Collective,
    data::episodes::{Episode, Episodes},
    eval::{self, Evaluation},
    nn::{Packs, Pass, Store, tensor},
    objective::fewshot::{Learns, Shown},
};

/// Which episodes are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Those after an epoch.
    Val,
    /// Those of the report.
    Test,
}

/// Bytes of one episode's line: number, accuracy, loss.
const LINE: usize = 24;

/// Accuracy and mean loss of one episode.
pub(crate) type Outcome = (f64, f64);

/// How many queries, as many of each class and class by class, have their largest score where they should.
pub(super) fn right(scores: &Tensor) -> Result<u64> {
    let rows = net::rows(scores)?;
    let each = rows.len() / scores.dim(1)?.max(1);
    let good =
        rows.iter().enumerate().filter(|(i, row)| eval::judge(row, i / each.max(1)).predicted == i / each.max(1));
    Ok(good.count() as u64)
}

/// What scores of an episode's queries come to, as many of each class and class by class.
pub(crate) fn outcome(scores: &Tensor) -> Result<Outcome> {
    let rows = net::rows(scores)?;
    let each = (rows.len() / scores.dim(1)?.max(1)).max(1);
    let judged = rows.iter().enumerate().map(|(i, row)| eval::judge(row, i / each));
    let (mut correct, mut loss) = (0u64, 0.0);
    for one in judged {
        correct += u64::from(one.predicted == one.label);
        loss += one.loss;
    }
    let n = rows.len().max(1) as f64;
    Ok((correct as f64 / n, loss / n))
}

impl Few {
    fn of(&self, which: Judged) -> (&Episodes, usize) {
        match which {
            Judged::Val => (&self.judged[0], self.section.val as usize),
            Judged::Test => (&self.judged[1], self.section.test as usize),
        }
    }

    /// Scores by the method of what an episode asks for.
    ///
    /// # Errors
    /// A method that has none without a network.
    pub(super) fn scores(&self, shown: &Shown<'_>) -> Result<Tensor> {
        match self.method.learns {
            Learns::Compares(scores) | Learns::Fits(scores) => scores(&self.params, shown),
            Learns::Adapts(_) => Err(Error::Internal("features alone say nothing to a method that adapts".into())),
        }
    }

    /// Judges a network by the method: `inputs` are the samples that are judged, and `tuner` what adapts, if anything does.
    ///
    /// # Errors
    /// A sample that cannot be read, a lost peer.
    pub fn evaluation(
        &self,
        store: &Store,
        inputs: &Inputs<'_>,
        tuner: Option<&Tuner<'_>>,
        which: Judged,
        group: &mut dyn Collective,
    ) -> Result<Evaluation> {
        let Some(tuner) = tuner else {
            let rows = evaluate::embed(store, inputs, inputs.net.network.embeds(), group)?;
            return self.by_rows(&rows, which, |shown| self.scores(shown), group);
        };
        let (episodes, count) = self.of(which);
        let packs = Packs::default();
        let pass = Pass::again(store, &packs);
        let mut said = Vec::new();
        for number in group.shares(count)[group.rank()].clone() {
            let Episode { support, query } = episodes.draw(number as u64);
            let fed = |indices: &[usize]| {
                let x = inputs.batch(store, indices, &vec![0; indices.len()], None)?;
                inputs.net.forward(&pass, x, inputs.cut, tuner.cut)
            };
            let own = tuner.adapt(&packs, &fed(&support)?, tuner.judged_steps(), |_| None)?;
            said.push((number, outcome(&tuner.scores(&own, &packs, &fed(&query)?)?)?));
        }
        self.folded(&said, count, group)
    }

    /// Judges by features of all samples.
    ///
    /// # Errors
    /// A lost peer.
    pub(super) fn by_rows(
        &self,
        rows: &[Vec<f32>],
        which: Judged,
        scores: impl Fn(&Shown<'_>) -> Result<Tensor> + Sync,
        group: &mut dyn Collective,
    ) -> Result<Evaluation> {
        let (episodes, count) = self.of(which);
        let counts = vec![episodes.shape.shot; episodes.shape.way];
        let one = |number: usize| -> Result<(usize, Outcome)> {
            let Episode { support, query } = episodes.draw(number as u64);
            let (support, query) = (gathered(rows, &support)?, gathered(rows, &query)?);
            let shown = Shown { support: &support, counts: &counts, query: &query };
            Ok((number, outcome(&scores(&shown)?)?))
        };
        let own: Range<usize> = group.shares(count)[group.rank()].clone();
        let said = own.into_par_iter().map(one).collect::<Result<Vec<_>>>()?;
        self.folded(&said, count, group)
    }

    /// The outcomes of all ranks as one.
    fn folded(&self, said: &[(usize, Outcome)], count: usize, group: &mut dyn Collective) -> Result<Evaluation> {
        let line = |(number, (accuracy, loss)): &(usize, Outcome)| {
            [(*number as u64).to_le_bytes(), accuracy.to_le_bytes(), loss.to_le_bytes()].concat()
        };
        let own: Vec<u8> = said.iter().flat_map(line).collect();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
        for bytes in group.all_gather(own)? {
            for line in bytes.chunks_exact(LINE) {
                let word = |at: usize| u64::from_le_bytes(line[at..at + 8].try_into().expect("eight bytes"));
                let slot = outcomes.get_mut(word(0) as usize).filter(|slot| slot.is_none());
                let slot = slot.ok_or_else(|| Error::Internal(format!("episode {} was judged twice", word(0))))?;
                *slot = Some((f64::from_bits(word(8)), f64::from_bits(word(16))));
            }
        }
        let all: Option<Vec<Outcome>> = outcomes.into_iter().collect();
        let all = all.ok_or_else(|| Error::Internal("an episode was not judged".into()))?;
        Ok(Evaluation::of_episodes(self.section.judged(), &all))
    }
}

/// Some rows as a tensor.
pub(crate) fn gathered(rows: &[Vec<f32>], indices: &[usize]) -> Result<Tensor> {
    let width = rows.first().map_or(0, Vec::len);
    tensor(indices.iter().flat_map(|i| &rows[*i]).copied().collect(), &[indices.len(), width])
}
