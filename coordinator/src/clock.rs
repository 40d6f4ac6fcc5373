//! The coordinator's time: begins with the wall clock, and then only passes.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::Millis;

/// A clock that is not set: no correction of the machine's time moves a deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start_ms: Millis,
    started: Instant,
}

impl Clock {
    /// Begins now; not before `newest`, at which something has happened already.
    pub fn start(newest: Millis) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as Millis);
        Self { start_ms: wall.max(newest), started: Instant::now() }
    }

    /// Milliseconds since the epoch.
    pub fn now(&self) -> Millis {
        self.start_ms + self.started.elapsed().as_millis() as Millis
    }

    /// The same clock after a stall.
    #[cfg(test)]
    pub fn later(self, ms: Millis) -> Self {
        Self { start_ms: self.start_ms + ms, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_what_has_happened_although_the_wall_clock_was_set_back() {
        let ahead = Clock::start(0).now() + 1_000_000;
        let clock = Clock::start(ahead);
        let first = clock.now();
        assert!(first >= ahead);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(clock.now() > first, "it does not stand still until the wall clock has caught up");
    }
}
