//! Makes what runs on this node what the coordinator wants: one process per launch, none besides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    os::fd::OwnedFd,
    sync::Arc,
};

use tl_proto::{hardware::Device, ids::PhaseId, v1};
use tokio::sync::{mpsc, watch};

use super::process::{self, Context, Wish};
use crate::session::report::Key;

/// A place for one rank, and the socket on which its ranks listen.
pub struct Slot {
    /// Its number.
    pub index: u32,
    /// What its ranks run on.
    pub device: Device,
    /// Where others reach it.
    pub address: String,
    /// Bound once; each rank inherits it.
    pub listener: TcpListener,
}

/// What goes on here.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Ranks with a process.
    pub running: Vec<v1::RunningRank>,
    /// Ranks about which not everything has been said: their files may still be on their way.
    pub unfinished: usize,
}

/// What the coordinator wants, newest first.
pub type Desired = watch::Receiver<Vec<v1::Launch>>;

struct Running {
    key: Key,
    wish: watch::Sender<Wish>,
}

/// Ranks that run on this node.
pub struct Supervisor {
    context: Arc<Context>,
    slots: BTreeMap<u32, Slot>,
    running: BTreeMap<u32, Running>,
    /// Ranks that have ended and are still wanted, until the coordinator has heard of their end.
    ended: BTreeSet<Key>,
    freed: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
    tasks: tokio::task::JoinSet<()>,
    census: watch::Sender<Census>,
}

fn key(launch: &v1::Launch) -> Option<Key> {
    let (job, phase) = (launch.job_id.parse().ok()?, PhaseId(launch.phase.clone()));
    Some(Key { job, phase, generation: launch.generation, rank: launch.rank })
}

impl Supervisor {
    /// A supervisor of empty slots; `census` is told what runs.
    pub fn new(context: Arc<Context>, slots: Vec<Slot>, census: watch::Sender<Census>) -> Self {
        let slots = slots.into_iter().map(|s| (s.index, s)).collect();
        let (running, ended, tasks) = (BTreeMap::new(), BTreeSet::new(), tokio::task::JoinSet::new());
        Self { context, slots, running, ended, freed: mpsc::unbounded_channel(), tasks, census }
    }

    /// Follows the assignment until its sender is gone; then stops everything and waits for the last words.
    pub async fn run(mut self, mut desired: Desired) {
        loop {
            let launches = desired.borrow_and_update().clone();
            self.reconcile(&launches);
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { break },
                Some(slot) = self.freed.1.recv() => self.free(slot),
                Some(_) = self.tasks.join_next() => {}
            }
        }
        self.reconcile(&[]);
        while self.tasks.join_next().await.is_some() {}
    }

    fn free(&mut self, slot: u32) {
        if let Some(running) = self.running.remove(&slot) {
            self.ended.insert(running.key);
        }
    }

    fn reconcile(&mut self, launches: &[v1::Launch]) {
        let wanted: BTreeMap<Key, &v1::Launch> = launches.iter().filter_map(|l| Some((key(l)?, l))).collect();
        self.ended.retain(|k| wanted.contains_key(k));
        for running in self.running.values().filter(|r| !wanted.contains_key(&r.key)) {
            running.wish.send_if_modified(|w| std::mem::replace(w, (*w).max(Wish::Stop)) < Wish::Stop);
        }
        for (key, launch) in wanted {
            if self.ended.contains(&key) {
                continue;
            }
            match self.running.get(&launch.slot) {
                Some(r) if r.key == key => {}
                // The slot belongs to somebody else now; the coordinator does not wait for manners.
                Some(r) => {
                    r.wish.send_replace(Wish::Kill);
                }
                None => self.start(key, launch),
            }
        }
        let census = self.running.iter().map(|(slot, r)| v1::RunningRank {
            job_id: r.key.job.to_string(),
            phase: r.key.phase.to_string(),
            generation: r.key.generation,
            rank: r.key.rank,
            slot: *slot,
        });
        self.census.send_replace(Census { running: census.collect(), unfinished: self.tasks.len() });
    }

    fn start(&mut self, key: Key, launch: &v1::Launch) {
        let (wish, wishes) = watch::channel(Wish::Run);
        let listener = self.slots.get(&launch.slot).map(|s| s.listener.try_clone().map(OwnedFd::from));
        let (context, freed, slot) = (self.context.clone(), self.freed.0.clone(), launch.slot);
        let (launch, named) = (launch.clone(), key.clone());
        self.tasks.spawn(async move {
            process::run(&context, &named, launch, listener, wishes, || {
                // The supervisor ends after its tasks.
                let _ = freed.send(slot);
            })
            .await;
        });
        self.running.insert(slot, Running { key, wish });
    }
}
