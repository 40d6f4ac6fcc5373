//! What has happened: the entries of the lifecycle log. Names and fields are a stored format; add, never change.
#![expect(missing_docs, reason = "fields are named after what they hold; the variants say what happened")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tl_proto::{
    catalog::Catalog,
    failure::Failure,
    hardware::Hardware,
    ids::{JobId, NodeId, PhaseId},
    spec::JobSpec,
};

use super::state::{Blob, Millis, Model, Placement, Slot};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A job was accepted.
    Submitted {
        job: JobId,
        key: String,
        owner: String,
        spec: Box<JobSpec>,
        #[serde(default)]
        plan_only: bool,
        /// Models of earlier jobs that it names, as they were then.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        models: BTreeMap<String, Model>,
        at: Millis,
    },
    /// A node said hello.
    NodeJoined {
        node: NodeId,
        name: String,
        incarnation: String,
        build: String,
        slots: Vec<Slot>,
        catalog: Box<Catalog>,
        #[serde(default)]
        hardware: Box<Hardware>,
    },
    /// A node's connection ended.
    NodeDisconnected { node: NodeId },
    /// A node was silent for its lease, or left.
    NodeLost { node: NodeId, reason: String },
    /// A node is to be emptied, or no longer.
    NodeDraining { node: NodeId, draining: bool },
    /// A slot of a node does not work, for a reason, or works again, without one.
    SlotJudged { node: NodeId, slot: u32, problem: String },
    /// A phase was placed.
    AttemptStarted {
        job: JobId,
        phase: PhaseId,
        generation: u64,
        placements: Vec<Placement>,
        secret: String,
        at: Millis,
    },
    /// What teachers say is worked out in units before a training, by any slots of one kind.
    TeachingSplit {
        job: JobId,
        phase: PhaseId,
        units: u32,
        build: String,
        device: String,
        /// Which numbers they compute; of any in events of older releases.
        #[serde(default)]
        numbers: String,
        at: Millis,
    },
    /// A unit is not done, and its part is left to the training.
    UnitLeft { job: JobId, phase: PhaseId, reason: String, at: Millis },
    /// A rank ended.
    RankExited { job: JobId, phase: PhaseId, generation: u64, rank: u32, failure: Option<Failure>, at: Millis },
    /// An attempt is asked to stop at its next step.
    AttemptStopping { job: JobId, phase: PhaseId, generation: u64, reason: String, at: Millis },
    /// An attempt is over; the phase waits or has failed.
    AttemptEnded { job: JobId, phase: PhaseId, generation: u64, end: End, at: Millis },
    /// A checkpoint lies in the blob store.
    CheckpointReady { job: JobId, phase: PhaseId, generation: u64, step: u64, blob: Blob },
    /// A file lies in the blob store.
    ArtifactReady { job: JobId, phase: PhaseId, generation: u64, name: String, blob: Blob },
    /// A phase is done.
    PhaseSucceeded { job: JobId, phase: PhaseId, generation: u64, result: serde_json::Value, at: Millis },
    /// Something worth keeping.
    Noted { job: JobId, phase: PhaseId, text: String, at: Millis },
    /// The gate of a step was looked at: it holds, or there is a failure.
    GateJudged { job: JobId, phase: PhaseId, said: String, failure: Option<Failure>, at: Millis },
    /// A job is over: steps of it have failed, and all that did not need them is done.
    JobFailed { job: JobId, failure: Failure, at: Millis },
    /// A job is over, well.
    JobSucceeded { job: JobId, at: Millis },
    /// Somebody cancelled a job.
    JobCancelled { job: JobId, at: Millis },
    /// Somebody wants a failed or cancelled job to go on from its newest checkpoint.
    JobRetried { job: JobId, at: Millis },
    /// A job was removed.
    JobRemoved { job: JobId },
    /// An archive is a data set that jobs may name.
    DataPushed { blob: Blob, name: String, files: u64, at: Millis },
    /// A data set was removed.
    DataRemoved { digest: String },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// It failed and is tried again, not before a time.
    Retry { failure: Failure, not_before_ms: Millis },
    /// It failed for good, and the job with it at once: so releases wrote that knew no [`End::GiveUp`].
    Fail { failure: Failure },
    /// It failed for good; what needs it is not run, and the rest of the job goes on.
    GiveUp { failure: Failure },
    /// It was stopped on purpose and is placed anew.
    Replan { reason: String },
}
