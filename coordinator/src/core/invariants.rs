//! What is true of every state, whatever happened. Property tests, scenarios and debug builds check it.

use std::collections::BTreeSet;

use super::state::{Job, JobStatus, Phase, PhaseKind, PhaseStatus, State};

/// The first thing that is wrong with a state.
pub fn check(state: &State) -> Result<(), String> {
    let mut held = BTreeSet::new();
    for (node, slot) in state.held() {
        if !held.insert((node, slot)) {
            return Err(format!("slot {slot} of {node} is held twice"));
        }
    }
    for (id, job) in &state.jobs {
        for phase in &job.phases {
            let at = format!("{id} {}", phase.id);
            if (phase.status == PhaseStatus::Running) != phase.attempt.is_some() {
                return Err(format!("{at}: status {:?} with attempt {}", phase.status, phase.attempt.is_some()));
            }
            if phase.attempt.is_some() && !job.is_unblocked(phase) {
                return Err(format!("{at} runs before what it needs"));
            }
            if phase.attempt.is_some() && job.status != JobStatus::Active {
                return Err(format!("{at} runs although the job is over"));
            }
            if let Some(attempt) = &phase.attempt {
                let (fewest, most) = super::plan::ranks(job, phase).unwrap_or((0, 0));
                if !(fewest..=most).contains(&attempt.placements.len()) {
                    return Err(format!("{at}: a gang of {} instead of {fewest} to {most}", attempt.placements.len()));
                }
            }
            let lost = phase.needs.iter().filter_map(|n| job.phase(n)).any(|n| n.status.is_lost());
            if lost && job.status == JobStatus::Active && phase.status.is_open() {
                return Err(format!("{at} waits for what will not come"));
            }
            if phase.status == PhaseStatus::Skipped && !lost {
                return Err(format!("{at} is not run for no reason"));
            }
            if let Err(odd) = shared_out(job, phase) {
                return Err(format!("{at}: {odd}"));
            }
            if phase.checkpoints.windows(2).any(|w| w[0].0 <= w[1].0) {
                return Err(format!("{at}: checkpoints do not grow"));
            }
        }
        let done = job.phases.iter().all(|p| p.status == PhaseStatus::Succeeded);
        if job.status == JobStatus::Succeeded && !done {
            return Err(format!("{id} succeeded without all of its phases"));
        }
        if (job.status == JobStatus::Active) == job.finished_ms.is_some() {
            return Err(format!("{id}: {:?} with end {:?}", job.status, job.finished_ms));
        }
    }
    Ok(())
}

/// What is true of work that is shared out.
fn shared_out(job: &Job, phase: &Phase) -> Result<(), String> {
    if (phase.kind == PhaseKind::Teach) != phase.unit.is_some() {
        return Err(format!("{:?} with unit {:?}", phase.kind, phase.unit));
    }
    if phase.output.is_some() && phase.unit.is_none() {
        return Err("it keeps an output and is no unit".into());
    }
    if phase.kind != PhaseKind::Train {
        return Ok(());
    }
    let (mut parts, mut of) = (Vec::new(), 0);
    for (other, unit) in job.units(&phase.step).filter_map(|p| Some((p, p.unit.as_ref()?))) {
        parts.push(unit.part);
        of = unit.of;
        if !phase.needs.contains(&other.id) {
            return Err(format!("it does not wait for {}", other.id));
        }
        if phase.status == PhaseStatus::Succeeded {
            return Err(format!("{} is there, and nobody needs it any more", other.id));
        }
    }
    // Each part once.
    if parts != (0..of).collect::<Vec<u32>>() { Err(format!("units {parts:?} of {of}")) } else { Ok(()) }
}
