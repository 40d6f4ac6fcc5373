//! Whether the log takes events, for probes and for whoever reads the coordinator's own log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long one refusal counts, and how often a trouble that lasts is logged. Where nothing happens nothing is written, so
/// that nothing would end it.
const LASTS: Duration = Duration::from_secs(60);

/// What became of the newest events.
#[derive(Default)]
pub(super) struct Pulse(Mutex<Trouble>);

#[derive(Default)]
struct Trouble {
    /// When the log has refused last, and why, unless it has taken events since.
    refused: Option<(Instant, String)>,
    /// When that was logged.
    logged: Option<Instant>,
}

impl Pulse {
    /// Events are on disk.
    pub fn taken(&self) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.refused.is_some() {
            *trouble = Trouble::default();
            tracing::info!("the state can be written again");
        }
    }

    /// The disk refused events at `now`; whether that is to be logged.
    pub fn refused(&self, why: &str, now: Instant) -> bool {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.refused = Some((now, why.to_owned()));
        let due = trouble.logged.is_none_or(|at| now.duration_since(at) >= LASTS);
        if due {
            trouble.logged = Some(now);
        }
        due
    }

    /// Why the disk refuses events, if it did in the last minute and has taken none since.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.refused.as_ref().filter(|(at, _)| now.duration_since(*at) < LASTS).map(|(_, why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_trouble_for_a_minute_or_until_events_are_taken_and_is_logged_once_a_minute() {
        let (pulse, start) = (Pulse::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.trouble(at(0)), None);
        assert!(pulse.refused("full", at(0)) && !pulse.refused("full", at(59)) && pulse.refused("full", at(60)));
        assert_eq!((pulse.trouble(at(61)).as_deref(), pulse.trouble(at(120))), (Some("full"), None));
        pulse.refused("full", at(121));
        pulse.taken();
        assert_eq!(pulse.trouble(at(121)), None);
        assert!(pulse.refused("full again", at(122)), "a new trouble is told at once");
    }
}
