//! What a teacher says of samples: at the cuts that an objective looks at, and its logits. It runs once per sample and
//! view where that can be kept.

use candle_core::Tensor;
use tl_proto::spec::JobSpec;

use super::{
    encode::{self, BUDGET},
    inputs::Inputs,
    net::{Net, rows},
    samples::Samples,
};
use crate::{
    Error, Result,
    cache::Packed,
    modifier::{self, Mix},
    nn::{Pass, tensor},
    objective::Objective,
};

/// Samples of which a teacher's outputs are looked at before anything else.
const FEW: usize = 8;

/// A teacher in one stage.
pub(super) struct Teacher<'a> {
    /// What comes out of it at each cut that is kept, ascending.
    pub cuts: Vec<Inputs<'a>>,
    /// How its logits are kept.
    pub packed: Packed,
}

/// What it says of a batch.
pub(super) struct Says {
    /// By cut, as in [`Teacher::cuts`].
    pub at: Vec<(usize, Tensor)>,
    /// `[n, classes]`
    pub logits: Tensor,
}

impl Says {
    /// What comes out in front of a cut.
    ///
    /// # Errors
    /// One that was not asked for.
    pub fn at(&self, cut: usize) -> Result<Tensor> {
        let found = self.at.iter().find(|(c, _)| *c == cut).map(|(_, t)| t.clone());
        found.ok_or_else(|| Error::Internal("a teacher was not asked for its features".into()))
    }
}

/// Where a teacher is cut, ascending: behind the units that are compared, and in front of its last one if what that takes
/// is; else, or where its logits are kept in less room, behind that one.
fn cuts(teacher: &Net, taps: &[usize], inside: bool, packed: Packed) -> Vec<usize> {
    let all = teacher.network.units.len();
    let mut cuts: Vec<usize> = taps.iter().map(|unit| unit + 1).collect();
    cuts.extend(inside.then_some(all - 1));
    cuts.extend((!inside || !packed.is_plain()).then_some(all));
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// The same for the teacher of a job at this place: the first one is cut at the `taps` and where the objective looks too,
/// the others behind their logits.
pub(super) fn cuts_of(spec: &JobSpec, which: usize, teacher: &Net, taps: &[usize]) -> Vec<usize> {
    let objective = Objective::find(&spec.job.kind);
    let inside = (objective.looks_inside)(&spec.objective);
    let (taps, inside) = if which == 0 { (taps, inside) } else { (&[][..], false) };
    cuts(teacher, taps, inside, (objective.packed)(&spec.objective))
}

/// Words of what a teacher says of one sample and view, at all cuts.
///
/// # Errors
/// An input that is too small for the network.
pub(super) fn words(teacher: &Net, cuts: &[usize], packed: Packed) -> Result<usize> {
    let mut words = 0;
    for cut in cuts {
        let width = teacher.shape_at(&teacher.network.initial, *cut)?.iter().product();
        words += encode::packing(teacher, *cut, packed).words(width);
    }
    Ok(words)
}

/// How many views of each sample a teacher is asked about once and for all; none where it runs in every step.
pub(super) fn views(spec: &JobSpec, shown: &Samples) -> Option<usize> {
    shown.views().filter(|_| !modifier::mixes(&spec.modifiers))
}

/// Looks at what a teacher says of a few samples before it is asked about all.
///
/// # Errors
/// A sample that cannot be read; what it says are no logits.
pub(super) fn look(teacher: &Net, shown: &Samples, role: &str) -> Result<()> {
    let few: Vec<_> = (0..shown.count().min(FEW)).map(|i| (i, shown.view(i, 0))).collect();
    if few.is_empty() {
        return Ok(());
    }
    let batch = shown.batch(&few, &teacher.contract, false)?;
    let said = teacher.forward(&Pass::eval(&teacher.network.initial), batch, 0, teacher.network.units.len())?;
    gives_logits(&rows(&said)?, role)
}

impl Teacher<'_> {
    /// Where its pixels come from.
    pub fn inputs(&self) -> Option<&Inputs<'_>> {
        self.cuts.first()
    }

    /// Where its last unit begins.
    pub fn features(&self) -> Option<usize> {
        Some(self.cuts.first()?.net.network.units.len() - 1)
    }

    /// What it says of samples, each in the view of its turn.
    ///
    /// # Errors
    /// A sample that cannot be read.
    pub fn says(&self, indices: &[usize], turns: &[u64], mix: Option<&Mix>) -> Result<Says> {
        let none = || Error::Internal("a teacher without cuts".into());
        let Inputs { net, packs, .. } = self.cuts.first().ok_or_else(none)?;
        let store = &net.network.initial;
        let pass = Pass::again(store, packs);
        let kept = mix.is_none() && self.cuts.iter().all(|i| i.features.is_some() && i.samples.views().is_some());
        let mut at: Vec<(usize, Tensor)> = Vec::new();
        let all = net.network.units.len();
        for inputs in &self.cuts {
            let mut next = match at.last() {
                Some((from, x)) if !kept => net.forward(&pass, x.clone(), *from, inputs.cut)?,
                _ => inputs.batch(store, indices, turns, mix)?,
            };
            if !kept && inputs.cut == all && !self.packed.is_plain() {
                let rows = rows(&next)?.iter().map(|row| self.packed.round(row)).collect::<Result<Vec<_>>>()?;
                next = tensor(rows.concat(), next.dims())?;
            }
            at.push((inputs.cut, next));
        }
        let (cut, x) = at.last().ok_or_else(none)?;
        let logits = net.forward(&pass, x.clone(), *cut, all)?;
        Ok(Says { at, logits })
    }
}

/// Whether what a teacher says of so many samples and views, of `words` numbers each, has room in memory.
///
/// # Errors
/// Says that it has not, and what that means.
pub(super) fn room(words: usize, rows: usize) -> std::result::Result<(), String> {
    let bytes = words.saturating_mul(4).saturating_mul(rows);
    if bytes <= BUDGET {
        return Ok(());
    }
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    let (needs, most) = (gib(bytes), gib(BUDGET));
    Err(format!("takes {needs:.1} GiB, and at most {most:.0} are kept: it runs in every step, which takes longer"))
}

/// Refuses what a head says that ends in a softmax: distillation softens logits, and probabilities would be softened to
/// nothing.
///
/// # Errors
/// Rows that are probabilities.
fn gives_logits(rows: &[Vec<f32>], role: &str) -> Result<()> {
    let is_probability = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
        row.iter().all(|v| (0.0..=1.0).contains(v)) && (sum - 1.0).abs() < 1e-4
    };
    if rows.is_empty() || !rows.iter().all(is_probability) {
        return Ok(());
    }
    Err(Error::user(
        format!("what `nets.{role}` says are probabilities already: its head ends in a softmax"),
        "give it the weights of a network that ends in logits: softened twice, nothing is left of what it knows",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Top;

    #[test]
    fn what_has_no_room_is_told() {
        let (rows, classes) = (1_300_000, 1000);
        assert!(room(classes, rows).unwrap_err().contains("takes 4.8 GiB, and at most 4 are kept"));
        let top = Packed { half: true, top: Some(Top { count: 10, temperature: 4.0 }) };
        assert_eq!(room(top.words(classes), rows), Ok(()), "what is kept in less room counts less");
    }

    #[test]
    fn a_head_that_ends_in_a_softmax_is_refused() {
        let soft = vec![vec![0.7, 0.2, 0.1], vec![0.0, 1.0, 0.0]];
        let error = gives_logits(&soft, "teacher_2").unwrap_err().to_string();
        assert!(error.contains("`nets.teacher_2`") && error.contains("softmax"), "{error}");
        let logits = [soft, vec![vec![0.5, 0.5, 0.1]]].concat();
        gives_logits(&logits, "teacher").unwrap();
        gives_logits(&[], "teacher").unwrap();
    }
}
