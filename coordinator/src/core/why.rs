//! Why a job is where it is, typed and in one sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tl_proto::ids::{JobId, PhaseId};

use super::{
    State,
    placement::room,
    plan::{queue, ranks},
    state::{Job, JobStatus, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus},
};

/// Steps that wait which are named; of more, only the number is told.
const SHOWN: usize = 4;

/// What a job waits for, or how it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// It runs.
    Running {
        /// What runs now.
        phases: Vec<String>,
        /// Steps that wait for others of the job, each with what it waits for.
        blocked: Vec<(String, String)>,
        /// What has failed while the rest goes on.
        failed: Option<String>,
    },
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
    /// There are slots enough, but their workers are not one build, their GPUs not one model, or they do not reach each other.
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
    /// It waits, and something of it has failed.
    AfterFailure {
        /// What it waits for.
        wait: Box<Wait>,
        /// What has failed.
        failed: String,
    },
    /// It is over.
    Over(String),
}

impl Wait {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Running { .. } => "running",
            Self::NoNodes => "no_nodes",
            Self::NodesUnknown(_) => "nodes_unknown",
            Self::TooFewSlots { .. } => "too_few_slots",
            Self::SlotsBusy { .. } => "slots_busy",
            Self::MixedBuilds { .. } => "mixed_builds",
            Self::MixedDevices { .. } => "mixed_devices",
            Self::Behind(_) => "behind",
            Self::Backoff { .. } => "backoff",
            Self::Starting => "starting",
            Self::AfterFailure { wait, .. } => wait.code(),
            Self::Over(_) => "over",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { phases, blocked, failed } => {
                write!(f, "running: {}", phases.join(", "))?;
                for (step, need) in blocked.iter().take(SHOWN) {
                    write!(f, "; `{step}` waits for {need}")?;
                }
                if blocked.len() > SHOWN {
                    write!(f, "; {} more wait", blocked.len() - SHOWN)?;
                }
                failed.iter().try_for_each(|failed| write!(f, "; {failed}"))
            }
            Self::NoNodes => write!(f, "no node is connected; start one with `tl-worker` or `tlctl local up`"),
            Self::NodesUnknown(n) => write!(f, "{n} slots are on nodes that have not been heard of yet"),
            Self::TooFewSlots { need, have, draining } => {
                write!(f, "it needs {need} slots and all nodes together have {have}")?;
                if *draining > 0 { write!(f, " ({draining} more are being drained)") } else { Ok(()) }
            }
            Self::SlotsBusy { need, free } => write!(f, "it needs {need} slots at once and {free} are free"),
            Self::MixedBuilds { need, most } => {
                let what = "slots of one build of the worker (on one model of GPU, if on any) that reach each other";
                write!(f, "it needs {need} {what}, and there are {most} at most")
            }
            Self::MixedDevices { need, kinds } => {
                let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} on {kind}")).collect();
                write!(f, "it needs {need} slots on one kind of device, and there are {}", kinds.join(" and "))
            }
            Self::Behind(job) => write!(f, "job {job} comes first"),
            Self::Backoff { left_ms, failure } => write!(f, "it pauses for {left_ms} ms after a failure: {failure}"),
            Self::Starting => write!(f, "it is about to start"),
            Self::AfterFailure { wait, failed } => write!(f, "{wait}; {failed}"),
            Self::Over(how) => f.write_str(how),
        }
    }
}

/// Steps of a pipeline that wait for others, each with the first thing that it waits for.
fn blocked(job: &Job) -> Vec<(String, String)> {
    let probes = job.phases.iter().filter(|p| p.kind == PhaseKind::Probe && p.status == PhaseStatus::Waiting);
    let open = |p: &Phase| p.needs.iter().find(|n| job.phase(n).is_some_and(|n| n.status.is_open())).cloned();
    probes.filter_map(|p| Some((p.step.clone(), open(p)?.to_string()))).collect()
}

/// What runs; of units, how far they are together.
fn named(job: &Job, phase: &Phase) -> String {
    let Some(unit) = &phase.unit else { return phase.id.to_string() };
    let done = job.units(&phase.step).filter(|p| p.status == PhaseStatus::Succeeded).count();
    format!("{} ({done} of {} units done)", PhaseId::new(&phase.step, phase.kind.as_str()), unit.of)
}

/// Steps that are not run because of what has failed, as the end of a sentence.
fn not_run(job: &Job) -> String {
    let skipped = job.phases.iter().filter(|p| p.kind == PhaseKind::Probe && p.status == PhaseStatus::Skipped);
    let steps: Vec<String> = skipped.map(|p| format!("`{}`", p.step)).collect();
    if steps.is_empty() { String::new() } else { format!("; not run: {}", steps.join(", ")) }
}

/// Why a job is where it is.
pub fn why(state: &State, id: &JobId, now: Millis) -> Option<Wait> {
    let job = state.jobs.get(id)?;
    match job.status {
        JobStatus::Succeeded => return Some(Wait::Over("succeeded".into())),
        JobStatus::Cancelled => return Some(Wait::Over("cancelled".into())),
        JobStatus::Failed => {
            let failure = job.failure.as_ref();
            let said = failure.map_or_else(|| "failed".into(), |f| format!("failed ({}): {f}", f.class));
            return Some(Wait::Over(said + &not_run(job)));
        }
        JobStatus::Active => {}
    }
    let mut running: Vec<String> =
        job.phases.iter().filter(|p| p.status == PhaseStatus::Running).map(|p| named(job, p)).collect();
    running.dedup();
    let failed = job.phases.iter().find(|p| p.status == PhaseStatus::Failed);
    let failed = failed.map(|p| {
        let (step, failure) = (&p.step, p.last_failure.as_ref());
        let why = failure.map(|f| format!(" ({}): {f}", f.class)).unwrap_or_default();
        format!("step `{step}` has failed{why}{}", not_run(job))
    });
    if !running.is_empty() {
        return Some(Wait::Running { phases: running, blocked: blocked(job), failed });
    }
    let wait = waits(state, id, job, now)?;
    Some(match failed {
        Some(failed) => Wait::AfterFailure { wait: Box::new(wait), failed },
        None => wait,
    })
}

/// What a job waits for of which nothing runs.
fn waits(state: &State, id: &JobId, job: &Job, now: Millis) -> Option<Wait> {
    let queue = queue(state);
    // A training that waits for its units says nothing: they do.
    let own = queue.iter().find(|(j, _, p)| *j == id && job.is_unblocked(p));
    let Some((_, _, phase)) = own else { return Some(Wait::Starting) };
    if phase.not_before_ms > now {
        let failure = phase.last_failure.as_ref().map(ToString::to_string).unwrap_or_default();
        return Some(Wait::Backoff { left_ms: phase.not_before_ms - now, failure });
    }
    if state.nodes.values().all(|n| n.status == NodeStatus::Lost) {
        return Some(Wait::NoNodes);
    }
    let need = ranks(job, phase)?.0;
    let device = job.step_spec(&phase.step)?.cluster.device;
    let room = room(state, (device, need), job.reach(phase).as_ref(), &BTreeSet::new(), &[]);
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
