//! Why a job is where it is, typed and in one sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tl_proto::{
    ids::{JobId, PhaseId},
    spec::Device,
};

use super::{
    State,
    devices::not_offered,
    placement::{Supply, Want},
    plan::{queue, ranks},
    round::Round,
    state::{Job, JobStatus, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus},
};

/// Steps that wait which are named; of more, only the number is told.
const SHOWN: usize = 4;
/// Reasons that are told why slots are not there.
const REASONS: usize = 3;

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
        /// On what.
        on: On,
        /// Slots that there are.
        have: usize,
        /// Slots on nodes that are being emptied.
        draining: usize,
        /// What keeps others from being there.
        reasons: Vec<String>,
    },
    /// Others hold the slots.
    SlotsBusy {
        /// Ranks that it needs.
        need: usize,
        /// On what.
        on: On,
        /// Slots that are free.
        free: usize,
        /// CPU slots that are free and would be enough, where it waits for GPUs although it takes either.
        instead: usize,
    },
    /// There are slots enough, but their workers are not one build, their GPUs do not compute the same numbers or do not have
    /// the same NCCL, or they do not reach each other.
    MixedBuilds {
        /// Ranks that it needs.
        need: usize,
        /// The most slots that could form one gang.
        most: usize,
        /// GPUs whose nodes have no NCCL, if that is needed.
        without_nccl: usize,
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

/// On what a job wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct On {
    /// Which device.
    pub device: Device,
    /// Whether that is where it has begun, and not what it was submitted for.
    pub begun: bool,
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.device {
            Device::Auto => "",
            Device::Cpu => " on CPUs",
            Device::Cuda => " on GPUs",
        })?;
        if self.begun { f.write_str(", where it has begun,") } else { Ok(()) }
    }
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
            Self::TooFewSlots { need, on, have, draining, reasons } => {
                write!(f, "it needs {}{on} and all nodes together have {have}", slots(*need))?;
                if *draining > 0 {
                    write!(f, " ({draining} more are being drained)")?;
                }
                // What is being drained would do: neither another place nor more slots is the matter.
                let undo = have + draining >= *need;
                if undo {
                    let again = "`tlctl drain --undo NODE` lets one be used again, unless its worker is being stopped";
                    write!(f, "; {again}")?;
                } else if on.begun {
                    write!(f, "; `tlctl cancel`, then `tlctl retry`, lets it go on elsewhere")?;
                }
                f.write_str(match on.device {
                    _ if undo => "",
                    Device::Cpu => "; a worker offers CPU slots with `--slots`",
                    Device::Cuda if reasons.is_empty() => {
                        "; a worker that is built with CUDA offers the GPUs that work and that `--gpus` names"
                    }
                    Device::Auto | Device::Cuda => "",
                })?;
                reasons.iter().take(REASONS).try_for_each(|why| write!(f, "; {why}"))?;
                let more = reasons.len().saturating_sub(REASONS);
                if more > 0 { write!(f, "; {more} more in `tlctl nodes --output json`") } else { Ok(()) }
            }
            Self::SlotsBusy { need, on, free, instead } => {
                write!(f, "it needs {}{on} at once and {free} are free", slots(*need))?;
                if *instead == 0 {
                    return Ok(());
                }
                write!(f, "; {instead} on CPUs are free, which `cluster.device = \"cpu\"` takes")
            }
            Self::MixedBuilds { need, most, without_nccl } => {
                let of = "one build of the worker (on GPUs of one model with the same libraries, if on any)";
                write!(f, "it needs {} of {of} that reach each other, and there are {most} at most", slots(*need))?;
                if *without_nccl > 0 {
                    let instead = "`cluster.reduction = \"ordered\"` does without";
                    write!(f, "; {without_nccl} GPUs have no NCCL, over which ranks add up: install it, or {instead}")?;
                }
                Ok(())
            }
            Self::MixedDevices { need, kinds } => {
                let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} on {kind}")).collect();
                write!(f, "it needs {} on one kind of device, and there are {}", slots(*need), kinds.join(" and "))
            }
            Self::Behind(job) => write!(f, "job {job} comes first"),
            Self::Backoff { left_ms, failure } => write!(f, "it pauses for {left_ms} ms after a failure: {failure}"),
            Self::Starting => write!(f, "it is about to start"),
            Self::AfterFailure { wait, failed } => write!(f, "{wait}; {failed}"),
            Self::Over(how) => f.write_str(how),
        }
    }
}

fn slots(n: usize) -> String {
    format!("{n} slot{}", if n == 1 { "" } else { "s" })
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
    let (supply, none) = (Supply::of(state), BTreeSet::new());
    let want = Want::of(job, phase)?;
    let (room, need) = (supply.room(&want, &none, &none), want.need);
    let free = room.free.len();
    let begun = phase.stays_on.is_some() && job.step_spec(&phase.step)?.cluster.device == Device::Auto;
    let on = On { device: want.device, begun };
    Some(if free >= need {
        first_of(&queue, id, now, (&supply, &want)).map_or(Wait::Starting, Wait::Behind)
    } else if room.for_gpus && room.kinds.get("cuda").is_none_or(|open| *open < need) {
        // There are enough with those whose node is not heard of.
        Wait::NodesUnknown(room.unknown)
    } else if room.most >= need {
        let on = On { device: if room.for_gpus { Device::Cuda } else { on.device }, ..on };
        Wait::SlotsBusy { need, on, free, instead: room.instead }
    } else if free + room.apart + room.busy >= need && room.kinds.values().all(|n| *n < need) {
        Wait::MixedDevices { need, kinds: room.kinds }
    } else if free + room.apart + room.busy >= need {
        Wait::MixedBuilds { need, most: room.most, without_nccl: room.without_nccl }
    } else if room.unknown > 0 {
        Wait::NodesUnknown(room.unknown)
    } else {
        let (have, draining, mut reasons) = (free + room.apart + room.busy, room.draining, room.withheld);
        if want.device == Device::Cuda {
            reasons.extend(not_offered(state));
        }
        reasons.sort_unstable();
        reasons.dedup();
        Wait::TooFewSlots { need, on, have, draining, reasons }
    })
}

/// Whose turn comes before that of a job and leaves it too few of the slots that are free.
fn first_of<'a>(
    queue: &[(&'a JobId, &'a Job, &'a Phase)],
    id: &JobId,
    now: Millis,
    (supply, want): (&'a Supply<'a>, &Want<'_>),
) -> Option<JobId> {
    let (mut round, none) = (Round::new(supply, now), BTreeSet::new());
    for turn in queue.iter().take_while(|(other, _, _)| *other != id) {
        let before = round.taken().len();
        if let Some((free, (_, most))) = round.turn(*turn).zip(ranks(turn.1, turn.2)) {
            round.take(free.into_iter().take(most));
        }
        let more = round.taken().len() > before;
        if more && supply.room(want, round.taken(), &none).free.len() < want.need {
            return Some(turn.0.clone());
        }
    }
    None
}
