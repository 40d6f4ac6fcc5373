//! Yes, with events, or no, with a reason.

use tl_proto::{
    failure::{Failure, FailureClass},
    ids::{JobId, NodeId, PhaseId},
    spec::{self, JobSpec, Pushed},
};

use super::{
    Command, Event, Refusal, State, gate, models,
    state::{Job, JobStatus, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus},
};

/// Most jobs that may wait or run at once.
const MAX_ACTIVE: usize = 10_000;

/// Decides a command. Nothing changes until the events are durable and applied.
///
/// # Errors
/// A [`Refusal`]; the state is as if nobody had asked.
pub fn decide(state: &State, command: Command, now: Millis) -> Result<Vec<Event>, Refusal> {
    match command {
        Command::Submit { job, key, owner, spec, plan_only } => {
            if let Some(known) = state.keys.get(&key).and_then(|id| state.jobs.get(id)) {
                if known.spec == *spec {
                    return Ok(Vec::new());
                }
                return Err(Refusal::AlreadyExists("this idempotency key belongs to another job".into()));
            }
            if state.jobs.values().filter(|j| j.status == JobStatus::Active).count() >= MAX_ACTIVE {
                return Err(Refusal::Exhausted(format!("{MAX_ACTIVE} jobs wait or run already")));
            }
            // Before any node has told what it can do, its probe will check the rest.
            let checked = state.catalog.as_ref().map_or_else(|| spec::check_shape(&spec), |c| spec::check(&spec, c));
            checked.map_err(|e| Refusal::Invalid { message: e.to_string(), hint: e.hint })?;
            has_data(state, &spec)?;
            let models = models::pin(state, &spec)?;
            Ok(vec![Event::Submitted { job, key, owner, spec, plan_only, models, at: now }])
        }
        Command::Cancel { job } => match active(state, &job)? {
            true => Ok(vec![Event::JobCancelled { job, at: now }]),
            false => Err(Refusal::Precondition("the job is over".into())),
        },
        Command::Retry { job } => {
            let known = state.jobs.get(&job).ok_or_else(|| no_job(&job))?;
            match known.status {
                JobStatus::Failed | JobStatus::Cancelled => {
                    // It may have been removed meanwhile.
                    has_data(state, &known.spec)?;
                    gate::may_retry(known)?;
                    Ok(vec![Event::JobRetried { job, at: now }])
                }
                JobStatus::Active => Err(Refusal::Precondition("the job is not over".into())),
                JobStatus::Succeeded => Err(Refusal::Precondition("the job has succeeded".into())),
            }
        }
        Command::Remove { job } => match active(state, &job)? {
            true => Err(Refusal::Precondition("the job is not over; cancel it first".into())),
            false => Ok(vec![Event::JobRemoved { job }]),
        },
        Command::Drain { node, undo } => {
            let known = state.nodes.get(&node).ok_or_else(|| Refusal::NotFound(format!("node `{node}`")))?;
            Ok(if known.draining != undo { Vec::new() } else { vec![Event::NodeDraining { node, draining: !undo }] })
        }
        Command::PushData { blob, name, files } => {
            let known = state.data.get(&blob.digest).is_some_and(|set| set.name == name);
            Ok(if known { Vec::new() } else { vec![Event::DataPushed { blob, name, files, at: now }] })
        }
        Command::RemoveData { digest } => {
            if !state.data.contains_key(&digest) {
                return Err(Refusal::NotFound(format!("data set `{}`", Pushed::name(&digest))));
            }
            let needs = |j: &Job| j.spec.steps().iter().any(|(_, s, _)| s.pushed().contains(&digest.as_str()));
            let mut active = state.jobs.iter().filter(|(_, j)| j.status == JobStatus::Active);
            if let Some((job, _)) = active.find(|(_, j)| needs(j)) {
                return Err(Refusal::Precondition(format!("job {job} needs it; wait for its end, or cancel it")));
            }
            Ok(vec![Event::DataRemoved { digest }])
        }
        Command::Join { node, name, incarnation, build, slots, catalog, hardware } => {
            if let Some(known) = state.nodes.get(&node)
                && known.status == NodeStatus::Ready
                && known.incarnation != incarnation
            {
                return Err(Refusal::AlreadyExists(format!(
                    "node `{node}` is connected already, as `{}`: two agents share a data folder, or a copy of it",
                    known.name
                )));
            }
            Ok(vec![Event::NodeJoined { node, name, incarnation, build, slots, catalog, hardware }])
        }
        Command::Disconnect { node, incarnation } => {
            let known =
                state.nodes.get(&node).is_some_and(|n| n.status == NodeStatus::Ready && n.incarnation == incarnation);
            Ok(if known { vec![Event::NodeDisconnected { node }] } else { Vec::new() })
        }
        Command::Leave { node } => {
            let Some(known) = state.nodes.get(&node).filter(|n| n.status != NodeStatus::Lost) else {
                return Ok(Vec::new());
            };
            // Who leaves was emptied for that; when it comes back it is to be used.
            let undrained = known.draining.then(|| Event::NodeDraining { node: node.clone(), draining: false });
            let lost = Event::NodeLost { node, reason: "it left".into() };
            Ok(undrained.into_iter().chain([lost]).collect())
        }
        Command::Judge { node, incarnation, slot, problem } => {
            let known = state.nodes.get(&node).filter(|n| n.incarnation == incarnation).ok_or(Refusal::Stale)?;
            if !known.slots.iter().any(|s| s.index == slot) {
                return Err(Refusal::Stale);
            }
            let same = known.broken.get(&slot).map_or("", String::as_str) == problem;
            Ok(if same { Vec::new() } else { vec![Event::SlotJudged { node, slot, problem }] })
        }
        Command::Exited { job, phase, generation, rank, failure, node, incarnation } => {
            let attempt = current(state, &job, &phase, generation)?.attempt.as_ref().ok_or(Refusal::Stale)?;
            let known = attempt.placements.get(rank as usize).is_some_and(|p| p.is_on(&node, &incarnation));
            let twice = attempt.exited.contains_key(&rank);
            if !known || twice {
                return Err(Refusal::Stale);
            }
            Ok(vec![Event::RankExited { job, phase, generation, rank, failure, at: now }])
        }
        Command::Checkpoint { job, phase, generation, step, blob, node } => {
            let known = saving(state, &job, &phase, generation, &node)?;
            // Steps only grow; a repeated message changes nothing.
            if known.checkpoints.first().is_some_and(|(newest, _)| *newest >= step) {
                return Ok(Vec::new());
            }
            Ok(vec![Event::CheckpointReady { job, phase, generation, step, blob }])
        }
        Command::Artifact { job, phase, generation, name, blob, node } => {
            reported(state, &job, &phase, generation, &node)?;
            Ok(vec![Event::ArtifactReady { job, phase, generation, name, blob }])
        }
        Command::Result { job, phase, generation, result, node, incarnation } => {
            let known = current(state, &job, &phase, generation)?;
            let attempt = known.attempt.as_ref().ok_or(Refusal::Stale)?;
            if !attempt.placements.first().is_some_and(|p| p.is_on(&node, &incarnation)) {
                return Err(Refusal::Stale);
            }
            let arrived = match known.kind {
                PhaseKind::Train => state.jobs.get(&job).is_some_and(|j| j.has_left(&known.step)),
                // It says whether it has left anything.
                PhaseKind::Teach => known.output.is_some() || result["left"] != serde_json::Value::Bool(true),
                PhaseKind::Probe | PhaseKind::Gate => true,
            };
            if arrived {
                return Ok(vec![Event::PhaseSucceeded { job, phase, generation, result, at: now }]);
            }
            if attempt.exited.get(&0).is_some_and(Option::is_some) {
                return Err(Refusal::Stale);
            }
            // Its files were sent before its result: what is not here will not come, and is made again.
            let message = format!("what `{}` left did not arrive in the blob store", known.id);
            let failure = Some(Failure::new(FailureClass::Disk, message, "`tlctl show` has what its node said of it"));
            Ok(vec![Event::RankExited { job, phase, generation, rank: 0, failure, at: now }])
        }
        Command::Notice { job, phase, generation, text, node } => {
            reported(state, &job, &phase, generation, &node)?;
            Ok(vec![Event::Noted { job, phase, text, at: now }])
        }
    }
}

/// Every data set that a job names is there.
fn has_data(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let steps = spec.steps();
    let mut pushed = steps.iter().flat_map(|(_, s, _)| s.pushed());
    match pushed.find(|d| !state.data.contains_key(*d)) {
        None => Ok(()),
        Some(digest) => Err(Refusal::Invalid {
            message: format!("there is no data set `{}`", Pushed::name(digest)),
            hint: "`tlctl data ls` lists them, and `tlctl data push` brings one".into(),
        }),
    }
}

fn no_job(job: &JobId) -> Refusal {
    Refusal::NotFound(format!("job `{job}`"))
}

fn active(state: &State, job: &JobId) -> Result<bool, Refusal> {
    Ok(state.jobs.get(job).ok_or_else(|| no_job(job))?.status == JobStatus::Active)
}

/// The phase, if `generation` is its newest attempt and it is not over.
fn current<'a>(state: &'a State, job: &JobId, phase: &PhaseId, generation: u64) -> Result<&'a Phase, Refusal> {
    let job = state.jobs.get(job).filter(|j| j.status == JobStatus::Active).ok_or(Refusal::Stale)?;
    job.phase(phase).filter(|p| p.generation == generation && p.status.is_open()).ok_or(Refusal::Stale)
}

/// The same, if `node` has a part in that attempt.
fn reported<'a>(
    state: &'a State,
    job: &JobId,
    phase: &PhaseId,
    generation: u64,
    node: &NodeId,
) -> Result<&'a Phase, Refusal> {
    current(state, job, phase, generation).and_then(|p| if p.was_on(node) { Ok(p) } else { Err(Refusal::Stale) })
}

/// The same for a state that was saved: that of a cancelled job, too, which goes on from it when it is tried again.
fn saving<'a>(
    state: &'a State,
    job: &JobId,
    phase: &PhaseId,
    generation: u64,
    node: &NodeId,
) -> Result<&'a Phase, Refusal> {
    let cancelled = state.jobs.get(job).filter(|j| j.status == JobStatus::Cancelled);
    let stopped = cancelled.and_then(|j| j.phase(phase)).filter(|p| p.status == PhaseStatus::Failed);
    match stopped.filter(|p| p.generation == generation && p.was_on(node)) {
        Some(stopped) => Ok(stopped),
        None => reported(state, job, phase, generation, node),
    }
}
