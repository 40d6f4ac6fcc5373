//! What frozen teachers say, as map work: cut into units before a training, so that nodes beyond its gang help.
//!
//! The rule is one: a training whose teachers were measured waits for units if, when it could start for the first time,
//! more slots of its kind are idle than its gang takes, and their help lets it begin sooner by `teach_saves_ms` at least.
//! Else its ranks compute what teachers say, as they do of whatever a unit has not left.
//!
//! A unit is a phase of its own, on one slot. So its lease is that of its node, and losses, silence, drains, cancelled and
//! retried jobs, restarts of the coordinator and the reasons of waits are those of every phase; there is nothing else.

use tl_proto::{
    hardware::kind,
    ids::{JobId, NodeId},
    teaching::Teaching,
};

use super::{
    Event, State,
    plan::Context,
    state::{Job, Millis, NodeStatus, Phase, PhaseKind, PhaseStatus, Placement, Unit},
};

impl Unit {
    /// Whether it may run on such a slot: records of others are of no use to those that wait for it.
    pub(super) fn runs_on(&self, build: &str, device: &str) -> bool {
        self.build == build && self.device == kind(device)
    }
}

impl Job {
    /// The units of a step.
    pub fn units(&self, step: &str) -> impl Iterator<Item = &Phase> {
        self.phases.iter().filter(move |p| p.kind == PhaseKind::Teach && p.step == step)
    }

    /// What the probe of a step has found of its teachers' work.
    pub(super) fn teaching(&self, step: &str) -> Option<Teaching> {
        let probe = self.phases.iter().find(|p| p.step == step && p.kind == PhaseKind::Probe)?;
        serde_json::from_value(probe.result.as_ref()?.get("teaching")?.clone()).ok()
    }
}

/// The units that a training is to wait for, if it is worth it: it could start now on the first `gang` of the `idle` slots.
pub(super) fn split(
    state: &State,
    context: &Context<'_>,
    (id, job, phase): (&JobId, &Job, &Phase),
    idle: &[Placement],
    gang: usize,
) -> Option<Event> {
    let first_time = phase.kind == PhaseKind::Train && phase.generation == 0;
    if !first_time || idle.len() <= gang || job.units(&phase.step).next().is_some() {
        return None;
    }
    let teaching = job.teaching(&phase.step)?;
    let (slot, probe) = (idle.first()?, job.phases.iter().find(|p| p.step == phase.step)?);
    let build = |node: &NodeId| state.nodes.get(node).map(|n| &n.build);
    let here = build(&slot.node)?;
    // Who has not told of it may not know what a unit is.
    if probe.nodes.first().and_then(build) != Some(here) {
        return None;
    }
    if 1_000.0 * teaching.saved(gang, idle.len()) < context.deadlines.teach_saves_ms as f64 {
        return None;
    }
    Some(Event::TeachingSplit {
        job: id.clone(),
        phase: phase.id.clone(),
        units: teaching.units(idle.len()),
        build: here.clone(),
        device: kind(&slot.device).to_owned(),
        at: context.now,
    })
}

/// Units of a job for which no node is there any more.
pub(super) fn left(state: &State, id: &JobId, job: &Job, at: Millis) -> Vec<Event> {
    let there = |unit: &Unit| {
        let mut usable = state.nodes.values().filter(|n| n.status != NodeStatus::Lost && !n.draining);
        usable.any(|n| n.slots.iter().any(|s| unit.runs_on(&n.build, &s.device)))
    };
    let waiting = job.phases.iter().filter(|p| p.status == PhaseStatus::Waiting);
    let lost = waiting.filter(|p| p.unit.as_ref().is_some_and(|unit| !there(unit)));
    let reason = "no node is left that computes what its ranks would";
    let event = |p: &Phase| Event::UnitLeft { job: id.clone(), phase: p.id.clone(), reason: reason.into(), at };
    lost.map(event).collect()
}
