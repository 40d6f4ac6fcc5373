//! One at a time for each name: who wants the same thing waits, who wants another does not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

/// Locks by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Keyed {
    locks: Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Keyed {
    /// Waits until nobody else holds `name`.
    pub async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds or waits for is forgotten.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    #[tokio::test]
    async fn only_who_wants_the_same_waits() {
        let keyed = Keyed::default();
        let held = keyed.lock("a").await;
        drop(keyed.lock("b").await);
        let mut waiting = Box::pin(keyed.lock("a"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(held);
        waiting.await;
        drop(keyed.lock("c").await);
        assert!(keyed.locks.lock().unwrap().len() <= 1);
    }
}
