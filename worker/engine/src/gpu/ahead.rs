//! Batches that went up before they were asked for. They are spare: where the memory of the GPU is short they are given back,
//! and go up again when they are asked for. From then on nothing else goes up ahead: it would have to be given back at each step.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::TensorId;

use super::{Fault, Upload};

/// How many announcements are held, as by whoever makes the tensors: two steps of a student and its teacher.
const KEEP: u64 = 4;

/// What went up and was not asked for.
#[derive(Default)]
pub(in crate::gpu) struct Ahead(Mutex<Sent>);

#[derive(Default)]
struct Sent {
    /// Counts announcements.
    announced: u64,
    /// Whether some had to be given back.
    closed: bool,
    /// Tensors, and the announcements that named them.
    all: Vec<(TensorId, u64, Upload)>,
}

impl Ahead {
    /// Another announcement; what was named longest ago is forgotten.
    pub(in crate::gpu) fn announce(&self) -> u64 {
        let mut sent = self.sent();
        sent.announced += 1;
        let announced = sent.announced;
        sent.all.retain(|(_, named, _)| named + KEEP > announced);
        announced
    }

    /// Whether there was no room for them.
    pub(in crate::gpu) fn is_closed(&self) -> bool {
        self.sent().closed
    }

    /// How many there are.
    pub(in crate::gpu) fn waiting(&self) -> usize {
        self.sent().all.len()
    }

    /// Keeps what is on its way up of a tensor that an announcement named, unless there is no room any more.
    pub(in crate::gpu) fn keep(&self, tensor: TensorId, announcement: u64, upload: Upload) {
        let mut sent = self.sent();
        if !sent.closed {
            sent.all.push((tensor, announcement, upload));
        }
    }

    /// What is there of a tensor, once.
    pub(in crate::gpu) fn take(&self, tensor: TensorId) -> Option<Upload> {
        let mut sent = self.sent();
        let at = sent.all.iter().position(|(id, ..)| *id == tensor)?;
        Some(sent.all.swap_remove(at).2)
    }

    /// Gives all of it back, to the pool; if there was any, nothing is kept from then on.
    ///
    /// # Errors
    /// The GPU has failed.
    pub(in crate::gpu) fn let_go(&self) -> Result<(), Fault> {
        let all = {
            let mut sent = self.sent();
            sent.closed |= !sent.all.is_empty();
            std::mem::take(&mut sent.all)
        };
        for (_, _, upload) in all {
            // Each came on a stream of its own, and is free once that has come to it.
            let stream = upload.stream().clone();
            drop(upload);
            stream.synchronize()?;
        }
        Ok(())
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
