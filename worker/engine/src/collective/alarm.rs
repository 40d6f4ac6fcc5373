//! Which peer was lost first, for those who wait for something else than its next message.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::Error;

/// Raised by whoever reads what a peer says, once at most.
#[derive(Default)]
pub(super) struct Alarm {
    state: Mutex<State>,
    raised: Condvar,
}

#[derive(Default)]
struct State {
    lost: Option<(usize, String)>,
    act: Option<Box<dyn FnOnce() + Send>>,
}

impl Alarm {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer is lost. The first one counts: others leave because of it.
    pub fn raise(&self, peer: usize, cause: &str) {
        let mut state = self.state();
        if state.lost.is_some() {
            return;
        }
        state.lost = Some((peer, cause.to_owned()));
        let act = state.act.take();
        drop(state);
        self.raised.notify_all();
        if let Some(act) = act {
            act();
        }
    }

    /// Has something done when it is raised, by who raises it; at once if it has been. What was to be done before is not.
    pub fn set(&self, act: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.lost.is_none() {
            state.act = Some(Box::new(act));
            return;
        }
        drop(state);
        act();
    }

    /// Who is lost; waits so long for somebody to be.
    pub fn lost(&self, patience: Duration) -> Option<Error> {
        let waited = self.raised.wait_timeout_while(self.state(), patience, |state| state.lost.is_none());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.lost.clone().map(|(peer, cause)| Error::LostPeer { peer, cause })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn the_first_loss_counts_and_is_acted_on_once() {
        let (alarm, done) = (Alarm::default(), Arc::new(AtomicUsize::new(0)));
        let act = |by: usize| {
            let done = done.clone();
            move || {
                done.fetch_add(by, Ordering::Relaxed);
            }
        };
        assert!(alarm.lost(Duration::ZERO).is_none());
        alarm.set(act(1));
        alarm.set(act(10));
        alarm.raise(2, "gone");
        alarm.raise(1, "gone because of rank 2");
        assert_eq!(done.load(Ordering::Relaxed), 10);
        assert!(matches!(alarm.lost(Duration::ZERO), Some(Error::LostPeer { peer: 2, cause }) if cause == "gone"));
        alarm.set(act(100));
        assert_eq!(done.load(Ordering::Relaxed), 110);
    }

    #[test]
    fn who_waits_for_a_loss_is_woken_by_it() {
        let alarm = Alarm::default();
        std::thread::scope(|s| {
            s.spawn(|| alarm.raise(0, "gone"));
            assert!(alarm.lost(Duration::from_secs(60)).is_some());
        });
    }
}
