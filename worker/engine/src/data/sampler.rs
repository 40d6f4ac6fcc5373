//! Which samples form a step, and which of them form a grain: functions of (seed, step) alone.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use crate::num::rng::Philox;

/// The order of one epoch and its steps.
pub struct Epoch {
    order: Vec<usize>,
    batch: usize,
    epoch: u64,
}

/// How many steps an epoch of `n` samples has; a tail of one sample joins the step before.
pub fn steps_per_epoch(n: usize, batch: usize) -> usize {
    let steps = n.div_ceil(batch);
    if steps > 1 && n % batch == 1 { steps - 1 } else { steps }
}

impl Epoch {
    /// The order of `n` samples in `epoch`.
    pub fn new(seed: u32, epoch: u64, n: usize, batch: usize) -> Self {
        Self { order: Philox::new(seed, "order").permutation(n, epoch), batch, epoch }
    }

    /// As many draws with replacement, each from a class at random: all classes alike, whatever they have. Draw `g` of
    /// the run is a function of seed and `g` alone.
    pub fn balanced(seed: u32, epoch: u64, labels: &[usize], batch: usize) -> Self {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); labels.iter().max().map_or(0, |m| m + 1)];
        labels.iter().enumerate().for_each(|(i, label)| members[*label].push(i));
        members.retain(|m| !m.is_empty());
        let (n, rng) = (labels.len() as u64, Philox::new(seed, "balanced-order"));
        let draw = |g: u64| {
            let mut stream = rng.stream(g, 0);
            let class = &members[stream.below(members.len() as u64) as usize];
            class[stream.below(class.len() as u64) as usize]
        };
        Self { order: (epoch * n..(epoch + 1) * n).map(draw).collect(), batch, epoch }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        steps_per_epoch(self.order.len(), self.batch)
    }

    /// Positions of step `k` within the order.
    pub fn step(&self, k: usize) -> Range<usize> {
        let last = k + 1 == self.steps();
        k * self.batch..if last { self.order.len() } else { (k + 1) * self.batch }
    }

    /// The sample at a position, and the id of this draw of it.
    pub fn draw(&self, position: usize) -> (usize, u64) {
        (self.order[position], self.epoch * self.order.len() as u64 + position as u64)
    }
}

/// Samples that are drawn without end, beside those of an epoch: each once, in a new order, and again.
pub struct Endless {
    rng: Philox,
    n: usize,
    /// The order of the round that was asked for last.
    last: Mutex<(u64, Vec<usize>)>,
}

impl Endless {
    /// The order of `n` samples of another domain.
    pub fn new(seed: u32, n: usize) -> Self {
        Self::named("target-order", seed, n)
    }

    /// The order of `n` samples, other for each name of what they are drawn for.
    pub fn named(purpose: &str, seed: u32, n: usize) -> Self {
        let rng = Philox::new(seed, purpose);
        Self { last: Mutex::new((0, rng.permutation(n, 0))), rng, n }
    }

    /// The sample of draw `t` of the run, and how often all of them had been drawn before.
    pub fn draw(&self, t: u64) -> (usize, u64) {
        let (round, at) = (t / self.n as u64, (t % self.n as u64) as usize);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != round {
            *last = (round, self.rng.permutation(self.n, round));
        }
        (last.1[at], round)
    }
}

/// Draws beside those of a step, `of` for `batch` of its own: `n` samples of the step begin with draw `first` of the run.
/// Steps draw one after the other; each has at least one for every one of its `grains`, so that a step with few samples
/// may draw what the next one draws too.
pub fn beside(first: u64, n: usize, batch: usize, of: usize, grains: usize) -> Range<u64> {
    let at = |draw: u64| draw * of as u64 / batch.max(1) as u64;
    let (from, to) = (at(first), at(first + n as u64));
    from..to.max(from + grains as u64)
}

/// Grains of a step with `n` samples, where a full step has `grains` for `batch`.
pub fn grains_of(n: usize, batch: usize, grains: usize) -> usize {
    grains.min((n * grains).div_ceil(batch)).max(1).min(n.max(1))
}

/// Slots of grain `s` among `count` in a step of `n` samples.
pub fn grain(n: usize, count: usize, s: usize) -> Range<usize> {
    s * n / count..(s + 1) * n / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_draws_see_all_classes_alike_and_depend_on_their_number_alone() {
        // 990 of one class, 9 of another, one of a third, and a class of which nothing is left.
        let labels: Vec<usize> = (0..1000)
            .map(|i| {
                if i < 990 {
                    0
                } else if i < 999 {
                    1
                } else {
                    3
                }
            })
            .collect();
        let drawn = |epoch, batch| Epoch::balanced(5, epoch, &labels, batch).order;
        let mut counts = [0usize; 4];
        (0..6).flat_map(|e| drawn(e, 64)).for_each(|i| counts[labels[i]] += 1);
        // 2000 each, with a standard deviation of 37.
        assert!(counts[2] == 0 && [0, 1, 3].iter().all(|c| counts[*c].abs_diff(2000) < 150), "{counts:?}");
        let mut rare: Vec<usize> = drawn(0, 64).into_iter().filter(|i| labels[*i] == 1).collect();
        rare.sort_unstable();
        rare.dedup();
        assert_eq!(rare.len(), 9, "each of them is drawn");
        assert_eq!(drawn(2, 64), drawn(2, 7), "the batch changes nothing");
        assert_ne!(drawn(2, 64), drawn(3, 64));
    }

    #[test]
    fn an_endless_order_draws_each_once_a_round_and_depends_on_the_draw_alone() {
        let endless = Endless::new(3, 7);
        let drawn: Vec<usize> = (0..21).map(|t| endless.draw(t).0).collect();
        for round in drawn.chunks(7) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(drawn[..7], drawn[7..14]);
        assert_eq!((endless.draw(2), endless.draw(20)), ((drawn[2], 0), (drawn[20], 2)));
        assert_eq!(Endless::new(3, 7).draw(13).0, drawn[13], "without the draws before it");
    }

    proptest::proptest! {
        #[test]
        fn draws_beside_a_step_follow_each_other_and_reach_every_grain(n in 2usize..300, batch in 1usize..70, of in 1usize..200, grains in 1usize..9) {
            let grains = grains.min(batch).min(of);
            let (mut reached, per_epoch) = (0, steps_per_epoch(n, batch));
            for (epoch, k) in (0..3).flat_map(|epoch| (0..per_epoch).map(move |k| (epoch, k))) {
                let slots = Epoch::new(1, epoch as u64, n, batch).step(k);
                let count = grains_of(slots.len(), batch, grains);
                let drawn = beside((epoch * n + slots.start) as u64, slots.len(), batch, of, count);
                assert!(drawn.start <= reached && reached <= drawn.end, "nothing is left out");
                let len = (drawn.end - drawn.start) as usize;
                assert!(len.abs_diff(slots.len() * of / batch) <= count, "{drawn:?} beside {slots:?}");
                (0..count).for_each(|s| assert!(!grain(len, count, s).is_empty()));
                reached = drawn.end;
            }
            let same = beside(7, 5, batch, batch, 1);
            assert_eq!(same, 7..12, "as many as the step has, by the same numbers");
        }

        #[test]
        fn every_sample_is_drawn_once_and_grains_tile_each_step(n in 2usize..300, batch in 1usize..70, grains in 1usize..9) {
            let grains = grains.min(batch);
            let epoch = Epoch::new(1, 3, n, batch);
            let mut seen = vec![0; n];
            let mut next = 0;
            for k in 0..steps_per_epoch(n, batch) {
                let slots = epoch.step(k);
                assert_eq!(slots.start, next);
                next = slots.end;
                let count = grains_of(slots.len(), batch, grains);
                let mut at = 0;
                for s in 0..count {
                    let g = grain(slots.len(), count, s);
                    assert!(g.start == at && !g.is_empty());
                    at = g.end;
                    g.for_each(|i| seen[epoch.draw(slots.start + i).0] += 1);
                }
                assert_eq!(at, slots.len());
                assert!(batch == 1 || slots.len() > 1);
            }
            assert!(seen.iter().all(|c| *c == 1));
        }
    }
}
