//! The state as messages.

use tl_proto::{compare::Comparison, ids::NodeId, v1};

use crate::{
    core::{self, JobStatus, NodeStatus, PhaseStatus, State},
    records::Records,
};

/// How much of a job is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A line of a list: without its job file, results and history, of which a list would hold too many.
    Line,
    /// All of it.
    Whole,
}

/// A job as users see it.
pub fn job(state: &State, records: &Records, id: &tl_proto::ids::JobId, now: u64, detail: Detail) -> Option<v1::Job> {
    let job = state.jobs.get(id)?;
    let begun = job.phases.iter().any(|p| p.status != PhaseStatus::Waiting || p.generation > 0);
    let status = match job.status {
        JobStatus::Active if begun => "running",
        JobStatus::Active => "queued",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    };
    let why = core::why(state, id, now);
    let whole = detail == Detail::Whole;
    let compared = if whole { Comparison::of(&job.spec, &job.figures()) } else { None };
    Some(v1::Job {
        id: id.to_string(),
        name: job.spec.job.name.clone(),
        kind: job.spec.job.kind.clone(),
        status: status.into(),
        priority: job.spec.job.priority,
        submitted_ms: job.submitted_ms,
        finished_ms: job.finished_ms.unwrap_or(0),
        why: why.as_ref().map(ToString::to_string).unwrap_or_default(),
        why_code: why.as_ref().map(|w| w.code().to_owned()).unwrap_or_default(),
        phases: job.phases.iter().map(|p| phase(records, id, p, whole)).collect(),
        failure: job.failure.clone().map(Into::into),
        spec_json: if whole { serde_json::to_vec(&job.spec).unwrap_or_default() } else { Vec::new() },
        owner: job.owner.clone(),
        project: job.spec.job.project.clone(),
        compared_json: compared.and_then(|c| serde_json::to_vec(&c).ok()).unwrap_or_default(),
    })
}

fn phase(records: &Records, job: &tl_proto::ids::JobId, phase: &core::Phase, whole: bool) -> v1::Phase {
    let status = match phase.status {
        PhaseStatus::Waiting => "waiting",
        PhaseStatus::Running => "running",
        PhaseStatus::Succeeded => "succeeded",
        PhaseStatus::Failed => "failed",
        PhaseStatus::Skipped => "skipped",
    };
    let placements = phase.attempt.iter().flat_map(|a| &a.placements).enumerate();
    let result = phase.result.as_ref().filter(|_| whole);
    v1::Phase {
        id: phase.id.to_string(),
        step: phase.step.clone(),
        kind: phase.kind.as_str().into(),
        status: status.into(),
        needs: phase.needs.iter().map(ToString::to_string).collect(),
        generation: phase.generation,
        ranks: placements
            .map(|(rank, p)| v1::Placement { rank: rank as u32, node_id: p.node.to_string(), slot: p.slot })
            .collect(),
        activity: records.activity(job, &phase.id),
        result_json: result.and_then(|r| serde_json::to_vec(r).ok()).unwrap_or_default(),
        history: phase.history.iter().filter(|_| whole).map(|(_, text)| text.clone()).collect(),
    }
}

/// A node as users see it.
pub fn node(state: &State, id: &NodeId) -> Option<v1::Node> {
    let node = state.nodes.get(id)?;
    let status = match node.status {
        NodeStatus::Ready if node.draining => "draining",
        NodeStatus::Ready => "ready",
        NodeStatus::Unknown => "unknown",
        NodeStatus::Lost => "lost",
    };
    Some(v1::Node {
        id: id.to_string(),
        name: node.name.clone(),
        status: status.into(),
        slots: node.slots.len() as u32,
        busy: state.held().iter().filter(|(n, _)| *n == id).count() as u32,
        device: node.slots.first().map(|s| s.device.clone()).unwrap_or_default(),
        build: node.build.clone(),
        seen_ms: node.seen_ms,
        machine: node.hardware.summary(),
        hardware: Some(node.hardware.clone().into()),
    })
}
