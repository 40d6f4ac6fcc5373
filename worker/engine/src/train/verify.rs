//! Holds a job to its promise: the first steps of every stage on one, two and three ranks give the same bits in the
//! ordered reduction, and in the fast one gradients that agree from every common state, all of one to [`ROOM`] and each of
//! its tensors to [`TENSOR_ROOM`]. What is added up in another order differs by roundings of what is added, so the measure is
//! the sum of the norms of the grains' gradients, not the norm of a sum in which they may cancel; for the sums of a
//! batch-norm it is their own norm. A job that trains nothing is to say the same.

mod judged;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tl_proto::spec::{JobSpec, Reduction, StageSection};

pub use self::judged::Judged;
use super::{Config, run, state};
use crate::{
    Error, Result,
    collective::{Collective, on_loopback},
    link::{Gradient, Link, Norms, Notice, Row},
};

/// The largest difference of a step's gradient in the fast reduction, relative to the norms of the grains' gradients; the same
/// of the sums of a batch-norm, relative to their own norm.
pub const ROOM: f64 = 1e-6;

/// The largest difference of one tensor's gradient, relative to the norms of what the grains add to it.
pub const TENSOR_ROOM: f64 = 1e-5;

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a job came to on several ranks, against one.
#[derive(Clone, Debug, PartialEq)]
pub enum Verified {
    /// Its stages, of a job that trains.
    Trains(Vec<Compared>),
    /// What it says, of one that trains nothing.
    Judges(Vec<Judged>),
}

/// What a comparison with one rank came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Stage of the job.
    pub stage: String,
    /// Ranks that were compared with one.
    pub ranks: usize,
    /// Steps that were compared.
    pub steps: usize,
    /// The first step and tensor whose bits differ in the ordered reduction.
    pub ordered: Option<Difference>,
    /// The largest difference of gradients in the fast reduction, relative to the norms of the grains' gradients.
    pub fast: f64,
    /// The largest difference there of the sums of a batch-norm, where some learn, relative to their norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<f64>,
    /// What is further apart there than it may be, in the first step in which something is.
    pub apart: Option<Apart>,
}

impl Compared {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        self.ordered.is_none() && self.apart.is_none()
    }
}

/// Where two runs differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Step of the stage, from 1.
    pub step: u64,
    /// Name of the tensor.
    pub tensor: String,
}

/// What is further apart in the fast reduction than it may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Apart {
    /// Step of the stage, from 1.
    pub step: u64,
    /// Name of the tensor; where all together are too far apart, of the one that is farthest.
    pub tensor: String,
    /// How far it is.
    pub by: f64,
    /// How far it may be.
    pub room: f64,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    /// Name and gradient of each tensor.
    tensors: Vec<(String, Vec<f32>)>,
    /// Name and sums of each batch-norm that learns.
    statistics: Vec<(String, Vec<f32>)>,
    /// Norms of the grains' gradients.
    norms: Norms,
}

/// The steps of a run.
type Seen = BTreeMap<u64, Sums>;

/// Takes gradients down on rank 0, and stops after some steps.
struct Recorder {
    rank: usize,
    limit: u64,
    taken: u64,
    seen: Seen,
}

impl Link for Recorder {
    fn row(&mut self, _: &Row) {}
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.taken + 1 >= self.limit
    }
    fn gradient(&mut self, gradient: &Gradient<'_>) {
        self.taken += 1;
        if self.rank == 0 {
            let taken = |(name, values): (String, &[f32])| (name, values.to_vec());
            let tensors = gradient.tensors().map(taken).collect();
            let statistics = gradient.statistics().map(taken).collect();
            self.seen.insert(gradient.step, Sums { tensors, statistics, norms: gradient.norms.clone() });
        }
    }
    fn compares(&self) -> bool {
        true
    }
}

/// One stage of a job, with ranks that begin from a state.
struct Trial<'a> {
    config: &'a Config,
    spec: JobSpec,
    folder: PathBuf,
}

impl Trial<'_> {
    fn config(&self, rank: usize, reduction: Reduction, resume: Option<PathBuf>) -> Config {
        let mut spec = self.spec.clone();
        spec.cluster.reduction = reduction;
        let work = if rank == 0 { self.folder.clone() } else { self.folder.join(format!("rank-{rank}")) };
        let (cache, resume) = (self.folder.join("cache"), resume.into_iter().collect());
        Config { spec, look: false, work, cache, resume, ..self.config.clone() }
    }

    /// What rank 0 of so many saw.
    fn go(&self, world: usize, reduction: Reduction, resume: Option<&Path>, limit: u64) -> Result<Seen> {
        on_ranks(world, |group| {
            let rank = group.rank();
            let mut link = Recorder { rank, limit, taken: 0, seen: Seen::new() };
            let config = self.config(rank, reduction, resume.map(Path::to_owned));
            std::fs::create_dir_all(&config.work).map_err(Error::disk("make a folder"))?;
            match run(&config, group, &mut link) {
                Ok(_) | Err(Error::Stopped) => Ok(link.seen),
                Err(e) => Err(e),
            }
        })
    }
}

/// What rank 0 of so many came to, or what stopped the first that was stopped.
fn on_ranks<T: Send>(world: usize, rank: impl Fn(&mut dyn Collective) -> Result<T> + Sync) -> Result<T> {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for outcome in on_loopback(&vec![1; world], PATIENCE, rank)? {
        match outcome {
            Ok(of_rank) => done.push(of_rank),
            Err(e) => failed.push(e),
        }
    }
    // A peer that is lost is the consequence of what happened to it.
    failed.sort_by_key(|e| matches!(e, Error::LostPeer { .. } | Error::LostGroup(_)));
    match (failed.into_iter().next(), done.into_iter().next()) {
        (Some(e), _) => Err(e),
        (None, Some(first)) => Ok(first),
        (None, None) => Err(Error::Internal("no rank has run".into())),
    }
}

/// Compares a job on one rank with the same on two and three: the first `steps` steps of its stages, or, where it trains
/// nothing, what it says. `config.work` holds what is written on the way.
///
/// # Errors
/// Whatever would stop the job; one grain, which no two ranks can share.
pub fn verified(config: &Config, steps: u64) -> Result<Verified> {
    Ok(if config.spec.stage.iter().any(takes_steps) {
        Verified::Trains(verify(config, steps)?)
    } else {
        Verified::Judges(judged::judged(config)?)
    })
}

/// Whether a stage takes steps, be it to look for a rate alone.
fn takes_steps(stage: &StageSection) -> bool {
    stage.epochs > 0 || stage.lr_find.is_some()
}

/// Compares the first `steps` steps of every stage on one rank with those on two and three, as far as the job has grains
/// for so many; of a stage that only looks for a rate, those that it would begin with. `config.work` holds what is
/// written on the way.
///
/// # Errors
/// Whatever would stop the job at its start.
pub fn verify(config: &Config, steps: u64) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    if config.spec.grains() < 2 {
        return Err(Error::user(
            "there is nothing to compare: the job has one grain, which no two ranks can share",
            "set `data.grains = 2` or more",
        ));
    }
    for (i, stage) in config.spec.stage.iter().enumerate().filter(|(_, s)| takes_steps(s)) {
        let mut spec = config.spec.clone();
        spec.stage = vec![stage.clone()];
        (spec.stage[0].epochs, spec.stage[0].lr_find, spec.stop) = (stage.epochs.max(1), None, None);
        (spec.checkpoint.every, spec.checkpoint.tolerate) = (1, 0);
        let folder = config.work.join(format!("stage-{i}"));
        let trial = Trial { config, spec, folder: folder.join("one") };
        let wanted = trial.go(1, Reduction::Ordered, None, steps)?;
        for world in 2..=3usize.min(config.spec.grains() as usize) {
            let many = Trial { spec: trial.spec.clone(), folder: folder.join(format!("{world}")), config };
            let ordered = first_difference(&wanted, &many.go(world, Reduction::Ordered, None, steps)?);
            let (mut fast, mut statistics, mut apart) = (0.0f64, None::<f64>, None);
            for step in wanted.keys() {
                let before = (*step > 1).then(|| trial.folder.join(state::file_name(step - 1)));
                // Two steps, so that nothing stops before the first; it is the one that begins from the same state.
                let seen = many.go(world, Reduction::Fast, before.as_deref(), 2)?;
                let Far { gradients, statistics: sums, worst: (by, room, tensor) } =
                    distance(&wanted[step], seen.get(step))?;
                if by > room {
                    apart.get_or_insert(Apart { step: *step, tensor, by, room });
                }
                fast = fast.max(gradients);
                statistics = sums.map(|sums| sums.max(statistics.unwrap_or_default()));
            }
            let (stage, steps) = (stage.name.clone(), wanted.len());
            all.push(Compared { stage, ranks: world, steps, ordered, fast, statistics, apart });
        }
        // Checkpoints of every step add up.
        std::fs::remove_dir_all(&folder).map_err(Error::disk("remove a folder"))?;
    }
    Ok(all)
}

/// The first tensor of the first step whose bits differ.
fn first_difference(wanted: &Seen, got: &Seen) -> Option<Difference> {
    for (step, wanted) in wanted {
        let theirs = got.get(step);
        let theirs = theirs.into_iter().flat_map(|t| t.tensors.iter().chain(&t.statistics));
        let mut theirs = theirs.map(|(_, values)| values);
        for (name, values) in wanted.tensors.iter().chain(&wanted.statistics) {
            let same = theirs.next().is_some_and(|t| {
                t.len() == values.len() && t.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits())
            });
            if !same {
                return Some(Difference { step: *step, tensor: name.clone() });
            }
        }
    }
    None
}

/// How far a step is from the wanted one.
struct Far {
    /// Of all tensors together.
    gradients: f64,
    /// Of the batch-norm that is farthest, where some learn.
    statistics: Option<f64>,
    /// What goes furthest towards what it may be, or beyond that: how far it is, how far it may be, and the tensor.
    worst: (f64, f64, String),
}

fn distance(wanted: &Sums, got: Option<&Sums>) -> Result<Far> {
    let got = got.ok_or_else(|| Error::Internal("a step was not made again from its state".into()))?;
    let squares = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .fold(0.0f64, |sum, (a, b)| sum + (f64::from(*a) - f64::from(*b)) * (f64::from(*a) - f64::from(*b)))
    };
    let ratio = |apart: f64, whole: f64| if apart == 0.0 { 0.0 } else { apart / whole };
    let mut worst = (0.0, ROOM, String::new());
    let mut consider = |by: f64, room: f64, tensor: &str| {
        if by / room > worst.0 / worst.1 {
            worst = (by, room, tensor.to_owned());
        }
    };
    let (mut apart, mut farthest) = (0.0f64, (-1.0f64, ""));
    let tensors = wanted.tensors.iter().zip(&got.tensors).zip(&wanted.norms.each);
    for (((name, wanted), (_, got)), norms) in tensors {
        let own = squares(wanted, got);
        apart += own;
        if own > farthest.0 {
            farthest = (own, name.as_str());
        }
        consider(ratio(own.sqrt(), *norms), TENSOR_ROOM, name);
    }
    let gradients = ratio(apart.sqrt(), wanted.norms.whole);
    consider(gradients, ROOM, farthest.1);
    let mut statistics = None::<f64>;
    for ((name, wanted), (_, got)) in wanted.statistics.iter().zip(&got.statistics) {
        let own = ratio(squares(wanted, got).sqrt(), squares(wanted, &vec![0.0; wanted.len()]).sqrt());
        statistics = Some(own.max(statistics.unwrap_or_default()));
        consider(own, ROOM, name);
    }
    Ok(Far { gradients, statistics, worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32], statistics: &[f32]) -> Seen {
        let tensors = vec![("a".into(), vec![3.0]), ("b".into(), values.to_vec())];
        let norms = Norms { whole: 10.0, each: vec![5.0, 8.0] };
        [(1, Sums { tensors, statistics: vec![("n".into(), statistics.to_vec())], norms })].into()
    }

    #[test]
    fn the_first_bit_that_differs_is_named() {
        let wanted = seen(&[4.0, 0.0], &[1.0]);
        assert_eq!(first_difference(&wanted, &wanted), None);
        let named = |got: &Seen| first_difference(&wanted, got).map(|d| (d.step, d.tensor));
        assert_eq!(named(&seen(&[4.0, -0.0], &[1.0])), Some((1, "b".into())));
        assert_eq!(named(&seen(&[4.0], &[1.0])), Some((1, "b".into())));
        assert_eq!(named(&seen(&[4.0, 0.0], &[2.0])), Some((1, "n".into())));
        assert_eq!(named(&Seen::new()), Some((1, "a".into())));
    }

    #[test]
    fn a_distance_is_relative_to_what_was_added_and_statistics_stand_apart() {
        let far = |got: Seen| distance(&seen(&[4.0], &[1e6])[&1], got.get(&1)).unwrap();
        let by = far(seen(&[4.05], &[1e6]));
        assert!((by.gradients - 0.005).abs() < 1e-6 && by.statistics == Some(0.0), "{}", by.gradients);
        assert_eq!((by.worst.0, by.worst.1, &by.worst.2[..]), (by.gradients, ROOM, "b"));
        let by = far(seen(&[4.0], &[1e6 + 1e4]));
        assert!((by.statistics.unwrap() - 0.01).abs() < 1e-6 && by.gradients == 0.0);
        assert_eq!((by.worst.1, &by.worst.2[..]), (ROOM, "n"));
        assert!(distance(&seen(&[4.0], &[1.0])[&1], None).is_err());
        let without = |values: &[f32]| Sums { statistics: Vec::new(), ..seen(values, &[1.0])[&1].clone() };
        assert_eq!(distance(&without(&[4.0]), Some(&without(&[4.0]))).unwrap().statistics, None);
    }

    /// A temperature, say, beside a network.
    #[test]
    fn a_tensor_that_is_small_beside_the_others_is_held_to_its_own_norm() {
        let step = |value: f32| {
            let norms = Norms { whole: 10.0, each: vec![10.0, 1e-6] };
            Sums { norms, ..seen(&[value], &[1.0])[&1].clone() }
        };
        let by = distance(&step(1e-6), Some(&step(3e-6))).unwrap();
        assert!(by.gradients < ROOM, "{}", by.gradients);
        assert!((by.worst.0 - 2.0).abs() < 1e-6 && by.worst.0 > by.worst.1, "{}", by.worst.0);
        assert_eq!((by.worst.1, &by.worst.2[..]), (TENSOR_ROOM, "b"));
    }
}
