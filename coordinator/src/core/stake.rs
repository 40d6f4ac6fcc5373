//! Which blobs an event may leave without use.

use super::{Event, State, state::PhaseKind};

/// Blobs that nobody may need once `event` is applied.
pub fn blobs_at_stake(state: &State, event: &Event) -> Vec<String> {
    match event {
        Event::CheckpointReady { job, phase, .. } | Event::PhaseSucceeded { job, phase, .. } => {
            let job = state.jobs.get(job);
            let changed = job.and_then(|j| j.phase(phase));
            let checkpoints = changed.into_iter().flat_map(|p| &p.checkpoints).map(|(_, b)| b);
            // What units have left goes with the end of their training.
            let ends = matches!(event, Event::PhaseSucceeded { .. });
            let trained = job.filter(|_| ends && changed.is_some_and(|p| p.kind == PhaseKind::Train));
            let units = trained.into_iter().flat_map(|j| j.units(phase.step())).filter_map(|p| p.output.as_ref());
            checkpoints.chain(units).map(|b| b.digest.clone()).collect()
        }
        Event::ArtifactReady { job, phase, name, .. } => {
            let job = state.jobs.get(job);
            let made = job.into_iter().flat_map(|j| &j.artifacts);
            let older = made.filter(|a| a.step == phase.step() && a.name == *name).map(|a| &a.blob);
            let unit = job.and_then(|j| j.phase(phase)).and_then(|p| p.output.as_ref());
            older.chain(unit).map(|b| b.digest.clone()).collect()
        }
        Event::JobRemoved { job } => {
            state.jobs.get(job).map(|j| j.blobs().map(|b| b.digest.clone()).collect()).unwrap_or_default()
        }
        Event::DataRemoved { digest } => vec![digest.clone()],
        _ => Vec::new(),
    }
}
