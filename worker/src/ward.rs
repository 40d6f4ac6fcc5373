//! GPUs that have failed a rank after they had worked: the coordinator hears which slots are not to be used, and, when a GPU has
//! been tried anew and works, that its slot is to be used again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tl_proto::{
    hardware::{Device, Gpu},
    v1::{self, agent_message::Body},
};

use crate::{command::RankCommand, outbox::Outbox, supervisor::Slot, trial};

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
    /// Slots whose GPU is tried now and then.
    ill: Mutex<BTreeSet<u32>>,
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
        // Also where it is known: a coordinator that has forgotten it would place ranks there again and again.
        self.say(slot, why);
        if self.ill().insert(slot) {
            tokio::spawn(self.clone().nurse(slot, index));
        }
    }

    /// Tries a GPU until it works.
    async fn nurse(self, slot: u32, index: u32) {
        let mut pause = PAUSES.0;
        loop {
            tokio::time::sleep(pause).await;
            let program = self.0.program.clone();
            let tried = tokio::task::spawn_blocking(move || {
                let mut gpu = Gpu { index, ..Gpu::default() };
                trial::each(vec![&mut gpu], |index| program.to_look(Some(index)), trial::LIMIT);
                gpu.problem
            });
            match tried.await {
                Ok(problem) if problem.is_empty() => break,
                Ok(problem) => tracing::debug!("{problem}"),
                Err(e) => tracing::debug!("GPU {index} cannot be tried: {e}"),
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        tracing::info!("GPU {index} works again, and slot {slot} is used");
        self.ill().remove(&slot);
        self.say(slot, "");
    }

    fn ill(&self) -> MutexGuard<'_, BTreeSet<u32>> {
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

    #[tokio::test]
    async fn the_coordinator_hears_of_a_gpu_that_failed_a_rank_and_nothing_of_cpus() {
        let outbox = Outbox::default();
        let slot = |index, device| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Slot { index, device, address: "a:1".into(), listener }
        };
        let slots = [slot(0, Device::Cuda(3)), slot(1, Device::Cpu)];
        let program = RankCommand::ourselves(Vec::new()).unwrap();
        let ward = Ward::new(outbox.clone(), program, &slots);
        for slot in [1, 0, 7, 0] {
            ward.admit(slot, "GPU 3 is gone");
        }
        let said: Vec<_> = outbox.after(0).into_iter().filter_map(|message| message.body).collect();
        let slot = Body::Slot(v1::SlotState { slot: 0, problem: "GPU 3 is gone".into() });
        assert_eq!(said, [slot.clone(), slot]);
        assert_eq!(*ward.ill(), BTreeSet::from([0]), "it is tried once at a time");
    }
}
