//! Messages that the coordinator must not miss: kept, in order, until it has acknowledged them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tl_proto::v1::{AgentMessage, agent_message::Body};
use tokio::sync::watch;

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Queue {
    last: u64,
    waiting: VecDeque<AgentMessage>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { queue: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message.
    pub fn push(&self, body: Body) {
        let mut queue = self.lock();
        queue.last += 1;
        let sequence = queue.last;
        queue.waiting.push_back(AgentMessage { sequence, body: Some(body) });
        drop(queue);
        self.changed.send_modify(|v| *v += 1);
    }

    /// Messages after `sequence` that are not acknowledged.
    pub fn after(&self, sequence: u64) -> Vec<AgentMessage> {
        self.lock().waiting.iter().filter(|m| m.sequence > sequence).cloned().collect()
    }

    /// Everything up to `sequence` has arrived.
    pub fn acknowledge(&self, sequence: u64) {
        self.lock().waiting.retain(|m| m.sequence > sequence);
        self.changed.send_modify(|v| *v += 1);
    }

    /// Counts changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns when everything has arrived.
    pub async fn empty(&self) {
        // The sender lives as long as this handle.
        let _ = self.changes().wait_for(|_| self.lock().waiting.is_empty()).await;
    }
}

#[cfg(test)]
mod tests {
    use tl_proto::v1::Leaving;

    use super::*;

    #[test]
    fn what_is_not_acknowledged_is_sent_again_in_order() {
        let outbox = Outbox::default();
        (0..3).for_each(|_| outbox.push(Body::Leaving(Leaving {})));
        let sequences = |after| outbox.after(after).iter().map(|m| m.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(0), [1, 2, 3]);
        outbox.acknowledge(2);
        assert_eq!((sequences(0), sequences(3)), (vec![3], vec![]));
    }
}
