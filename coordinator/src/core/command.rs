//! What somebody wants, and how it can be refused.
#![expect(missing_docs, reason = "fields are named after what they hold; the variants say what is wanted")]

use tl_proto::{
    catalog::Catalog,
    failure::Failure,
    hardware::Hardware,
    ids::{JobId, NodeId, PhaseId},
    spec::JobSpec,
};

use super::state::{Blob, Slot};

/// A wish.
#[derive(Clone, Debug)]
pub enum Command {
    /// Accept a job; the same key twice is the same job. With `plan_only` it is probed and not trained.
    Submit { job: JobId, key: String, owner: String, spec: Box<JobSpec>, plan_only: bool },
    /// End a job.
    Cancel { job: JobId },
    /// Go on with a failed or cancelled job.
    Retry { job: JobId },
    /// Forget a finished job.
    Remove { job: JobId },
    /// Empty a node, or use it again.
    Drain { node: NodeId, undo: bool },
    /// Keep an archive as a data set that jobs may name.
    PushData { blob: Blob, name: String, files: u64 },
    /// Forget a data set.
    RemoveData { digest: String },
    /// A node says hello.
    Join {
        node: NodeId,
        name: String,
        incarnation: String,
        build: String,
        slots: Vec<Slot>,
        catalog: Box<Catalog>,
        hardware: Box<Hardware>,
    },
    /// A node's connection ended.
    Disconnect { node: NodeId, incarnation: String },
    /// A node goes for good.
    Leave { node: NodeId },
    /// A slot does not work, for a reason, or works again, without one, says its agent.
    Judge { node: NodeId, incarnation: String, slot: u32, problem: String },
    /// A rank ended, says its agent.
    Exited {
        job: JobId,
        phase: PhaseId,
        generation: u64,
        rank: u32,
        failure: Option<Failure>,
        node: NodeId,
        incarnation: String,
    },
    /// A checkpoint is there, says a node of the attempt.
    Checkpoint { job: JobId, phase: PhaseId, generation: u64, step: u64, blob: Blob, node: NodeId },
    /// A file is there, says a node of the attempt.
    Artifact { job: JobId, phase: PhaseId, generation: u64, name: String, blob: Blob, node: NodeId },
    /// A phase is done, says the agent of rank 0.
    Result { job: JobId, phase: PhaseId, generation: u64, result: serde_json::Value, node: NodeId, incarnation: String },
    /// Something worth keeping, says a node of the attempt.
    Notice { job: JobId, phase: PhaseId, generation: u64, text: String, node: NodeId },
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// The job cannot be right.
    #[error("{message}")]
    Invalid { message: String, hint: String },
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// Somebody else is it already.
    #[error("{0}")]
    AlreadyExists(String),
    /// Too much of it.
    #[error("{0}")]
    Exhausted(String),
    /// Of an attempt that is over, or was never the sender's; its sender has nothing left to do.
    #[error("this attempt is over, or another node's")]
    Stale,
}
