//! What frozen teachers say, as map work: cut into units before a training, so that nodes beyond its gang help.
//!
//! The rule is one: a training whose teachers were measured waits for units if, when it could start for the first time,
//! more slots of its kind are idle than its gang takes, and their help lets it begin sooner by `teach_saves_ms` at least.
//! Else its ranks compute what teachers say, as they do of whatever a unit has not left.
//!
//! A unit is a phase of its own, on one slot, and is placed, lost and placed anew as every phase. What is its own: it never
//! fails its job, but is left to the training; a node on which one was given up gets no other one of the step; while units
//! are open, their training keeps its place in the queue, and slots that they are of use on, where it begins after them if it
//! can; and when that is done, they are one line of its history.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{
    hardware::kind,
    ids::{JobId, NodeId},
    spec::Source,
    teaching::Teaching,
};

use super::{
    Event, State,
    placement::{Supply, Want},
    plan::Context,
    state::{Job, Millis, Node, Phase, PhaseKind, PhaseStatus, Placement, Unit},
};

/// Nodes that may give up units of a step until the others are left to the training, too.
const BAD_NODES: usize = 1;

/// What the units of a training are of use for.
#[derive(Clone, Copy)]
pub(super) struct Taught<'a> {
    /// One of them.
    pub unit: &'a Unit,
    /// Whether any is open still.
    pub open: bool,
}

impl Unit {
    /// Whether ranks of this build learn from it, on a kind of device that computes these numbers: records of another build,
    /// which names the numbers that its machine computes, of another kind of device or of one that computes other numbers are
    /// of no use to them.
    pub(super) fn is_for(&self, build: &str, kind: &str, numbers: &str) -> bool {
        let same_numbers = self.numbers.is_empty() || self.numbers == numbers;
        self.build == build && self.device == kind && same_numbers
    }
}

/// Where a unit may run.
pub(super) struct Reach<'a> {
    unit: &'a Unit,
    /// Where others of its step were given up.
    bad: BTreeSet<&'a NodeId>,
}

impl Reach<'_> {
    /// Whether it may run on such a slot.
    pub(super) fn has(&self, id: &NodeId, node: &Node, device: &str) -> bool {
        self.unit.is_for(&node.build, kind(device), node.numbers(device)) && !self.bad.contains(id)
    }
}

impl Job {
    /// The units of a step.
    pub fn units(&self, step: &str) -> impl Iterator<Item = &Phase> {
        self.phases.iter().filter(move |p| p.kind == PhaseKind::Teach && p.step == step)
    }

    /// Whether units are open that a training waits for: then it waits for nothing else, for its probe came before them.
    pub(super) fn awaits_units(&self, phase: &Phase) -> bool {
        phase.kind == PhaseKind::Train && self.units(&phase.step).any(|unit| unit.status.is_open())
    }

    /// Where a unit may run; nothing of other phases.
    pub(super) fn reach<'a>(&'a self, phase: &'a Phase) -> Option<Reach<'a>> {
        Some(Reach { unit: phase.unit.as_ref()?, bad: self.bad_nodes(&phase.step) })
    }

    /// What the units of a training are of use for; nothing where it has none, or all were left to it.
    pub(super) fn taught<'a>(&'a self, phase: &'a Phase) -> Option<Taught<'a>> {
        if phase.kind != PhaseKind::Train {
            return None;
        }
        let unit = self.units(&phase.step).filter(|unit| !unit.is_left()).find_map(|unit| unit.unit.as_ref())?;
        Some(Taught { unit, open: self.awaits_units(phase) })
    }

    /// Nodes on which units of a step were given up.
    fn bad_nodes(&self, step: &str) -> BTreeSet<&NodeId> {
        self.units(step).filter(|unit| unit.is_left()).flat_map(|unit| &unit.nodes).collect()
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
    let (here, device) = (state.nodes.get(&slot.node)?, kind(&slot.device));
    // Who has not told of it may not know what a unit is, and another kind of device takes another time for it.
    let elsewhere = probe.ran_on.as_ref().is_some_and(|on| on.kind != device);
    if probe.nodes.first().and_then(build) != Some(&here.build) || elsewhere {
        return None;
    }
    let nodes: BTreeSet<&NodeId> = idle.iter().take(gang).map(|p| &p.node).collect();
    let beyond = idle.iter().any(|p| !nodes.contains(&p.node));
    let brought = if beyond { brought(state, job, &phase.step) } else { 0 };
    let saved = teaching.saved((gang, nodes.len()), idle.len(), brought);
    if 1_000.0 * saved < context.deadlines.teach_saves_ms as f64 {
        return None;
    }
    Some(Event::TeachingSplit {
        job: id.clone(),
        phase: phase.id.clone(),
        units: teaching.units(idle.len()),
        build: here.build.clone(),
        device: device.to_owned(),
        numbers: here.numbers(&slot.device).to_owned(),
        at: context.now,
    })
}

/// Bytes that a node must have before it can do a unit of a step.
fn brought(state: &State, job: &Job, step: &str) -> u64 {
    let Some(spec) = job.pinned_spec(step) else { return 0 };
    let data = spec.pushed().into_iter().filter_map(|digest| state.data.get(digest)).map(|set| set.size);
    let inputs = job.inputs(&spec).into_values().map(|blob| blob.size);
    // The sizes of sources are what a node says.
    let hub = job.sources(step).iter().map(Source::bytes).fold(0, u64::saturating_add);
    data.chain(inputs).fold(hub, u64::saturating_add)
}

/// Units of a job that wait in vain.
pub(super) fn left(supply: &Supply<'_>, id: &JobId, job: &Job, at: Millis) -> Vec<Event> {
    let mut events = Vec::new();
    for train in job.phases.iter().filter(|p| p.status == PhaseStatus::Waiting && job.awaits_units(p)) {
        let waiting: Vec<&Phase> = job.units(&train.step).filter(|p| p.status == PhaseStatus::Waiting).collect();
        let Some(reason) = waiting.first().and_then(|unit| in_vain(supply, job, train, unit)) else { continue };
        let event = |p: &Phase| Event::UnitLeft { job: id.clone(), phase: p.id.clone(), reason: reason.into(), at };
        events.extend(waiting.into_iter().map(event));
    }
    events
}

/// Why a unit, and with it all that wait beside it, is not worth waiting for, if so.
fn in_vain(supply: &Supply<'_>, job: &Job, train: &Phase, unit: &Phase) -> Option<&'static str> {
    if job.bad_nodes(&train.step).len() > BAD_NODES {
        return Some("others were given up on two nodes");
    }
    if job.units(&train.step).any(|p| p.status == PhaseStatus::Running) {
        return None;
    }
    let none = BTreeSet::new();
    // What the ranks could begin on if there were no units.
    let free = |phase: &Phase| {
        let want = Want::of(job, phase).map(|want| Want { taught: None, ..want });
        want.is_some_and(|want| supply.room(&want, &none, &none).free.len() >= want.need)
    };
    let elsewhere = !free(unit) && free(train);
    elsewhere.then_some("no slot is free that computes what its ranks would, and they can begin on others")
}

/// What units of a step that are over have come to, in a line.
pub fn came_to(nodes: &BTreeMap<NodeId, Node>, units: &[&Phase]) -> String {
    let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
    for node in units.iter().filter(|unit| unit.result.is_some()).filter_map(|unit| unit.nodes.first()) {
        *by_node.entry(nodes.get(node).map_or(node.as_str(), |n| &n.name)).or_default() += 1;
    }
    let mut parts: Vec<String> = by_node.into_iter().map(|(name, done)| format!("{done} done on `{name}`")).collect();
    let again: u64 = units.iter().map(|unit| unit.generation.saturating_sub(1)).sum();
    let left = units.iter().filter(|unit| unit.is_left()).count();
    parts.extend((again > 0).then(|| format!("{again} begun anew")));
    parts.extend((left > 0).then(|| format!("{left} left to the training")));
    format!("{} units of what teachers say: {}", units.len(), parts.join(", "))
}
