//! The first work of GPUs, before the clock of the checks starts: cold libraries are loaded for it, kernels compiled, ranks
//! connected. How long that takes says nothing of a GPU; that it does not end does.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::rank::gpu;

/// How long NCCL may take for each step of a first sum on so many GPUs, of the time that there is for all: it loads its kernels
/// for it. Where it hangs on each of two GPUs and on both together, all of that is told in time.
pub(super) fn patience(gpus: usize, limit: Duration) -> Duration {
    if gpus > 1 { limit / 4 } else { limit * 2 / 3 }
}

/// What GPUs do for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// A step of training.
    Step(u32),
    /// A sum of one rank through NCCL.
    Sum(u32),
    /// A sum of two.
    Between([u32; 2]),
}

/// All that these GPUs are tried with later; what may wait for long comes last.
pub(super) fn all(gpus: &[u32]) -> Vec<First> {
    let steps = gpus.iter().map(|index| First::Step(*index));
    let sums = gpus.iter().map(|index| First::Sum(*index));
    let pair = match *gpus {
        [a, b, ..] => Some(First::Between([a, b])),
        _ => None,
    };
    steps.chain(sums).chain(pair).collect()
}

/// Does it, and has NCCL that long for each step.
///
/// # Errors
/// Why it cannot be done.
pub(super) fn work(first: First, patience: Duration) -> Result<(), String> {
    match first {
        First::Step(index) => gpu::works(index).map_err(|e| e.to_string()),
        First::Sum(index) => {
            let opened = gpu::Check::open(index).map_err(|e| e.to_string());
            opened.and_then(|gpu| gpu.run(gpu::Part::AllReduce, patience)).map(drop)
        }
        First::Between(pair) => gpu::between(pair, patience).map(drop),
    }
}

/// What has come of first work when all of it was done, or its time was over.
pub(super) struct Ready {
    ended: Vec<(First, Result<(), String>)>,
    limit: Duration,
}

impl Ready {
    /// Has all of it done, one after the other.
    pub fn wait(all: Vec<First>, work: impl Fn(First) -> Result<(), String> + Send + 'static, limit: Duration) -> Self {
        let until = Instant::now() + limit;
        let (done, outcomes) = mpsc::channel();
        // Not waited for: a driver that hangs must not hang us.
        std::thread::spawn(move || {
            for first in all {
                if done.send((first, work(first))).is_err() {
                    return;
                }
            }
        });
        let mut ended = Vec::new();
        while let Ok(outcome) = outcomes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            ended.push(outcome);
        }
        Self { ended, limit }
    }

    /// Where this has not ended, or had no turn: that it has not.
    pub fn late(&self, first: First) -> Option<String> {
        let has_ended = self.ended.iter().any(|(which, _)| *which == first);
        (!has_ended).then(|| format!("it was not ready within the {} s for all GPUs", self.limit.as_secs()))
    }

    /// Where this has failed: why. Where it is late, that.
    pub fn problem(&self, first: First) -> Option<String> {
        let failed =
            self.ended.iter().find(|(which, _)| *which == first).and_then(|(_, outcome)| outcome.clone().err());
        failed.or_else(|| self.late(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_does_alone_comes_before_what_may_wait_for_others() {
        use First::{Between, Step, Sum};
        assert_eq!(all(&[3, 1]), [Step(3), Step(1), Sum(3), Sum(1), Between([3, 1])]);
        assert_eq!(all(&[5]), [Step(5), Sum(5)]);
        assert!(all(&[]).is_empty());
    }

    #[test]
    fn gpus_are_waited_for_until_they_are_through_or_the_time_is() {
        let outcome = |first: First| match first {
            First::Sum(1) => Err("NCCL's words".to_owned()),
            _ => Ok(()),
        };
        let ready = Ready::wait(all(&[3, 1]), outcome, Duration::from_secs(60));
        assert!(all(&[3, 1]).into_iter().all(|first| ready.late(first).is_none()));
        assert_eq!((ready.problem(First::Sum(3)), ready.problem(First::Sum(1))), (None, Some("NCCL's words".into())));
        let (hold, held) = mpsc::channel::<()>();
        let hangs = move |first: First| {
            if first == First::Sum(3) {
                let _ = held.recv();
            }
            Ok(())
        };
        let ready = Ready::wait(all(&[3, 1]), hangs, Duration::from_millis(200));
        drop(hold);
        assert!([3, 1].into_iter().all(|index| ready.problem(First::Step(index)).is_none()));
        for late in [First::Sum(3), First::Sum(1), First::Between([3, 1])] {
            assert_eq!(ready.problem(late).as_deref(), Some("it was not ready within the 0 s for all GPUs"));
        }
    }
}
