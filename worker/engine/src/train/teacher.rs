//! What a teacher says of samples: at the cuts that an objective looks at, and its logits. It runs once per sample and
//! view where that can be kept.

use candle_core::Tensor;
use tl_proto::spec::JobSpec;

use super::{
    cut::Cut,
    encode::BUDGET,
    inputs::Inputs,
    net::{Net, rows},
    samples::Samples,
};
use crate::{
    Error, Result,
    cache::Packed,
    modifier::{self, Mix},
    nn::Pass,
    objective::{Look, Objective},
};

/// Samples of which a teacher's outputs are looked at before anything else.
const FEW: usize = 8;

/// A teacher in one stage.
pub(super) struct Teacher<'a> {
    /// What comes out of it at each cut that is looked at, ascending.
    pub cuts: Vec<(Cut, Inputs<'a>)>,
}

/// What it says of a batch.
pub(super) struct Says {
    /// What is looked at, by cut, as in [`Teacher::cuts`].
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

/// Where a teacher is cut, ascending: behind the units that are compared, of which `look` is looked at, and in front of its
/// last one if what that takes is; else, or where its logits are kept in less room, behind that one.
fn cuts(teacher: &Net, taps: &[usize], look: Option<Look>, inside: bool, packed: Packed) -> Vec<Cut> {
    let all = teacher.network.units.len();
    let mut cuts: Vec<Cut> = taps.iter().map(|unit| Cut { look, ..Cut::from(unit + 1) }).collect();
    cuts.extend(inside.then_some(Cut::from(all - 1)));
    cuts.extend((!inside || !packed.is_plain()).then_some(Cut { packed, ..Cut::from(all) }));
    cuts.sort_by_key(|cut| cut.at);
    cuts.dedup_by_key(|cut| cut.at);
    cuts
}

/// The same for the teacher of a job at this place: the first one is cut at the `taps` and where the objective looks too,
/// the others behind their logits.
pub(super) fn cuts_of(spec: &JobSpec, which: usize, teacher: &Net, taps: &[usize]) -> Vec<Cut> {
    let objective = Objective::find(&spec.job.kind);
    let inside = (objective.looks_inside)(&spec.objective);
    let (taps, inside) = if which == 0 { (taps, inside) } else { (&[][..], false) };
    cuts(teacher, taps, (objective.look)(&spec.objective), inside, (objective.packed)(&spec.objective))
}

/// Words of what a teacher says of one sample and view, at all cuts.
///
/// # Errors
/// An input that is too small for the network.
pub(super) fn words(teacher: &Net, cuts: &[Cut]) -> Result<usize> {
    cuts.iter().map(|cut| cut.words(teacher, &teacher.network.initial)).sum()
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
        self.cuts.first().map(|(_, inputs)| inputs)
    }

    /// Where its last unit begins.
    pub fn features(&self) -> Option<usize> {
        Some(self.inputs()?.net.network.units.len() - 1)
    }

    /// What it says of samples, each in the view of its turn.
    ///
    /// # Errors
    /// A sample that cannot be read.
    pub fn says(&self, indices: &[usize], turns: &[u64], mix: Option<&Mix>) -> Result<Says> {
        let none = || Error::Internal("a teacher without cuts".into());
        let Inputs { net, packs, .. } = self.inputs().ok_or_else(none)?;
        let store = &net.network.initial;
        let pass = Pass::again(store, packs);
        let cached = |inputs: &Inputs<'_>| inputs.features.is_some() && inputs.samples.views().is_some();
        let kept = mix.is_none() && self.cuts.iter().all(|(_, inputs)| cached(inputs));
        let (mut at, mut out) = (Vec::new(), None);
        for (cut, inputs) in &self.cuts {
            let x = match out {
                Some((from, x)) if !kept => net.forward(&pass, x, from, cut.at)?,
                _ => inputs.batch(store, indices, turns, mix)?,
            };
            // No more than what is looked at was kept.
            at.push((cut.at, if kept { x.clone() } else { cut.seen(&x)? }));
            out = Some((cut.at, x));
        }
        let all = net.network.units.len();
        let logits = match (at.last(), out) {
            (Some((cut, logits)), _) if *cut == all => logits.clone(),
            (_, Some((from, x))) => net.forward(&pass, x, from, all)?,
            (_, None) => return Err(none()),
        };
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
    use std::collections::BTreeMap;

    use tl_proto::spec::{DataSection, ModelSection};

    use super::*;
    use crate::{cache::Top, collective::Solo, link::Deaf, nn::host, train::encode};

    /// The first channel, halved.
    fn some(maps: &Tensor) -> Result<Tensor> {
        Ok((maps.narrow(3, 0, 1)? * 0.5)?)
    }

    #[test]
    fn what_was_kept_is_what_is_looked_at_in_every_step() {
        let data = DataSection {
            format: "generated".into(),
            train: "source".into(),
            batch: 4,
            params: [("train_samples".to_owned(), 2.into())].into(),
            ..DataSection::default()
        };
        let samples = Samples::open(&data, "train", 1).unwrap();
        let model = ModelSection { backbone: "small_cnn".into(), ..ModelSection::default() };
        let net = Net::build(&model, samples.dataset.classes(), false, 1, &BTreeMap::new()).unwrap();
        let (store, all) = (&net.network.initial, net.network.units.len());
        let packed = Packed { half: true, top: None };
        let cuts_by = |name| cuts(&net, &[1, 2], Some(Look { name, of: some }), false, packed);
        let (cuts, dir) = (cuts_by("some"), tempfile::tempdir().unwrap());
        let places: Vec<usize> = cuts.iter().map(|cut| cut.at).collect();
        assert_eq!(places, [2, 3, all]);
        assert_eq!(words(&net, &cuts).unwrap(), 16 * 16 + 8 * 8 + samples.dataset.classes().len() / 2);
        let encoded = encode::encode(&net, store, &cuts, &samples, dir.path(), &mut Solo, &mut Deaf).unwrap();
        let teacher = |kept: bool| {
            let one = |cut: &Cut| {
                let features = encoded.by_cut.get(&cut.at).filter(|_| kept).map(Vec::as_slice);
                let raw = Inputs::raw(&net, &samples, net.shape_at(store, cut.at).unwrap());
                (*cut, Inputs { cut: cut.at, features, ..raw }.kept(cut).unwrap())
            };
            Teacher { cuts: cuts.iter().map(one).collect() }
        };
        let (indices, turns) = ([3, 0, 9], [0; 3]);
        let [kept, fresh] = [true, false].map(|kept| teacher(kept).says(&indices, &turns, None).unwrap());
        let bits = |t: &Tensor| host(t).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for ((cut, kept), (_, fresh)) in kept.at.iter().zip(&fresh.at) {
            assert_eq!((kept.dims(), bits(kept)), (fresh.dims(), bits(fresh)), "{cut}");
        }
        assert_eq!(bits(&kept.logits), bits(&fresh.logits));
        let views: Vec<_> = indices.iter().map(|i| (*i, samples.view(*i, 0))).collect();
        let x = samples.batch(&views, &net.contract, false).unwrap();
        let maps = some(&net.forward(&Pass::eval(store), x, 0, 2).unwrap()).unwrap().contiguous().unwrap();
        assert_eq!((maps.dims(), bits(&maps)), (&[3, 16, 16, 1][..], bits(&fresh.at[0].1)));
        // Under another name it is something else.
        let missing = |cut: Cut| encode::missing(&net, store, cut, &samples, dir.path()).unwrap();
        assert_eq!((missing(cuts[0]), missing(cuts_by("more")[0])), (0, samples.count()));
    }

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
