//! What follows from a state: losses, ends of attempts, finished jobs, placements, growth.

use std::collections::BTreeSet;

use tl_proto::{
    deadlines::Deadlines,
    failure::{Failure, FailureClass},
    ids::JobId,
    spec::{Device, JobSpec},
};

use super::{
    End, Event, State, gate,
    placement::{Seat, Supply, Want},
    round::Round,
    state::{Attempt, Job, JobStatus, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus, Placement},
    teach,
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
    let supply = &Supply::of(state);
    for (id, job) in state.jobs.iter().filter(|(_, j)| j.status == JobStatus::Active) {
        for phase in &job.phases {
            if let Some(attempt) = &phase.attempt {
                events.extend(end_of((state, supply), context, id, phase, attempt));
            }
        }
        events.extend(teach::left(supply, id, job, context.now));
        events.extend(gate::judge(id, job, context.now));
        events.extend(over(id, job, context.now));
    }
    if events.is_empty() {
        events = placements(state, supply, context);
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
fn end_of(
    (state, supply): (&State, &Supply<'_>),
    context: &Context<'_>,
    id: &JobId,
    phase: &Phase,
    attempt: &Attempt,
) -> Option<Event> {
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
                .or_else(|| grow((state, supply), context, id, phase, attempt));
        }
    };
    let count = phase.failures.get(&failure.class).copied().unwrap_or(0) + 1;
    // Whoever asked for a plan hears what is wrong, and can ask again.
    let told = matches!(failure.class, FailureClass::Crash | FailureClass::Disk)
        && state.jobs.get(id).is_some_and(|job| job.plan_only);
    let spent = told || count > failure.class.retries();
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

/// A gang that would be larger if it were placed anew on devices of its kind is stopped at a step, after it has run
/// undisturbed for a while, and only if nobody waits who could ever have the slots.
fn grow(
    (state, supply): (&State, &Supply<'_>),
    context: &Context<'_>,
    id: &JobId,
    phase: &Phase,
    attempt: &Attempt,
) -> Option<Event> {
    let job = state.jobs.get(id)?;
    let (_, most) = ranks(job, phase)?;
    let calm = context.now.saturating_sub(attempt.started_ms) >= context.deadlines.grow_cooldown_ms;
    if !calm || !attempt.exited.is_empty() {
        return None;
    }
    let (want, own) = (Want::kept(job, phase, &attempt.placements)?, supply.seats(&attempt.placements));
    let anew: Vec<Seat> = supply.room(&want, &BTreeSet::new(), &own).free.into_iter().take(most).collect();
    let more = anew.len().checked_sub(attempt.placements.len()).filter(|more| *more > 0)?;
    let others: BTreeSet<Seat> = anew.into_iter().filter(|seat| !own.contains(seat)).collect();
    if somebody_waits(state, supply, &others) {
        return None;
    }
    Some(stop(context, id, phase, format!("{more} more slot{} free", if more == 1 { " is" } else { "s are" })))
}

/// Whether a phase waits that could be placed on one of some slots, now or when others are done.
fn somebody_waits(state: &State, supply: &Supply<'_>, seats: &BTreeSet<Seat>) -> bool {
    let none = BTreeSet::new();
    // Of many that want the same, one is asked.
    let mut asked: Vec<(Device, bool, bool, usize)> = Vec::new();
    queue(state).into_iter().filter_map(|(_, job, phase)| Want::of(job, phase)).any(|want| {
        let same = (want.device, want.over_nccl, want.patient, want.need);
        let plain = want.reach.is_none() && want.taught.is_none();
        if plain && asked.contains(&same) {
            return false;
        }
        if plain {
            asked.push(same);
        }
        supply.room(&want, &none, &none).usable.iter().any(|seat| seats.contains(seat))
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

fn placements(state: &State, supply: &Supply<'_>, context: &Context<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut round = Round::new(supply, context.now);
    for (id, job, phase) in queue(state) {
        if round.is_over() {
            break;
        }
        let Some((free, (_, most))) = round.turn((id, job, phase)).zip(ranks(job, phase)) else { continue };
        let idle: Vec<Placement> = free.iter().map(|seat| supply.placement(*seat)).collect();
        if let Some(split) = teach::split(state, context, (id, job, phase), &idle, most.min(idle.len())) {
            // Its units come next, before whoever comes later.
            events.push(split);
            break;
        }
        round.take(free.into_iter().take(most));
        let generation = phase.generation + 1;
        events.push(Event::AttemptStarted {
            job: id.clone(),
            phase: phase.id.clone(),
            generation,
            placements: idle.into_iter().take(most).collect(),
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
