//! Work that will be asked for, done on a thread of its own meanwhile. What comes out is what the caller would compute by
//! itself; an error is the caller's when it asks, not before.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, Weak,
    mpsc::{self, Receiver, Sender},
};

use crate::Result;

/// What it takes to begin. Whoever takes it out of its place does the work.
struct Ticket<K, T> {
    key: K,
    make: Make<K, T>,
    done: Sender<Result<T>>,
}

type Make<K, T> = Arc<dyn Fn(&K) -> Result<T> + Send + Sync>;
type Place<K, T> = Mutex<Option<Ticket<K, T>>>;

struct Expected<K, T> {
    key: K,
    /// Counts announcements.
    round: u64,
    /// The thread's way to it is weak: what is forgotten is not begun.
    place: Arc<Place<K, T>>,
    done: Receiver<Result<T>>,
}

/// How many announcements are held: two steps of a student and its teacher.
const KEEP: u64 = 4;

/// The way to the thread; none if it could not be started.
type Thread<K, T> = Option<Sender<Weak<Place<K, T>>>>;

/// Results by key, made before they are asked for. What the last [`KEEP`] announcements name is held, and no more.
pub(super) struct Ahead<K, T> {
    expected: Mutex<Vec<Expected<K, T>>>,
    thread: OnceLock<Thread<K, T>>,
}

impl<K, T> Default for Ahead<K, T> {
    fn default() -> Self {
        Self { expected: Mutex::default(), thread: OnceLock::new() }
    }
}

impl<K: Clone + PartialEq + Send + 'static, T: Send + 'static> Ahead<K, T> {
    /// Announces what will be asked for, in that order.
    pub fn expect(&self, keys: Vec<K>, make: impl Fn(&K) -> Result<T> + Send + Sync + 'static) {
        let Some(thread) = self.thread.get_or_init(start) else { return };
        let make: Make<K, T> = Arc::new(make);
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let round = expected.iter().map(|e| e.round).max().unwrap_or(0) + 1;
        expected.retain(|e| e.round + KEEP > round);
        for key in keys {
            if expected.iter().any(|e| e.key == key) {
                continue;
            }
            let (tell, done) = mpsc::channel();
            let place = Arc::new(Mutex::new(Some(Ticket { key: key.clone(), make: make.clone(), done: tell })));
            // If the thread is gone, whoever asks does the work.
            let _ = thread.send(Arc::downgrade(&place));
            expected.push(Expected { key, round, place, done });
        }
    }

    /// What is made of a key, once it is ready; nothing if the thread has not begun with it, or broke down over it.
    pub fn take(&self, key: &K) -> Option<Result<T>> {
        let found = {
            let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
            let at = expected.iter().position(|e| e.key == *key)?;
            expected.remove(at)
        };
        let begun = found.place.lock().unwrap_or_else(PoisonError::into_inner).take().is_none();
        if begun { found.done.recv().ok() } else { None }
    }
}

/// The thread ends when the sender is dropped. Without one nothing is done ahead.
fn start<K: Send + 'static, T: Send + 'static>() -> Thread<K, T> {
    let (sender, places) = mpsc::channel::<Weak<Place<K, T>>>();
    let work = move || {
        for place in places {
            let Some(place) = place.upgrade() else { continue };
            let ticket = place.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Ticket { key, make, done }) = ticket {
                // Nobody may want it any more.
                let _ = done.send(make(&key));
            }
        }
    };
    std::thread::Builder::new().name("ahead".into()).spawn(work).ok().map(|_| sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn what_is_made_ahead_is_taken_once_and_what_is_not_begun_is_left_to_the_caller() {
        let ahead = Ahead::<u32, u32>::default();
        let (begin, begun) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        ahead.expect(vec![1, 2], move |k| {
            begin.send(*k).unwrap();
            wait.lock().unwrap().recv().unwrap();
            Ok(k * 10)
        });
        assert_eq!(begun.recv().unwrap(), 1);
        assert!(ahead.take(&2).is_none(), "the thread is busy with the first");
        go.send(()).unwrap();
        assert_eq!(ahead.take(&1).unwrap().unwrap(), 10);
        assert!(ahead.take(&1).is_none() && ahead.take(&7).is_none());
        drop(ahead);
        assert!(begun.recv().is_err(), "the second was never begun, and the thread ends");
    }

    #[test]
    fn an_error_is_told_to_whoever_asks_and_a_breakdown_leaves_the_work_to_the_caller() {
        let ahead = Ahead::<u32, u32>::default();
        let (begin, begun) = mpsc::channel();
        let make = move |k: &u32| {
            begin.send(*k).unwrap();
            match *k {
                1 => Err(Error::Internal("no such file".into())),
                _ => panic!("as a decoder might"),
            }
        };
        ahead.expect(vec![1, 2], make);
        begun.recv().unwrap();
        begun.recv().unwrap();
        assert!(ahead.take(&1).unwrap().unwrap_err().to_string().contains("no such file"));
        assert!(ahead.take(&2).is_none());
        ahead.expect(vec![3], |_| Ok(3));
        assert!(ahead.take(&3).is_none(), "there is no thread any more");
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let ahead = Ahead::<u32, u32>::default();
        for step in 0..50 {
            ahead.expect(vec![2 * step, 2 * step + 1], |k| Ok(*k));
            assert!(ahead.expected.lock().unwrap().len() <= 8);
        }
        assert!(ahead.take(&0).is_none());
    }
}
