//! What follows from a state: losses, ends of attempts, finished jobs, placements, growth.

use std::collections::BTreeSet;

use tl_proto::{
    deadlines::Deadlines,
    failure::{Failure, FailureClass},
    ids::{JobId, NodeId},
    spec::{Device, JobSpec},
};

use super::{
    End, Event, State, gate,
    placement::room,
    state::{Attempt, Job, JobStatus, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus, Placement},
    teach::{self, Reach},
};

/// How long the state of a rank that has stopped may take to the blob store, at least.
const UPLOAD_MS: Millis = 60_000;

/// What planning depends on besides the state.
pub struct Context<'a> {
    /// The time.
    pub now: Millis,
    /// The table.
    pub deadlines: &'a Deadlines,
    /// Fresh randomness, for secrets.
    pub entropy: u128,
}

/// What should happen now.
pub fn plan(state: &State, context: &Context<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, node) in &state.nodes {
        if node.status != NodeStatus::Lost && context.now.saturating_sub(node.seen_ms) > context.deadlines.lease_ms {
            let reason = format!("silent for {} ms", context.now - node.seen_ms);
            events.push(Event::NodeLost { node: id.clone(), reason });
        }
    }
    if !events.is_empty() {
        // The rest follows from a state that knows of it.
        return events;
    }
    for (id, job) in state.jobs.iter().filter(|(_, j)| j.status == JobStatus::Active) {
        for phase in &job.phases {
            if let Some(attempt) = &phase.attempt {
                events.extend(end_of(state, context, id, phase, attempt));
            }
        }
        events.extend(teach::left(state, id, job, context.now));
        events.extend(gate::judge(id, job, context.now));
        events.extend(over(id, job, context.now));
    }
    if events.is_empty() {
        events = placements(state, context);
    }
    events
}

/// The end of a job of which nothing can run any more, or nothing needs to.
fn over(id: &JobId, job: &Job, at: Millis) -> Option<Event> {
    let failed = job.phases.iter().find(|p| p.status == PhaseStatus::Failed);
    // Whoever asked for a plan hears what is wrong at once.
    let told = job.plan_only && failed.is_some();
    if !told && job.phases.iter().any(|p| p.status.is_open()) {
        return None;
    }
    let Some(phase) = failed else { return Some(Event::JobSucceeded { job: id.clone(), at }) };
    let unknown = || Failure::new(FailureClass::Crash, format!("{} has failed", phase.id), "");
    let mut failure = phase.last_failure.clone().unwrap_or_else(unknown);
    if job.spec.job.kind == JobSpec::PIPELINE && phase.kind != PhaseKind::Gate {
        failure.message = format!("step `{}`: {}", phase.step, failure.message);
    }
    Some(Event::JobFailed { job: id.clone(), failure, at })
}

/// Whether an attempt is over, or should be.
fn end_of(state: &State, context: &Context<'_>, id: &JobId, phase: &Phase, attempt: &Attempt) -> Option<Event> {
    let now = context.now;
    let ended = |end| Event::AttemptEnded {
        job: id.clone(),
        phase: phase.id.clone(),
        generation: phase.generation,
        end,
        at: now,
    };
    let lost = attempt.placements.iter().enumerate().find_map(|(rank, p)| {
        let node = state.nodes.get(&p.node);
        let gone = node.is_none_or(|n| n.status == NodeStatus::Lost || n.incarnation != p.incarnation);
        let running = !attempt.exited.contains_key(&(rank as u32));
        (gone && running).then(|| {
            let name = node.map_or(p.node.as_str(), |n| &n.name);
            Failure::new(FailureClass::LostNode, format!("node `{name}` with rank {rank} was lost"), "")
        })
    });
    if let Some((reason, since)) = &attempt.stopping {
        let all_out = attempt.exited.len() == attempt.placements.len();
        let grace = context.deadlines.stop_grace_ms;
        // A rank that was stopped says so only when its state lies in the blob store; a lost node is told by its lease.
        let too_long = now.saturating_sub(*since) > 2 * grace + (10 * grace).max(UPLOAD_MS);
        return (all_out || too_long || lost.is_some()).then(|| ended(End::Replan { reason: reason.clone() }));
    }
    let failures = || attempt.exited.values().flatten();
    let telling = failures().find(|f| !matches!(f.class, FailureClass::LostPeer | FailureClass::Stopped));
    let settled = attempt.failing_ms.is_some_and(|at| now.saturating_sub(at) >= context.deadlines.settle_ms);
    let failure = match (telling, lost) {
        (Some(f), _) => f.clone(),
        (None, Some(f)) => f,
        (None, None) if settled => failures().next()?.clone(),
        _ => {
            return stop_for_drain(state, context, id, phase, attempt)
                .or_else(|| grow(state, context, id, phase, attempt));
        }
    };
    let count = phase.failures.get(&failure.class).copied().unwrap_or(0) + 1;
    let spent = count > failure.class.retries();
    if spent && phase.kind == PhaseKind::Teach {
        // The ranks can do it, or will say why not.
        let reason = format!("{failure} ({})", failure.class);
        return Some(Event::UnitLeft { job: id.clone(), phase: phase.id.clone(), reason, at: now });
    }
    Some(ended(if spent {
        End::GiveUp { failure }
    } else {
        let not_before_ms = now + failure.class.backoff_ms(count);
        End::Retry { failure, not_before_ms }
    }))
}

fn stop(context: &Context<'_>, id: &JobId, phase: &Phase, reason: String) -> Event {
    Event::AttemptStopping {
        job: id.clone(),
        phase: phase.id.clone(),
        generation: phase.generation,
        reason,
        at: context.now,
    }
}

fn stop_for_drain(state: &State, context: &Context<'_>, id: &JobId, phase: &Phase, attempt: &Attempt) -> Option<Event> {
    let node = attempt.placements.iter().find_map(|p| state.nodes.get(&p.node).filter(|n| n.draining))?;
    Some(stop(context, id, phase, format!("node `{}` is being drained", node.name)))
}

/// A gang that would be larger if it were placed anew is stopped at a step, after it has run undisturbed for a while,
/// and only if nobody waits who could ever have the slots.
fn grow(state: &State, context: &Context<'_>, id: &JobId, phase: &Phase, attempt: &Attempt) -> Option<Event> {
    let job = state.jobs.get(id)?;
    let (fewest, most) = ranks(job, phase)?;
    let has = attempt.placements.len();
    let calm = context.now.saturating_sub(attempt.started_ms) >= context.deadlines.grow_cooldown_ms;
    if !calm || !attempt.exited.is_empty() {
        return None;
    }
    let device = job.step_spec(&phase.step)?.cluster.device;
    let reach = job.reach(phase);
    let anew = room(state, (device, fewest), reach.as_ref(), &BTreeSet::new(), &attempt.placements);
    let anew = anew.free.len().min(most);
    let more = anew.checked_sub(has).filter(|more| *more > 0)?;
    if somebody_waits(state) {
        return None;
    }
    Some(stop(context, id, phase, format!("{more} more slot{} free", if more == 1 { " is" } else { "s are" })))
}

/// Whether a phase waits that fits the slots there are, free or not.
fn somebody_waits(state: &State) -> bool {
    let most = |d: Device, reach: Option<&Reach<'_>>| room(state, (d, 0), reach, &BTreeSet::new(), &[]).most;
    let all = [Device::Auto, Device::Cpu, Device::Cuda].map(|d| (d, most(d, None)));
    let fits = |device: Device, need: usize| all.iter().any(|(d, most)| *d == device && need <= *most);
    queue(state).into_iter().any(|(_, job, phase)| {
        let spec = job.step_spec(&phase.step);
        spec.zip(ranks(job, phase)).is_some_and(|(spec, (fewest, _))| match job.reach(phase) {
            None => fits(spec.cluster.device, fewest),
            Some(reach) => fewest <= most(spec.cluster.device, Some(&reach)),
        })
    })
}

/// Fewest and most ranks of a phase.
pub(super) fn ranks(job: &Job, phase: &Phase) -> Option<(usize, usize)> {
    let spec = job.step_spec(&phase.step)?;
    Some(match phase.kind {
        PhaseKind::Gate => return None,
        PhaseKind::Probe | PhaseKind::Teach => (1, 1),
        // More ranks than grains would have nothing to do.
        PhaseKind::Train => (spec.cluster.ranks.min as usize, spec.cluster.ranks.max.min(spec.grains()) as usize),
    })
}

/// Phases that could start, most urgent first; with them trainings that will when their units are done, so that nobody who
/// comes later takes the slots that they need then.
pub(super) fn queue(state: &State) -> Vec<(&JobId, &Job, &Phase)> {
    let mut queue: Vec<_> = state
        .jobs
        .iter()
        .filter(|(_, j)| j.status == JobStatus::Active)
        .flat_map(|(id, j)| j.phases.iter().map(move |p| (id, j, p)))
        .filter(|(_, _, p)| p.kind != PhaseKind::Gate && p.status == PhaseStatus::Waiting)
        .filter(|(_, j, p)| j.is_unblocked(p) || j.awaits_units(p))
        .collect();
    queue.sort_by_key(|(id, j, _)| (std::cmp::Reverse(j.spec.job.priority), j.submitted_ms, (*id).clone()));
    queue
}

fn placements(state: &State, context: &Context<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut taken: BTreeSet<(NodeId, u32)> = BTreeSet::new();
    // Steps of which one unit had no room: nor have the others.
    let mut full: BTreeSet<(&JobId, &str)> = BTreeSet::new();
    for (id, job, phase) in queue(state) {
        let Some((fewest, most)) = ranks(job, phase) else { continue };
        let Some(spec) = job.step_spec(&phase.step) else { continue };
        let unit_without_room = phase.unit.is_some() && full.contains(&(id, phase.step.as_str()));
        if phase.not_before_ms > context.now || unit_without_room {
            continue;
        }
        let room = room(state, (spec.cluster.device, fewest), job.reach(phase).as_ref(), &taken, &[]);
        if room.free.len() < fewest {
            // A unit keeps nobody from slots that are of no use to it.
            if phase.unit.is_some() {
                full.insert((id, phase.step.as_str()));
            } else if room.most >= fewest {
                // It will fit when others are done: whoever comes later must not keep it waiting for ever.
                break;
            }
            continue;
        }
        if !job.is_unblocked(phase) {
            // Its units come first, and what it needs after them is kept for it.
            taken.extend(room.free.into_iter().take(fewest).map(|p| (p.node, p.slot)));
            continue;
        }
        if let Some(split) = teach::split(state, context, (id, job, phase), &room.free, most.min(room.free.len())) {
            // Its units come next, before whoever comes later.
            events.push(split);
            break;
        }
        let placements: Vec<Placement> = room.free.into_iter().take(most).collect();
        taken.extend(placements.iter().map(|p| (p.node.clone(), p.slot)));
        let generation = phase.generation + 1;
        events.push(Event::AttemptStarted {
            job: id.clone(),
            phase: phase.id.clone(),
            generation,
            placements,
            secret: secret(context.entropy, id, phase, generation),
            at: context.now,
        });
    }
    events
}

fn secret(entropy: u128, job: &JobId, phase: &Phase, generation: u64) -> String {
    let text = format!("{entropy:032x}/{job}/{}/{generation}", phase.id);
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
