//! How long is waited for a hub that does not answer.

use std::time::Duration;

use super::Error;

/// Pause before the second try; it doubles.
pub const PAUSE: Duration = Duration::from_millis(250);
/// How many times [`PAUSE`] a pause gets at most: 8 s.
const GROWTH: u32 = 32;
/// What a hub that says for how long it is busy may ask for at most.
const ASKED: Duration = Duration::from_secs(30);

/// Tries from which nothing came, and pauses between them.
pub struct Patience {
    tries: u32,
    first: Duration,
    pause: Duration,
}

impl Patience {
    /// For so many tries in a row with pauses of `first` and more: 8 with [`PAUSE`] last for 24 s.
    pub fn new(tries: u32, first: Duration) -> Self {
        Self { tries, first, pause: first }
    }

    /// The pause after a try that failed like that; `None` where it was the last, or another would end like it.
    pub fn after(&mut self, e: &Error) -> Option<Duration> {
        let Error::Away { after, .. } = e else { return None };
        self.tries = self.tries.saturating_sub(1);
        let pause = self.pause.max(after.unwrap_or_default().min(ASKED));
        self.pause = (self.pause * 2).min(self.first * GROWTH);
        (self.tries > 0).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_outage_is_sat_out_and_a_busy_hub_is_heeded_within_bounds() {
        let away = |after| Error::Away { endpoint: "x".into(), why: "y".into(), after };
        let pauses = |tries, e: &Error| {
            let mut patience = Patience::new(tries, PAUSE);
            std::iter::from_fn(|| patience.after(e)).collect::<Vec<_>>()
        };
        let all = pauses(8, &away(None));
        assert_eq!(all.len(), 7);
        assert_eq!(all.iter().sum::<Duration>(), Duration::from_millis(23_750));
        assert_eq!(pauses(2, &away(Some(Duration::from_secs(3)))), [Duration::from_secs(3)]);
        assert_eq!(pauses(2, &away(Some(Duration::from_secs(86_400)))), [ASKED]);
        assert_eq!(pauses(8, &Error::Offline("x".into())), []);
        assert_eq!(pauses(8, &Error::Denied), []);
    }
}
