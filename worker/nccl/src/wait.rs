//! Waiting with a deadline, as a pure machine: what was seen and the time go in, what to do comes out.

use std::time::{Duration, Instant};

use crate::Code;

/// What a look at a communicator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not done yet.
    Pending,
    /// Done.
    Ready,
    /// It has failed by itself.
    Failed(Code),
    /// Somebody has aborted it.
    Gone,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again after a pause.
    Again(Duration),
    /// It is done.
    Ready,
    /// It has failed by itself.
    Failed(Code),
    /// Somebody has aborted it.
    Gone,
    /// It has taken too long.
    Late,
}

/// Looks without a pause: a small collective is over sooner than a sleep.
const SPINS: u32 = 2000;
/// The longest pause.
const LONGEST: Duration = Duration::from_millis(1);

/// One wait.
#[derive(Debug)]
pub(crate) struct Wait {
    until: Instant,
    looks: u32,
}

impl Wait {
    /// One that begins now and may last so long.
    pub fn new(now: Instant, patience: Duration) -> Self {
        // Longer than a lifetime is for ever.
        let until = now.checked_add(patience).unwrap_or(now + Duration::from_secs(1 << 30));
        Self { until, looks: 0 }
    }

    /// What to do about what was seen. What is done at the deadline is done.
    pub fn judge(&mut self, seen: Seen, now: Instant) -> Next {
        match seen {
            Seen::Ready => Next::Ready,
            Seen::Failed(code) => Next::Failed(code),
            Seen::Gone => Next::Gone,
            Seen::Pending if now >= self.until => Next::Late,
            Seen::Pending => {
                self.looks = self.looks.saturating_add(1);
                let over = self.looks.saturating_sub(SPINS).min(10);
                let pause = if over == 0 { Duration::ZERO } else { LONGEST / (1 << (10 - over)) };
                Next::Again(pause.min(self.until - now))
            }
        }
    }

    /// Looks until there is an end.
    pub fn run(mut self, mut look: impl FnMut() -> Seen) -> Next {
        loop {
            match self.judge(look(), Instant::now()) {
                Next::Again(Duration::ZERO) => std::thread::yield_now(),
                Next::Again(pause) => std::thread::sleep(pause),
                end => return end,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a wait see `then` after `looks` times nothing, a millisecond each.
    fn drive(patience: u64, looks: u64, then: Seen) -> (Next, u64) {
        let start = Instant::now();
        let mut wait = Wait::new(start, Duration::from_millis(patience));
        for ms in 0.. {
            let seen = if ms < looks { Seen::Pending } else { then };
            match wait.judge(seen, start + Duration::from_millis(ms)) {
                Next::Again(_) => {}
                end => return (end, ms),
            }
        }
        unreachable!()
    }

    #[test]
    fn a_wait_ends_with_what_is_seen_or_at_the_deadline_and_not_before() {
        assert_eq!(drive(5, 3, Seen::Ready), (Next::Ready, 3));
        assert_eq!(drive(5, 5, Seen::Ready), (Next::Ready, 5));
        assert_eq!(drive(5, 6, Seen::Ready), (Next::Late, 5));
        assert_eq!(drive(0, 1, Seen::Ready), (Next::Late, 0));
        assert_eq!(drive(5, 2, Seen::Failed(Code(6))), (Next::Failed(Code(6)), 2));
        assert_eq!(drive(5, 2, Seen::Gone), (Next::Gone, 2));
    }

    #[test]
    fn pauses_grow_and_never_outlast_the_deadline() {
        let start = Instant::now();
        let mut wait = Wait::new(start, Duration::from_millis(10));
        let pauses: Vec<_> = (0..SPINS + 20).map(|_| wait.judge(Seen::Pending, start)).collect();
        assert!(pauses[..SPINS as usize].iter().all(|p| *p == Next::Again(Duration::ZERO)));
        assert!(pauses.windows(2).all(|p| matches!(p, [Next::Again(a), Next::Again(b)] if a <= b)));
        assert_eq!(pauses.last(), Some(&Next::Again(LONGEST)));
        let left = Duration::from_micros(300);
        assert_eq!(wait.judge(Seen::Pending, start + Duration::from_millis(10) - left), Next::Again(left));
    }

    #[test]
    fn a_patience_beyond_all_clocks_does_not_overflow() {
        let now = Instant::now();
        assert!(matches!(Wait::new(now, Duration::MAX).judge(Seen::Pending, now), Next::Again(_)));
    }
}
