//! Holds a job to its promise: the first steps of every stage on one, two and three ranks give the same bits in the
//! ordered reduction, and in the fast one gradients that agree to [`ROOM`] from every common state. What is added up in
//! another order differs by roundings of what is added, so the measure is the sum of the norms of the grains' gradients,
//! not the norm of a sum in which they may cancel; for the sums of a batch-norm it is their own norm.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tl_proto::spec::{JobSpec, Reduction};

use super::{Config, run, state};
use crate::{
    Error, Result,
    collective::on_loopback,
    link::{Gradient, Link, Notice, Row},
};

/// The largest difference of a step's gradient in the fast reduction, relative to the norms of the grains' gradients.
pub const ROOM: f64 = 1e-6;

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);

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
    /// The largest difference in the fast reduction, relative to the norms of the grains' gradients.
    pub fast: f64,
    /// Where that is more than [`ROOM`]: the step, and the tensor that differs most.
    pub apart: Option<Difference>,
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

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    /// Name and gradient of each tensor.
    tensors: Vec<(String, Vec<f32>)>,
    /// Name and sums of each batch-norm that learns.
    statistics: Vec<(String, Vec<f32>)>,
    /// Norms of the grains' gradients, added up.
    norms: f64,
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
            self.seen.insert(gradient.step, Sums { tensors, statistics, norms: gradient.norms });
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
        let outcomes = on_loopback(&vec![1; world], PATIENCE, |group| {
            let rank = group.rank();
            let mut link = Recorder { rank, limit, taken: 0, seen: Seen::new() };
            let config = self.config(rank, reduction, resume.map(Path::to_owned));
            std::fs::create_dir_all(&config.work).map_err(Error::disk("make a folder"))?;
            match run(&config, group, &mut link) {
                Ok(_) | Err(Error::Stopped) => Ok(link.seen),
                Err(e) => Err(e),
            }
        })?;
        let (mut seen, mut failed) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(of_rank) => seen.push(of_rank),
                Err(e) => failed.push(e),
            }
        }
        // A peer that is lost is the consequence of what happened to it.
        failed.sort_by_key(|e| matches!(e, Error::LostPeer { .. } | Error::LostGroup(_)));
        match failed.into_iter().next() {
            Some(e) => Err(e),
            None => Ok(seen.into_iter().next().unwrap_or_default()),
        }
    }
}

/// Compares the first `steps` steps of every stage on one rank with those on two and three, as far as the job has grains
/// for so many. `config.work` holds what is written on the way.
///
/// # Errors
/// Whatever would stop the job at its start.
pub fn verify(config: &Config, steps: u64) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    if config.spec.grains() < 2 || config.spec.stage.iter().all(|s| s.epochs == 0) {
        return Err(Error::user(
            "there is nothing to compare: the job trains nothing, or has one grain, which no two ranks can share",
            "set `data.grains = 2` or more",
        ));
    }
    for (i, stage) in config.spec.stage.iter().enumerate().filter(|(_, s)| s.epochs > 0) {
        let mut spec = config.spec.clone();
        spec.stage = vec![stage.clone()];
        (spec.stage[0].lr_find, spec.stop) = (None, None);
        (spec.checkpoint.every, spec.checkpoint.tolerate) = (1, 0);
        let folder = config.work.join(format!("stage-{i}"));
        let trial = Trial { config, spec, folder: folder.join("one") };
        let wanted = trial.go(1, Reduction::Ordered, None, steps)?;
        for world in 2..=3usize.min(config.spec.grains() as usize) {
            let many = Trial { spec: trial.spec.clone(), folder: folder.join(format!("{world}")), config };
            let ordered = first_difference(&wanted, &many.go(world, Reduction::Ordered, None, steps)?);
            let (mut fast, mut apart) = (0.0f64, None);
            for step in wanted.keys() {
                let before = (*step > 1).then(|| trial.folder.join(state::file_name(step - 1)));
                // Two steps, so that nothing stops before the first; it is the one that begins from the same state.
                let seen = many.go(world, Reduction::Fast, before.as_deref(), 2)?;
                let (far, tensor) = distance(&wanted[step], seen.get(step))?;
                if far > ROOM {
                    apart.get_or_insert(Difference { step: *step, tensor });
                }
                fast = fast.max(far);
            }
            let (stage, steps) = (stage.name.clone(), wanted.len());
            all.push(Compared { stage, ranks: world, steps, ordered, fast, apart });
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

/// How far a step is from the wanted one, and the tensor that is farthest.
fn distance(wanted: &Sums, got: Option<&Sums>) -> Result<(f64, String)> {
    let got = got.ok_or_else(|| Error::Internal("a step was not made again from its state".into()))?;
    let squares = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .fold(0.0f64, |sum, (a, b)| sum + (f64::from(*a) - f64::from(*b)) * (f64::from(*a) - f64::from(*b)))
    };
    let ratio = |apart: f64, whole: f64| if apart == 0.0 { 0.0 } else { apart / whole };
    let (mut apart, mut worst) = (0.0f64, (-1.0f64, String::new()));
    for ((name, wanted), (_, got)) in wanted.tensors.iter().zip(&got.tensors) {
        let own = squares(wanted, got);
        apart += own;
        if own > worst.0 {
            worst = (own, name.clone());
        }
    }
    let mut far = (ratio(apart.sqrt(), wanted.norms), worst.1);
    for ((name, wanted), (_, got)) in wanted.statistics.iter().zip(&got.statistics) {
        let own = ratio(squares(wanted, got).sqrt(), squares(wanted, &vec![0.0; wanted.len()]).sqrt());
        if own > far.0 {
            far = (own, name.clone());
        }
    }
    Ok(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32], statistics: &[f32]) -> Seen {
        let tensors = vec![("a".into(), vec![3.0]), ("b".into(), values.to_vec())];
        [(1, Sums { tensors, statistics: vec![("n".into(), statistics.to_vec())], norms: 10.0 })].into()
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
    fn a_distance_is_relative_to_what_was_added_and_statistics_drown_nothing() {
        let far = |got: Seen| distance(&seen(&[4.0], &[1e6])[&1], got.get(&1)).unwrap();
        let (by, tensor) = far(seen(&[4.05], &[1e6]));
        assert!((by - 0.005).abs() < 1e-6 && tensor == "b", "{by} {tensor}");
        let (by, tensor) = far(seen(&[4.0], &[1e6 + 1e4]));
        assert!((by - 0.01).abs() < 1e-6 && tensor == "n", "{by} {tensor}");
        assert!(distance(&seen(&[4.0], &[1.0])[&1], None).is_err());
    }
}
