//! Why a job is where it is, typed and in one sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tl_proto::ids::JobId;

use super::{
    State,
    placement::room,
    plan::{queue, ranks},
    state::{JobStatus, Millis, NodeStatus, PhaseStatus},
};

/// What a job waits for, or how it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// It runs.
    Running(Vec<String>),
    /// No node is there.
    NoNodes,
    /// Nodes are known, but not heard of yet.
    NodesUnknown(usize),
    /// All nodes together are too small.
    TooFewSlots {
        /// Ranks that it needs.
        need: usize,
        /// Slots that there are.
        have: usize,
        /// Slots on nodes that are being emptied.
        draining: usize,
    },
    /// Others hold the slots.
    SlotsBusy {
        /// Ranks that it needs.
        need: usize,
        /// Slots that are free.
        free: usize,
    },
    /// There are slots enough, but their workers are not one build, or do not reach each other.
    MixedBuilds {
        /// Ranks that it needs.
        need: usize,
        /// The most slots that could form one gang.
        most: usize,
    },
    /// There are slots enough, but some have a GPU and some have none: a gang is of one kind.
    MixedDevices {
        /// Ranks that it needs.
        need: usize,
        /// Slots of each kind of device.
        kinds: BTreeMap<String, usize>,
    },
    /// A more urgent job comes first.
    Behind(JobId),
    /// It pauses after a failure.
    Backoff {
        /// For how long still.
        left_ms: u64,
        /// The failure.
        failure: String,
    },
    /// It will start with the next plan.
    Starting,
    /// It is over.
    Over(String),
}

impl Wait {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Running(_) => "running",
            Self::NoNodes => "no_nodes",
            Self::NodesUnknown(_) => "nodes_unknown",
            Self::TooFewSlots { .. } => "too_few_slots",
            Self::SlotsBusy { .. } => "slots_busy",
            Self::MixedBuilds { .. } => "mixed_builds",
            Self::MixedDevices { .. } => "mixed_devices",
            Self::Behind(_) => "behind",
            Self::Backoff { .. } => "backoff",
            Self::Starting => "starting",
            Self::Over(_) => "over",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(phases) => write!(f, "running: {}", phases.join(", ")),
            Self::NoNodes => write!(f, "no node is connected; start one with `tl-worker` or `tlctl local up`"),
            Self::NodesUnknown(n) => write!(f, "{n} slots are on nodes that have not been heard of yet"),
            Self::TooFewSlots { need, have, draining } => {
                write!(f, "it needs {need} slots and all nodes together have {have}")?;
                if *draining > 0 { write!(f, " ({draining} more are being drained)") } else { Ok(()) }
            }
            Self::SlotsBusy { need, free } => write!(f, "it needs {need} slots at once and {free} are free"),
            Self::MixedBuilds { need, most } => {
                let what = "slots of one build of the worker that reach each other";
                write!(f, "it needs {need} {what}, and there are {most} at most")
            }
            Self::MixedDevices { need, kinds } => {
                let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} on {kind}")).collect();
                write!(f, "it needs {need} slots on one kind of device, and there are {}", kinds.join(" and "))
            }
            Self::Behind(job) => write!(f, "job {job} comes first"),
            Self::Backoff { left_ms, failure } => write!(f, "it pauses for {left_ms} ms after a failure: {failure}"),
            Self::Starting => write!(f, "it is about to start"),
            Self::Over(how) => f.write_str(how),
        }
    }
}

/// Why a job is where it is.
pub fn why(state: &State, id: &JobId, now: Millis) -> Option<Wait> {
    let job = state.jobs.get(id)?;
    match job.status {
        JobStatus::Succeeded => return Some(Wait::Over("succeeded".into())),
        JobStatus::Cancelled => return Some(Wait::Over("cancelled".into())),
        JobStatus::Failed => {
            let failure = job.failure.as_ref();
            return Some(Wait::Over(failure.map_or_else(|| "failed".into(), |f| format!("failed ({}): {f}", f.class))));
        }
        JobStatus::Active => {}
    }
    let running: Vec<String> =
        job.phases.iter().filter(|p| p.status == PhaseStatus::Running).map(|p| p.id.to_string()).collect();
    if !running.is_empty() {
        return Some(Wait::Running(running));
    }
    let queue = queue(state);
    let Some((_, _, phase)) = queue.iter().find(|(j, _, _)| *j == id) else { return Some(Wait::Starting) };
    if phase.not_before_ms > now {
        let failure = phase.last_failure.as_ref().map(ToString::to_string).unwrap_or_default();
        return Some(Wait::Backoff { left_ms: phase.not_before_ms - now, failure });
    }
    if state.nodes.values().all(|n| n.status == NodeStatus::Lost) {
        return Some(Wait::NoNodes);
    }
    let need = ranks(job, phase)?.0;
    let room = room(state, (job.step_spec(&phase.step)?.cluster.device, need), &BTreeSet::new(), &[]);
    let free = room.free.len();
    Some(if free >= need {
        queue.first().filter(|(j, _, _)| *j != id).map_or(Wait::Starting, |(j, _, _)| Wait::Behind((*j).clone()))
    } else if room.most >= need {
        Wait::SlotsBusy { need, free }
    } else if free + room.apart + room.busy >= need && room.kinds.values().all(|n| *n < need) {
        Wait::MixedDevices { need, kinds: room.kinds }
    } else if free + room.apart + room.busy >= need {
        Wait::MixedBuilds { need, most: room.most }
    } else if room.unknown > 0 {
        Wait::NodesUnknown(room.unknown)
    } else {
        Wait::TooFewSlots { need, have: free + room.apart + room.busy, draining: room.draining }
    })
}
