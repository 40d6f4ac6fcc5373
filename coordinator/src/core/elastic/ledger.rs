//! What survives a restart of the coordinator.

use serde::{Deserialize, Serialize};
use tl_proto::elastic::{Formation, RankProcess, Saved};

/// What has happened to a gang; a stored format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "elastic", rename_all = "snake_case")]
pub enum Event {
    /// A generation was decided.
    Formed(Formation),
    /// The first step of a generation was committed.
    Activated {
        /// The generation.
        generation: u64,
    },
    /// Steps were committed.
    Committed {
        /// By this generation.
        generation: u64,
        /// The newest.
        step: u64,
        /// Samples drawn up to it.
        samples: u64,
    },
    /// A state lies in the blob store.
    Published {
        /// By this generation.
        generation: u64,
        /// The state.
        saved: Saved,
    },
    /// The last step was committed.
    Finished {
        /// By this generation.
        generation: u64,
        /// The final state.
        saved: Saved,
    },
    /// Two members held different states under one stamp; the run is over.
    Diverged {
        /// One.
        one: RankProcess,
        /// The other.
        other: RankProcess,
    },
}

/// What the events come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The newest generation.
    pub formation: Option<Formation>,
    /// The newest generation that has committed anything, or was restored.
    pub active: u64,
    /// The newest committed step.
    pub committed: u64,
    /// Samples drawn up to it.
    pub samples: u64,
    /// Published states, oldest first.
    pub published: Vec<Saved>,
    /// Whether the run is over.
    pub over: bool,
}

impl Ledger {
    /// Number of the newest generation; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.formation.as_ref().map_or(0, |f| f.generation)
    }

    /// Members of the newest generation.
    pub fn members(&self) -> &[RankProcess] {
        self.formation.as_ref().map_or(&[], |f| &f.members)
    }

    /// Takes an event in. Never fails.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Formed(f) => {
                if let Some(saved) = f.restore {
                    // Whatever was committed after it is no more.
                    self.active = f.generation;
                    (self.committed, self.samples) = (saved.step, saved.samples);
                    self.published.retain(|p| p.step <= saved.step);
                }
                self.formation = Some(f.clone());
            }
            Event::Activated { generation } => self.active = *generation,
            Event::Committed { step, samples, .. } => (self.committed, self.samples) = (*step, *samples),
            Event::Published { saved, .. } => {
                // Only what is committed is published; the report of that may have been lost on its way.
                if saved.step > self.committed {
                    (self.committed, self.samples) = (saved.step, saved.samples);
                }
                self.published.push(*saved);
            }
            Event::Finished { saved, .. } => {
                (self.committed, self.samples) = (saved.step, saved.samples);
                self.over = true;
            }
            Event::Diverged { .. } => self.over = true,
        }
    }
}
