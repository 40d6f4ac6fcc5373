//! Carries an event out. Never fails: what does not fit the state any more changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{
    failure::Failure,
    hardware::kind,
    ids::{JobId, PhaseId},
    spec::JobSpec,
};

use super::{
    End, Event, State,
    state::{
        Artifact, Attempt, DataSet, Job, JobStatus, Millis, Node, NodeStatus, Phase, PhaseKind, PhaseStatus, RanOn,
        Unit,
    },
    teach,
};

/// Most lines of history that a phase keeps: its first one, and the newest.
const MAX_HISTORY: usize = 200;

/// Applies an event.
pub fn apply(state: &mut State, event: &Event) {
    match event {
        Event::Submitted { job, key, owner, spec, plan_only, models, at } => {
            state.keys.insert(key.clone(), job.clone());
            let fresh = Job {
                phases: phases(spec, *plan_only),
                plan_only: *plan_only,
                spec: (**spec).clone(),
                owner: owner.clone(),
                submitted_ms: *at,
                finished_ms: None,
                status: JobStatus::Active,
                failure: None,
                artifacts: Vec::new(),
                models: models.clone(),
            };
            state.jobs.insert(job.clone(), fresh);
        }
        Event::NodeJoined { node, name, incarnation, build, slots, catalog, hardware } => {
            let known = state.nodes.get(node);
            // Who has not been given up keeps its place, and what this start of its agent has said of its slots.
            let there = known.filter(|n| n.status != NodeStatus::Lost);
            let (joined, joins) = there.map_or((state.joins + 1, state.joins + 1), |n| (n.joined, state.joins));
            let same = known.filter(|n| n.incarnation == *incarnation);
            let fresh = Node {
                name: name.clone(),
                incarnation: incarnation.clone(),
                slots: slots.clone(),
                build: build.clone(),
                hardware: (**hardware).clone(),
                status: NodeStatus::Ready,
                draining: known.is_some_and(|n| n.draining),
                joined,
                broken: same.map(|n| n.broken.clone()).unwrap_or_default(),
                seen_ms: known.map_or(0, |n| n.seen_ms),
            };
            state.joins = joins;
            state.nodes.insert(node.clone(), fresh);
            state.catalog = Some((**catalog).clone());
        }
        Event::NodeDisconnected { node } => {
            if let Some(node) = state.nodes.get_mut(node) {
                node.status = NodeStatus::Unknown;
            }
        }
        Event::NodeLost { node, .. } => {
            if let Some(node) = state.nodes.get_mut(node) {
                node.status = NodeStatus::Lost;
            }
        }
        Event::NodeDraining { node, draining } => {
            if let Some(node) = state.nodes.get_mut(node) {
                node.draining = *draining;
            }
        }
        Event::SlotJudged { node, slot, problem } => {
            if let Some(node) = state.nodes.get_mut(node) {
                node.broken.remove(slot);
                if !problem.is_empty() {
                    node.broken.insert(*slot, problem.clone());
                }
            }
        }
        Event::AttemptStarted { job, phase, generation, placements, secret, at } => {
            let first = placements.first().map(|p| (kind(&p.device), state.nodes.get(&p.node), &p.device));
            let ran_on = first.map(|(kind, node, device)| RanOn {
                kind: kind.to_owned(),
                numbers: node.map(|n| n.numbers(device).to_owned()).unwrap_or_default(),
            });
            with(state, job, phase, |p| {
                p.ran_on = ran_on;
                p.status = PhaseStatus::Running;
                p.generation = *generation;
                p.nodes = placements.iter().map(|p| p.node.clone()).collect();
                p.nodes.sort_unstable();
                p.nodes.dedup();
                let ranks = placements.len();
                p.attempt = Some(Attempt {
                    placements: placements.clone(),
                    started_ms: *at,
                    secret: secret.clone(),
                    exited: BTreeMap::new(),
                    failing_ms: None,
                    stopping: None,
                });
                note(
                    p,
                    *at,
                    format!("attempt {generation} starts with {ranks} rank{}", if ranks == 1 { "" } else { "s" }),
                );
            });
        }
        Event::RankExited { job, phase, rank, failure, at, .. } => with(state, job, phase, |p| {
            let said = failure.as_ref().map(|f| format!("rank {rank} ended ({}): {f}", f.class));
            if let Some(attempt) = &mut p.attempt {
                attempt.exited.insert(*rank, failure.clone());
                if failure.is_some() {
                    attempt.failing_ms.get_or_insert(*at);
                }
            }
            if let Some(said) = said {
                note(p, *at, said);
            }
        }),
        Event::AttemptStopping { job, phase, reason, at, .. } => with(state, job, phase, |p| {
            if let Some(attempt) = &mut p.attempt {
                attempt.stopping = Some((reason.clone(), *at));
            }
            note(p, *at, format!("stops at its next step: {reason}"));
        }),
        Event::AttemptEnded { job, phase, end, at, .. } => {
            let (mut failed, mut given_up) = (None, None);
            with(state, job, phase, |p| {
                p.attempt = None;
                p.status = PhaseStatus::Waiting;
                match end {
                    End::Retry { failure, not_before_ms } => {
                        *p.failures.entry(failure.class).or_default() += 1;
                        p.last_failure = Some(failure.clone());
                        p.not_before_ms = *not_before_ms;
                        note(p, *at, format!("attempt {} failed: {failure}; it is tried again", p.generation));
                    }
                    End::Fail { failure } => {
                        p.status = PhaseStatus::Failed;
                        p.last_failure = Some(failure.clone());
                        failed = Some(failure.clone());
                        note(p, *at, format!("failed: {failure}"));
                    }
                    End::GiveUp { failure } => given_up = Some(failure),
                    End::Replan { reason } => note(p, *at, format!("placed anew: {reason}")),
                }
            });
            // What an older release has written.
            if let (Some(failure), Some(job)) = (failed, state.jobs.get_mut(job)) {
                finish(job, JobStatus::Failed, *at);
                job.failure = Some(failure);
            }
            if let Some(failure) = given_up {
                fail(state, job, phase, failure, *at);
            }
        }
        Event::TeachingSplit { job, phase, units, build, device, numbers, at } => {
            let unit =
                Unit { part: 0, of: *units, build: build.clone(), device: device.clone(), numbers: numbers.clone() };
            split(state, (job, phase), &unit, *at);
        }
        Event::UnitLeft { job, phase, reason, at } => with(state, job, phase, |p| {
            // Its nodes are those that have given it up.
            if p.attempt.take().is_none() {
                p.nodes.clear();
            }
            p.status = PhaseStatus::Succeeded;
            note(p, *at, format!("left to the training: {reason}"));
        }),
        Event::GateJudged { job, phase, said, failure, at } => {
            if let Some(failure) = failure {
                fail(state, job, phase, failure, *at);
            } else {
                with(state, job, phase, |p| {
                    p.status = PhaseStatus::Succeeded;
                    note(p, *at, said.clone());
                });
            }
        }
        Event::JobFailed { job, failure, at } => {
            if let Some(job) = state.jobs.get_mut(job) {
                finish(job, JobStatus::Failed, *at);
                job.failure = Some(failure.clone());
            }
        }
        Event::CheckpointReady { job, phase, step, blob, .. } => {
            let spec = state.jobs.get(job).and_then(|j| j.step_spec(phase.step()));
            let keep = spec.map_or(1, |s| s.checkpoint.keep.max(1) as usize);
            with(state, job, phase, |p| {
                p.checkpoints.insert(0, (*step, blob.clone()));
                p.checkpoints.truncate(keep);
                p.stays_on = p.ran_on.as_ref().map(|on| on.kind.clone());
                // There was progress: what went wrong before it does not count against what comes.
                p.failures.clear();
            });
        }
        Event::ArtifactReady { job, phase, name, blob, .. } => {
            if let Some(job) = state.jobs.get_mut(job) {
                let step = phase.step().to_owned();
                if let Some(unit) = job.phases.iter_mut().find(|p| p.id == *phase && p.kind == PhaseKind::Teach) {
                    unit.output = Some(blob.clone());
                } else {
                    job.artifacts.retain(|a| (&a.step, &a.name) != (&step, name));
                    job.artifacts.push(Artifact { step, name: name.clone(), blob: blob.clone() });
                }
            }
        }
        Event::PhaseSucceeded { job, phase, result, at, .. } => {
            gather(state, job, phase, *at);
            with(state, job, phase, |p| {
                p.status = PhaseStatus::Succeeded;
                p.attempt = None;
                p.result = Some(result.clone());
                // Nothing goes on from them any more.
                p.checkpoints.clear();
                note(p, *at, "done".into());
            });
        }
        Event::Noted { job, phase, text, at } => with(state, job, phase, |p| note(p, *at, text.clone())),
        Event::JobSucceeded { job, at } => {
            if let Some(job) = state.jobs.get_mut(job) {
                finish(job, JobStatus::Succeeded, *at);
            }
        }
        Event::JobCancelled { job, at } => {
            if let Some(job) = state.jobs.get_mut(job) {
                finish(job, JobStatus::Cancelled, *at);
            }
        }
        Event::JobRetried { job, .. } => {
            if let Some(job) = state.jobs.get_mut(job) {
                (job.status, job.finished_ms, job.failure) = (JobStatus::Active, None, None);
                // Of units what was left is tried again, too, unless their ranks have begun with it.
                let begun = job.phases.iter().filter(|p| p.kind == PhaseKind::Train && p.generation > 0);
                let begun: BTreeSet<String> = begun.map(|p| p.step.clone()).collect();
                let left = |p: &Phase| p.is_left() && p.output.is_none() && !begun.contains(&p.step);
                for p in job.phases.iter_mut().filter(|p| p.status.is_lost() || left(p)) {
                    p.status = PhaseStatus::Waiting;
                    p.not_before_ms = 0;
                    p.failures.clear();
                    // Whoever wants it to go on wants that also where what it began on is gone.
                    p.stays_on = None;
                }
            }
        }
        Event::JobRemoved { job } => {
            state.jobs.remove(job);
            state.keys.retain(|_, j| j != job);
        }
        Event::DataPushed { blob, name, files, at } => {
            let set = DataSet { name: name.clone(), size: blob.size, files: *files, pushed_ms: *at };
            state.data.insert(blob.digest.clone(), set);
        }
        Event::DataRemoved { digest } => drop(state.data.remove(digest)),
    }
}

/// The DAG of a job: each step is probed, then trained, then judged if it has a gate; a probe waits for the last of what
/// its step needs. A plan has only probes, which take the models of earlier steps on trust, and of steps that differ in
/// their seed one.
fn phases(spec: &JobSpec, plan_only: bool) -> Vec<Phase> {
    let phase = |step: &str, kind: PhaseKind, needs| fresh(PhaseId::new(step, kind.as_str()), kind, needs);
    let mut out = Vec::new();
    for (step, _, needs) in spec.steps() {
        if plan_only {
            if spec.leads_group(step) {
                out.push(phase(step, PhaseKind::Probe, Vec::new()));
            }
            continue;
        }
        let last = |step: &str| if spec.gates(step).is_empty() { PhaseKind::Train } else { PhaseKind::Gate };
        let needs = needs.iter().map(|n| PhaseId::new(n, last(n).as_str())).collect();
        out.push(phase(step, PhaseKind::Probe, needs));
        out.push(phase(step, PhaseKind::Train, vec![PhaseId::new(step, PhaseKind::Probe.as_str())]));
        if last(step) == PhaseKind::Gate {
            out.push(phase(step, PhaseKind::Gate, vec![PhaseId::new(step, PhaseKind::Train.as_str())]));
        }
    }
    out
}

/// A phase that waits.
fn fresh(id: PhaseId, kind: PhaseKind, needs: Vec<PhaseId>) -> Phase {
    Phase {
        step: id.step().into(),
        id,
        kind,
        needs,
        status: PhaseStatus::Waiting,
        generation: 0,
        attempt: None,
        nodes: Vec::new(),
        ran_on: None,
        stays_on: None,
        failures: BTreeMap::new(),
        last_failure: None,
        not_before_ms: 0,
        checkpoints: Vec::new(),
        unit: None,
        output: None,
        result: None,
        history: Vec::new(),
    }
}

/// Has a training wait for so many units of what its teachers say, once.
fn split(state: &mut State, (job, train): (&JobId, &PhaseId), first: &Unit, at: Millis) {
    let Some(job) = state.jobs.get_mut(job) else { return };
    let Some(place) = job.phases.iter().position(|p| p.id == *train) else { return };
    let mut parts = Vec::new();
    if job.units(train.step()).next().is_none() {
        for part in 0..first.of {
            let id = PhaseId::new(train.step(), &format!("{}-{}", PhaseKind::Teach.as_str(), part + 1));
            let unit = Unit { part, ..first.clone() };
            parts.push(Phase { unit: Some(unit), ..fresh(id, PhaseKind::Teach, job.phases[place].needs.clone()) });
        }
    }
    let waits = &mut job.phases[place];
    waits.needs.extend(parts.iter().map(|p| p.id.clone()));
    if !parts.is_empty() {
        note(waits, at, format!("what teachers say is worked out first, in {} units", first.of));
    }
    drop(job.phases.splice(place..place, parts));
}

/// The units of a step whose training is done become one line of its history: a large pipeline would carry thousands along.
fn gather(state: &mut State, job: &JobId, train: &PhaseId, at: Millis) {
    let Some(job) = state.jobs.get_mut(job) else { return };
    let units: Vec<&Phase> = job.units(train.step()).collect();
    if units.is_empty() || job.phase(train).is_none_or(|p| p.kind != PhaseKind::Train) {
        return;
    }
    let said = teach::came_to(&state.nodes, &units);
    let gone: BTreeSet<PhaseId> = units.into_iter().map(|p| p.id.clone()).collect();
    job.phases.retain(|p| !gone.contains(&p.id));
    if let Some(p) = job.phases.iter_mut().find(|p| p.id == *train) {
        p.needs.retain(|need| !gone.contains(need));
        note(p, at, said);
    }
}

/// A phase has failed for good. What needs it is not run.
fn fail(state: &mut State, job: &JobId, phase: &PhaseId, failure: &Failure, at: Millis) {
    with(state, job, phase, |p| {
        p.status = PhaseStatus::Failed;
        p.attempt = None;
        p.last_failure = Some(failure.clone());
        note(p, at, format!("failed ({}): {failure}", failure.class));
    });
    let Some(job) = state.jobs.get_mut(job) else { return };
    // In order, each comes after those that it needs.
    for at_phase in 0..job.phases.len() {
        let phase = &job.phases[at_phase];
        let lost = phase.needs.iter().filter_map(|n| job.phase(n)).find(|n| n.status.is_lost());
        let Some(lost) = lost.filter(|_| phase.status == PhaseStatus::Waiting) else { continue };
        let how = if lost.status == PhaseStatus::Failed { "has failed" } else { "is not run" };
        let said = format!("not run: it needs {}, which {how}", lost.id);
        if let Some(p) = job.phases.get_mut(at_phase) {
            p.status = PhaseStatus::Skipped;
            note(p, at, said);
        }
    }
}

fn with(state: &mut State, job: &JobId, phase: &PhaseId, change: impl FnOnce(&mut Phase)) {
    let mut phases = state.jobs.get_mut(job).into_iter().flat_map(|j| &mut j.phases);
    if let Some(p) = phases.find(|p| p.id == *phase) {
        change(p);
    }
}

fn note(phase: &mut Phase, at: Millis, text: String) {
    if phase.history.len() >= MAX_HISTORY {
        phase.history.remove(1);
    }
    phase.history.push((at, text));
}

fn finish(job: &mut Job, status: JobStatus, at: Millis) {
    job.status = status;
    job.finished_ms = Some(at);
    for p in &mut job.phases {
        p.attempt = None;
        if status != JobStatus::Succeeded && p.status.is_open() {
            p.status = PhaseStatus::Failed;
        }
    }
}
