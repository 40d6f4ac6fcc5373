//! The state as messages.

use std::collections::BTreeMap;

use tl_proto::{
    compare::Comparison,
    hardware::{Hardware, kind},
    ids::{JobId, NodeId, PhaseId},
    v1,
};

use super::brief::brief;
use crate::{
    core::{self, Job, JobStatus, Node, NodeStatus, PhaseKind, PhaseStatus, Slot, State},
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
pub fn job(state: &State, records: &Records, id: &JobId, now: u64, detail: Detail) -> Option<v1::Job> {
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
        phases: phases(state, records, (id, job), whole),
        failure: job.failure.clone().map(Into::into),
        spec_json: if whole { serde_json::to_vec(&job.spec).unwrap_or_default() } else { Vec::new() },
        owner: job.owner.clone(),
        project: job.spec.job.project.clone(),
        compared_json: compared.and_then(|c| serde_json::to_vec(&c).ok()).unwrap_or_default(),
    })
}

/// The phases of a job; the units of a step are one.
fn phases(state: &State, records: &Records, (id, job): (&JobId, &Job), whole: bool) -> Vec<v1::Phase> {
    let mut out: Vec<v1::Phase> = Vec::new();
    for one in &job.phases {
        if one.unit.is_none() {
            let mut shown = phase(records, id, one, whole);
            if job.units(&one.step).any(|unit| one.needs.contains(&unit.id)) {
                let unit = |need: &String| job.units(&one.step).any(|unit| unit.id.0 == *need);
                shown.needs.retain(|need| !unit(need));
                shown.needs.push(teach(&one.step).to_string());
            }
            out.push(shown);
        } else if out.last().is_none_or(|last| last.id != teach(&one.step).0) {
            out.push(units(state, &job.units(&one.step).collect::<Vec<_>>(), one, whole));
        }
    }
    out
}

/// What the units of a step are called together.
fn teach(step: &str) -> PhaseId {
    PhaseId::new(step, PhaseKind::Teach.as_str())
}

/// The units of a step, of which `first` is one.
fn units(state: &State, all: &[&core::Phase], first: &core::Phase, whole: bool) -> v1::Phase {
    let id = teach(&first.step).to_string();
    let generation = all.iter().map(|unit| unit.generation).max().unwrap_or(0);
    let with = |status: PhaseStatus| all.iter().filter(move |unit| unit.status == status);
    let any = |status: PhaseStatus| with(status).next().is_some();
    let done = with(PhaseStatus::Succeeded).count();
    let order = [PhaseStatus::Running, PhaseStatus::Waiting, PhaseStatus::Failed, PhaseStatus::Skipped];
    let status = order.into_iter().find(|status| any(*status)).unwrap_or(PhaseStatus::Succeeded);
    let place = |unit: &&core::Phase| {
        let at = unit.attempt.as_ref()?.placements.first()?;
        let rank = unit.unit.as_ref().map_or(0, |unit| unit.part);
        Some(v1::Placement { rank, node_id: at.node.to_string(), slot: at.slot })
    };
    let (phase, name) = (id.clone(), PhaseKind::Teach.as_str().to_owned());
    let activity = v1::Activity { phase, generation, name, done: done as u64, total: all.len() as u64 };
    v1::Phase {
        id,
        step: first.step.clone(),
        kind: PhaseKind::Teach.as_str().into(),
        status: word(status).into(),
        needs: first.needs.iter().map(ToString::to_string).collect(),
        generation,
        ranks: all.iter().filter_map(place).collect(),
        activity: Some(activity),
        result_json: Vec::new(),
        history: if whole { told(state, all) } else { Vec::new() },
    }
}

/// What happened to units that did not go as usual, and, in the end, what all have come to. Whoever follows sees lines come at
/// the end only: what is told of a unit begins when it no longer goes as usual.
fn told(state: &State, all: &[&core::Phase]) -> Vec<String> {
    let mut lines: Vec<(u64, String)> = Vec::new();
    // One that went as usual has begun and is done.
    for unit in all.iter().filter(|unit| unit.history.len() > 2 || unit.is_left()) {
        let part = unit.unit.as_ref().map_or(0, |unit| unit.part + 1);
        let since = unit.history.get(2).or(unit.history.last()).map_or(0, |(at, _)| *at);
        lines.extend(unit.history.iter().map(|(at, text)| (since.max(*at), format!("unit {part}: {text}"))));
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut told: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    if all.iter().all(|unit| unit.status == PhaseStatus::Succeeded) {
        told.push(core::came_to(&state.nodes, all));
    }
    told
}

fn word(status: PhaseStatus) -> &'static str {
    match status {
        PhaseStatus::Waiting => "waiting",
        PhaseStatus::Running => "running",
        PhaseStatus::Succeeded => "succeeded",
        PhaseStatus::Failed => "failed",
        PhaseStatus::Skipped => "skipped",
    }
}

fn phase(records: &Records, job: &JobId, phase: &core::Phase, whole: bool) -> v1::Phase {
    let placements = phase.attempt.iter().flat_map(|a| &a.placements).enumerate();
    let result = phase.result.as_ref().filter(|_| whole);
    v1::Phase {
        id: phase.id.to_string(),
        step: phase.step.clone(),
        kind: phase.kind.as_str().into(),
        status: word(phase.status).into(),
        needs: phase.needs.iter().map(ToString::to_string).collect(),
        generation: phase.generation,
        ranks: placements
            .map(|(rank, p)| v1::Placement { rank: rank as u32, node_id: p.node.to_string(), slot: p.slot })
            .collect(),
        activity: records.activity(job, &phase.id),
        result_json: result.and_then(|r| serde_json::to_vec(&brief(r)).ok()).unwrap_or_default(),
        history: phase.history.iter().filter(|_| whole).map(|(_, text)| text.clone()).chain(warnings(result)).collect(),
    }
}

/// What a probe has to say of a job that begins all the same: `tlctl plan` says it before, and who has not asked hears it now.
fn warnings(result: Option<&serde_json::Value>) -> impl Iterator<Item = String> {
    let all = result.and_then(|r| r["warnings"].as_array()).into_iter().flatten();
    all.filter_map(|w| w.as_str()).map(|w| format!("warning: {w}"))
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
    let withheld = core::withheld(state, id);
    let (hardware, used) = (seen(node, &withheld), node.slots.iter().filter(|s| !withheld.contains_key(&s.index)));
    let (slots, device) = (used.clone().count() as u32, kinds(used));
    Some(v1::Node {
        id: id.to_string(),
        name: node.name.clone(),
        status: status.into(),
        slots,
        busy: state.held().iter().filter(|(n, _)| *n == id).count() as u32,
        device,
        build: node.build.clone(),
        seen_ms: node.seen_ms,
        machine: hardware.summary(),
        hardware: Some(hardware.into()),
    })
}

/// What a node is made of, with what has been found of its GPUs since it said so.
fn seen(node: &Node, withheld: &BTreeMap<u32, String>) -> Hardware {
    let mut hardware = node.hardware.clone();
    for slot in &node.slots {
        let index = node.gpu(&slot.device).map(|gpu| gpu.index);
        let known = hardware.gpus.iter_mut().find(|gpu| Some(gpu.index) == index);
        if let (Some(gpu), Some(problem)) = (known, withheld.get(&slot.index)) {
            gpu.problem.clone_from(problem);
        }
    }
    hardware
}

/// The kinds of slots, each once.
fn kinds<'a>(slots: impl Iterator<Item = &'a Slot>) -> String {
    let mut kinds: Vec<&str> = slots.map(|slot| kind(&slot.device)).collect();
    kinds.dedup();
    kinds.join(", ")
}

#[cfg(test)]
mod tests {
    use tl_proto::{hardware::Gpu, spec::parse};

    use super::*;
    use crate::core::{End, Event, Placement, apply};

    const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune" }
data = { format = "generated", train = "source", val = "source", batch = 32 }
model = { backbone = "small_cnn" }
stage = [{ name = "all", epochs = 1, train = ["*"], lr = 0.1 }]
"#;

    #[test]
    fn the_units_of_a_step_are_one_phase_that_says_who_has_done_them() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (id, node, at) = (JobId::from_bits(1), NodeId::from_bits(1), 1);
        let mut state = State::default();
        let phase = |kind: &str| PhaseId::new("main", kind);
        let done = |kind: &str| {
            let (job, result) = (id.clone(), serde_json::Value::Null);
            Event::PhaseSucceeded { job, phase: phase(kind), generation: 1, result, at }
        };
        let starts = |kind: &str, at: u64| {
            let (job, secret) = (id.clone(), String::new());
            let (address, device, incarnation) = ("h:1".to_owned(), "cpu".to_owned(), "a".to_owned());
            let placement = Placement { node: node.clone(), incarnation, slot: 0, address, weight: 1, device };
            let placements = vec![placement];
            Event::AttemptStarted { job, phase: phase(kind), generation: 1, placements, secret, at }
        };
        let slot = Slot { index: 0, device: "cpu".into(), address: "h:1".into(), weight: 1 };
        for event in [
            Event::Submitted {
                job: id.clone(),
                key: "k".into(),
                owner: "o".into(),
                spec: Box::new(parse(JOB).unwrap()),
                plan_only: false,
                models: BTreeMap::new(),
                at,
            },
            Event::NodeJoined {
                node: node.clone(),
                name: "n1".into(),
                incarnation: "a".into(),
                build: "b".into(),
                slots: vec![slot],
                catalog: Box::default(),
                hardware: Box::default(),
            },
            done("probe"),
            Event::TeachingSplit {
                job: id.clone(),
                phase: phase("train"),
                units: 3,
                build: "b".into(),
                device: "cpu".into(),
                numbers: String::new(),
                at,
            },
            starts("teach-1", at),
            done("teach-1"),
            starts("teach-2", at),
        ] {
            apply(&mut state, &event);
        }
        let shown = |state: &State| job(state, &records, &id, 1, Detail::Whole).unwrap().phases;
        let phases = shown(&state);
        let line = |p: &v1::Phase| (p.id.clone(), p.status.clone(), p.needs.join(" "));
        let lines: Vec<_> = phases.iter().map(line).collect();
        let want = [
            ("main/probe", "succeeded", ""),
            ("main/teach", "running", "main/probe"),
            ("main/train", "waiting", "main/probe main/teach"),
        ];
        assert_eq!(lines, want.map(|(id, status, needs)| (id.to_owned(), status.to_owned(), needs.to_owned())));
        let activity = phases[1].activity.clone().unwrap();
        assert_eq!((activity.phase.as_str(), activity.done, activity.total), ("main/teach", 1, 3));
        assert_eq!(phases[1].ranks.iter().map(|r| r.rank).collect::<Vec<_>>(), [1]);
        assert!(phases[1].history.is_empty(), "all goes as usual: {:?}", phases[1].history);
        // Whoever follows sees lines come at the end only, also those of a unit that ran before another went wrong.
        let again = |kind: &str, at: u64| {
            let (job, end) = (id.clone(), End::Replan { reason: "the node is drained".into() });
            Event::AttemptEnded { job, phase: phase(kind), generation: 1, end, at }
        };
        let reason = "it is too large".to_owned();
        let mut seen: Vec<String> = Vec::new();
        for event in [
            starts("teach-3", 2),
            again("teach-3", 5),
            starts("teach-3", 6),
            again("teach-2", 7),
            starts("teach-2", 8),
            done("teach-2"),
            Event::UnitLeft { job: id.clone(), phase: phase("teach-3"), reason, at: 9 },
        ] {
            apply(&mut state, &event);
            let now = shown(&state)[1].history.clone();
            assert!(now.starts_with(&seen), "{seen:?} {now:?}");
            seen = now;
        }
        let phases = shown(&state);
        assert_eq!(phases[1].status, "succeeded");
        let told = &phases[1].history;
        assert!(told.contains(&"unit 3: left to the training: it is too large".to_owned()), "{told:?}");
        assert_eq!(told.last().unwrap(), "3 units of what teachers say: 2 done on `n1`, 1 left to the training");
    }

    #[test]
    fn a_look_at_a_job_names_a_few_of_many_classes_and_what_its_probe_warns_of_and_a_line_of_a_list_neither() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (id, key, owner, at) = (JobId::from_bits(1), "k".to_owned(), "o".to_owned(), 1);
        let (spec, models) = (Box::new(parse(JOB).unwrap()), BTreeMap::new());
        let names: Vec<String> = (0..10_000).map(|i| format!("class {i}")).collect();
        let phase = PhaseId::new("main", "probe");
        let result = serde_json::json!({ "classes": names, "warnings": ["odd", "and odder"] });
        let mut state = State::default();
        apply(&mut state, &Event::Submitted { job: id.clone(), key, owner, spec, plan_only: false, models, at });
        apply(&mut state, &Event::PhaseSucceeded { job: id.clone(), phase, generation: 1, result, at });
        let shown = |detail| job(&state, &records, &id, 1, detail).unwrap().phases[0].result_json.clone();
        let whole: serde_json::Value = serde_json::from_slice(&shown(Detail::Whole)).unwrap();
        assert_eq!((&whole["classes"][1], &whole["classes_total"]), (&"class 1".into(), &10_000.into()));
        assert!(whole["classes"][100].is_null() && shown(Detail::Line).is_empty());
        let told = |detail| job(&state, &records, &id, 1, detail).unwrap().phases[0].history.clone();
        assert!(told(Detail::Whole).ends_with(&["warning: odd".to_owned(), "warning: and odder".to_owned()]));
        assert!(told(Detail::Line).is_empty());
    }

    #[test]
    fn a_gpu_that_works_no_more_or_that_another_node_offers_is_no_slot_and_says_why() {
        let mut state = State::default();
        let joined = |n: u128| {
            let slot = |index, device: &str| Slot { index, device: device.into(), address: "h:1".into(), weight: 1 };
            let gpu = Gpu { name: "H100".into(), uuid: "GPU-1".into(), memory: 80 << 30, ..Gpu::default() };
            Event::NodeJoined {
                node: NodeId::from_bits(n),
                name: format!("n{n}"),
                incarnation: "a".into(),
                build: "b".into(),
                slots: vec![slot(0, "cuda:0"), slot(1, "cpu")],
                catalog: Box::default(),
                hardware: Box::new(Hardware { cores: 8, gpus: vec![gpu], ..Hardware::default() }),
            }
        };
        for n in [2, 1] {
            apply(&mut state, &joined(n));
        }
        let shown = |state: &State, n: u128| {
            let node = super::node(state, &NodeId::from_bits(n)).unwrap();
            let problem = node.hardware.unwrap().gpus[0].problem.clone();
            (node.slots, node.device, node.machine.ends_with(", not used"), problem)
        };
        let why = "GPU 0 is the one that node `n2` offers; `--gpus` shares the GPUs of a machine out among its workers";
        assert_eq!(shown(&state, 2), (2, "cuda, cpu".into(), false, String::new()), "it came first");
        assert_eq!(shown(&state, 1), (1, "cpu".into(), true, why.into()));
        let (node, problem) = (NodeId::from_bits(2), "GPU 0 is gone".to_owned());
        apply(&mut state, &Event::SlotJudged { node, slot: 0, problem: problem.clone() });
        assert_eq!(shown(&state, 2), (1, "cpu".into(), true, problem));
    }
}
