//! What an agent and a rank tell each other: lines of JSON over a socket pair. The end of the stream is the end of the
//! other side.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tl_proto::{
    failure::Failure,
    spec::{Fetched, JobSpec},
};

/// Longest line, in bytes.
pub const MAX_LINE: usize = 16 << 20;

/// To a rank.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToRank {
    /// What to do; comes first, once.
    Start(Box<Order>),
    /// Save the state at the next step, and end.
    Stop,
}

/// Everything that a rank needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Only look at the job.
    pub probe: bool,
    /// A look that nothing comes after.
    pub look: bool,
    /// Only work out what teachers say of one part of the samples: which, and of how many.
    pub unit: Option<(usize, usize)>,
    /// The job of one pipeline step.
    pub spec: JobSpec,
    /// This rank.
    pub rank: usize,
    /// Where each rank listens.
    pub addresses: Vec<String>,
    /// How much each rank can do, by rank.
    pub weights: Vec<u32>,
    /// What each rank runs on, by rank.
    pub devices: Vec<String>,
    /// Names job, phase and generation.
    pub attempt: String,
    /// Proves membership.
    pub secret: String,
    /// See the table of deadlines.
    pub rendezvous_ms: u64,
    /// See the table of deadlines.
    pub nccl_ready_ms: u64,
    /// See the table of deadlines.
    pub beat_ms: u64,
    /// See the table of deadlines.
    pub silence_ms: u64,
    /// Threads to compute with.
    pub threads: usize,
    /// This rank's folder: checkpoints, model, rows.
    pub work: PathBuf,
    /// The node's feature cache.
    pub cache: PathBuf,
    /// Bytes that it may take.
    pub cache_bytes: u64,
    /// Models of earlier steps and jobs, by name.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Folders of pushed data sets, by digest.
    pub pushed: BTreeMap<String, PathBuf>,
    /// Weights of the hub, by the names that the job gives them.
    pub hub: BTreeMap<String, Fetched>,
    /// The same where they were not to be downloaded: bytes that it would take.
    pub absent: BTreeMap<String, u64>,
    /// What teachers have said on other nodes.
    pub features: Vec<PathBuf>,
    /// Checkpoints, newest first.
    pub resume: Vec<PathBuf>,
}

/// The file in a rank's folder to which it appends the rows of its series.
pub const ROWS: &str = "rows.jsonl";

/// The code of the notice that a checkpoint could not be written: the disk may be full.
pub const UNSAVED: &str = "checkpoint_failed";

/// From a rank.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromRank {
    /// It is there, even if it has nothing to say.
    Beat,
    /// What it is doing.
    Activity {
        /// In a word.
        name: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// A checkpoint may be published.
    Checkpoint {
        /// Optimizer steps done.
        step: u64,
        /// Where it lies.
        path: PathBuf,
    },
    /// A finished file.
    Artifact {
        /// Its name.
        name: String,
        /// Where it lies.
        path: PathBuf,
    },
    /// Something worth keeping.
    Notice {
        /// A word for programs.
        code: String,
        /// A sentence.
        text: String,
    },
    /// It is done.
    Done {
        /// What it found or made; only rank 0 says.
        result: Option<serde_json::Value>,
    },
    /// It has failed.
    Failed(Failure),
}
