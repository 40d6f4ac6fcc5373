//! GPUs that have failed a rank after they had worked: the coordinator hears which slots are not to be used, and, when a GPU has
//! been tried anew and works, that its slot is to be used again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tl_proto::{
    hardware::{Device, Gpu},
    v1::{self, agent_message::Body},
};

use super::look;
use crate::{
    session::outbox::Outbox,
    supervise::{command::RankCommand, supervisor::Slot},
};

/// First and longest pause between two tries: what another process holds of a GPU may be free soon, and a GPU that is broken
/// stays so.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The GPUs of an agent. Cheap to clone.
#[derive(Clone)]
pub struct Ward(Arc<Shared>);

struct Shared {
    outbox: Outbox,
    program: RankCommand,
    /// By slot.
    gpus: BTreeMap<u32, u32>,
    /// Slots whose GPU is tried now and then, and how many ranks it has failed meanwhile. What is said of a slot is said while
    /// nobody else has this: it arrives in the order in which it became so.
    ill: Mutex<BTreeMap<u32, u64>>,
}

impl Ward {
    /// That of an agent with these slots, which tries GPUs by processes of `program`.
    pub fn new(outbox: Outbox, program: RankCommand, slots: &[Slot]) -> Self {
        let gpu = |slot: &Slot| match slot.device {
            Device::Cuda(index) => Some((slot.index, index)),
            Device::Cpu => None,
        };
        let gpus = slots.iter().filter_map(gpu).collect();
        Self(Arc::new(Shared { outbox, program, gpus, ill: Mutex::default() }))
    }

    /// A rank could not use the GPU of a slot. To be said before the end of the rank is.
    pub fn admit(&self, slot: u32, why: &str) {
        let Some(index) = self.0.gpus.get(&slot).copied() else { return };
        tracing::warn!("{why}; slot {slot} is not used until GPU {index} works again");
        let mut ill = self.ill();
        // Also where it is known: a coordinator that has forgotten it would place ranks there again and again.
        self.say(slot, why);
        let failed = ill.entry(slot).or_default();
        *failed += 1;
        if *failed == 1 {
            tokio::spawn(self.clone().nurse(slot, index));
        }
    }

    /// Has a slot used again whose GPU has just worked, unless it has failed another rank since it had failed so many: that
    /// one may have come later than what was tried.
    fn dismiss(&self, slot: u32, failed: u64) -> bool {
        let mut ill = self.ill();
        if ill.get(&slot) != Some(&failed) {
            return false;
        }
        ill.remove(&slot);
        self.say(slot, "");
        true
    }

    /// Tries a GPU until it works.
    async fn nurse(self, slot: u32, index: u32) {
        let mut pause = PAUSES.0;
        loop {
            tokio::time::sleep(pause).await;
            let failed = self.ill().get(&slot).copied().unwrap_or_default();
            let program = self.0.program.clone();
            let tried = tokio::task::spawn_blocking(move || {
                let mut gpu = Gpu { index, ..Gpu::default() };
                look::each(vec![&mut gpu], |index| program.to_look(Some(index)), look::LIMIT);
                gpu.problem
            });
            match tried.await {
                Ok(problem) if problem.is_empty() && self.dismiss(slot, failed) => break,
                Ok(problem) => tracing::debug!("{problem}"),
                Err(e) => tracing::debug!("GPU {index} cannot be tried: {e}"),
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        tracing::info!("GPU {index} works again, and slot {slot} is used");
    }

    fn ill(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.0.ill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, slot: u32, problem: &str) {
        self.0.outbox.push(Body::Slot(v1::SlotState { slot, problem: problem.into() }));
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn ward(outbox: &Outbox) -> Ward {
        let slot = |index, device| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Slot { index, device, address: "a:1".into(), listener }
        };
        let program = RankCommand::ourselves(Vec::new()).unwrap();
        Ward::new(outbox.clone(), program, &[slot(0, Device::Cuda(3)), slot(1, Device::Cpu)])
    }

    /// What the coordinator hears.
    fn said(outbox: &Outbox) -> Vec<Body> {
        outbox.after(0).into_iter().filter_map(|message| message.body).collect()
    }

    fn slot(problem: &str) -> Body {
        Body::Slot(v1::SlotState { slot: 0, problem: problem.into() })
    }

    #[tokio::test]
    async fn the_coordinator_hears_of_a_gpu_that_failed_a_rank_and_nothing_of_cpus() {
        let outbox = Outbox::default();
        let ward = ward(&outbox);
        for slot in [1, 0, 7, 0] {
            ward.admit(slot, "GPU 3 is gone");
        }
        assert_eq!(said(&outbox), [slot("GPU 3 is gone"), slot("GPU 3 is gone")]);
        assert_eq!(*ward.ill(), BTreeMap::from([(0, 2)]), "it is tried once at a time");
    }

    #[tokio::test]
    async fn a_gpu_that_fails_a_rank_while_it_is_tried_has_not_shown_that_it_works() {
        let outbox = Outbox::default();
        let ward = ward(&outbox);
        ward.admit(0, "GPU 3 is gone");
        // It is tried from here on.
        ward.admit(0, "GPU 3 is gone again");
        assert!(!ward.dismiss(0, 1));
        assert_eq!(said(&outbox).last(), Some(&slot("GPU 3 is gone again")));
        assert!(ward.dismiss(0, 2) && ward.ill().is_empty());
        assert_eq!(said(&outbox).last(), Some(&slot("")));
        assert!(!ward.dismiss(0, 2), "it is well");
        // The next failure is one of its own.
        ward.admit(0, "GPU 3 is gone");
        assert_eq!(*ward.ill(), BTreeMap::from([(0, 1)]));
    }
}
