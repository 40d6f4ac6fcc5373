//! Pipelines: what a failed step takes with it, and gates.

use tl_proto::{compare::Comparison, spec::StepSection};

use super::*;

/// A pipeline: steps with what they need and their gates.
fn pipeline(steps: &[(&str, &[&str], &[&str])]) -> JobSpec {
    let mut outer = spec("1", 0);
    outer.job.kind = JobSpec::PIPELINE.into();
    let step = |(id, needs, gates): &(&str, &[&str], &[&str])| StepSection {
        id: (*id).into(),
        needs: needs.iter().map(|n| (*n).into()).collect(),
        gate: tl_proto::spec::Gates(gates.iter().map(|g| g.parse().unwrap()).collect()),
        spec: Some(Box::new(spec("1", 0))),
        ..StepSection::default()
    };
    outer.step = steps.iter().map(step).collect();
    outer
}

fn phase<'a>(w: &'a World, step: &str, kind: &str) -> &'a Phase {
    w.state.jobs[&job(1)].phase(&PhaseId::new(step, kind)).unwrap()
}

fn status(w: &World, step: &str, kind: &str) -> PhaseStatus {
    phase(w, step, kind).status
}

/// What an agent says of the running attempt of a phase.
fn done(w: &mut World, step: &str, kind: &str, accuracy: f64) {
    let (id, known) = (PhaseId::new(step, kind), phase(w, step, kind));
    let generation = known.generation;
    let placed = known.attempt.as_ref().unwrap_or_else(|| panic!("{id} does not run")).placements[0].clone();
    let (node, incarnation) = (placed.node, placed.incarnation);
    if kind == "train" {
        let (phase, name, node) = (id.clone(), Artifact::MODEL.into(), node.clone());
        w.command(Command::Artifact { job: job(1), phase, generation, name, blob: blob(), node }).unwrap();
    }
    let result = serde_json::json!({ "metrics": { "val.accuracy": accuracy, "val.loss": 1.0 } });
    w.command(Command::Result { job: job(1), phase: id, generation, result, node, incarnation }).unwrap();
    w.plan();
}

/// A step from its probe to its end.
fn trained(w: &mut World, step: &str, accuracy: f64) {
    done(w, step, "probe", 0.0);
    done(w, step, "train", accuracy);
}

fn broken(w: &mut World, step: &str, kind: &str) {
    let (id, known) = (PhaseId::new(step, kind), phase(w, step, kind));
    let (generation, placed) = (known.generation, known.attempt.as_ref().unwrap().placements[0].clone());
    let failure = Some(Failure::user("the data is not there", "look"));
    let (node, incarnation) = (placed.node, placed.incarnation);
    w.command(Command::Exited { job: job(1), phase: id, generation, rank: 0, failure, node, incarnation }).unwrap();
    w.plan();
}

fn says(w: &World) -> String {
    why(&w.state, &job(1), w.now).unwrap().to_string()
}

fn with(steps: &[(&str, &[&str], &[&str])], slots: u32) -> World {
    let mut w = World::new();
    w.join(1, "a", slots).unwrap();
    w.submit_spec(1, pipeline(steps));
    w
}

#[test]
fn a_gate_that_holds_lets_the_next_step_start_and_says_by_how_much() {
    let mut w = with(&[("a", &[], &["val.accuracy >= 0.9", "val.loss < 2"]), ("b", &["a"], &[])], 1);
    assert_eq!(says(&w), "running: a/probe; `b` waits for a/gate");
    trained(&mut w, "a", 0.93);
    assert_eq!((status(&w, "a", "gate"), status(&w, "b", "probe")), (PhaseStatus::Succeeded, PhaseStatus::Running));
    let said = &phase(&w, "a", "gate").history[0].1;
    assert_eq!(said, "holds: val.accuracy is 0.9300, >= 0.9; val.loss is 1.0000, < 2");
    trained(&mut w, "b", 0.1);
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded, "a gate is the step's own");
}

#[test]
fn a_gate_that_does_not_hold_ends_what_needs_it_and_nothing_else() {
    let steps: [(&str, &[&str], &[&str]); 4] =
        [("a", &[], &["val.accuracy >= 0.9"]), ("b", &["a"], &[]), ("c", &["b"], &[]), ("d", &[], &[])];
    let mut w = with(&steps, 2);
    trained(&mut w, "a", 0.899_99);
    assert_eq!(status(&w, "a", "train"), PhaseStatus::Succeeded, "its model stays");
    for (step, need) in [("b", "a/gate, which has failed"), ("c", "b/train, which is not run")] {
        assert_eq!(status(&w, step, "train"), PhaseStatus::Skipped, "{step}");
        assert_eq!(phase(&w, step, "probe").history[0].1, format!("not run: it needs {need}"));
    }
    // All the digits that say on which side it is.
    let why = "the gate of step `a` does not hold: val.accuracy is 0.89999, and must be >= 0.9";
    assert_eq!(says(&w), format!("running: d/probe; step `a` has failed (gate): {why}; not run: `b`, `c`"));
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Active);
    trained(&mut w, "d", 0.5);
    let ended = &w.state.jobs[&job(1)];
    assert_eq!((ended.status, ended.failure.as_ref().unwrap().class), (JobStatus::Failed, FailureClass::Gate));
    assert_eq!(says(&w), format!("failed (gate): {why}; not run: `b`, `c`"));
    assert_eq!(ended.artifacts.iter().map(|a| a.step.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    let again = w.command(Command::Retry { job: job(1) });
    assert!(matches!(&again, Err(Refusal::Precondition(text)) if text.contains("come to the same")), "{again:?}");
}

#[test]
fn a_gate_on_the_first_task_reads_the_report_of_a_job_with_one() {
    let mut w = with(&[("a", &[], &["tasks.main.accuracy >= 0.9"]), ("b", &["a"], &[])], 1);
    trained(&mut w, "a", 0.95);
    assert_eq!(status(&w, "a", "gate"), PhaseStatus::Succeeded);
}

#[test]
fn what_has_failed_is_told_while_the_rest_waits_in_the_queue() {
    let mut w = with(&[("a", &[], &["val.accuracy >= 0.9"]), ("b", &[], &[])], 1);
    done(&mut w, "a", "probe", 0.0);
    // The only slot goes to a more urgent job as soon as it is free.
    w.submit_spec(2, spec("1", 9));
    done(&mut w, "a", "train", 0.5);
    assert_eq!((status(&w, "a", "gate"), w.why(1)), (PhaseStatus::Failed, "slots_busy"));
    let failed =
        "; step `a` has failed (gate): the gate of step `a` does not hold: val.accuracy is 0.5000, and must be >= 0.9";
    assert!(says(&w).ends_with(failed), "{}", says(&w));
}

#[test]
fn a_job_that_was_cancelled_before_its_gate_was_judged_can_go_on() {
    let mut w = with(&[("a", &[], &["val.accuracy >= 0.9"])], 1);
    done(&mut w, "a", "probe", 0.0);
    let known = phase(&w, "a", "train");
    let (generation, placed) = (known.generation, known.attempt.as_ref().unwrap().placements[0].clone());
    let (node, incarnation) = (placed.node, placed.incarnation);
    let id = PhaseId::new("a", "train");
    let (phase, name) = (id.clone(), Artifact::MODEL.into());
    w.command(Command::Artifact { job: job(1), phase, generation, name, blob: blob(), node: node.clone() }).unwrap();
    let result = serde_json::json!({ "metrics": { "val.accuracy": 0.95 } });
    w.command(Command::Result { job: job(1), phase: id, generation, result, node, incarnation }).unwrap();
    // Before the next plan.
    w.command(Command::Cancel { job: job(1) }).unwrap();
    assert_eq!(status(&w, "a", "gate"), PhaseStatus::Failed);
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded);
}

#[test]
fn a_plan_looks_at_one_of_several_seeds_and_ends_with_the_first_failure() {
    let mut pipe = pipeline(&[("a", &[], &[]), ("b", &["a"], &[]), ("a2", &[], &[]), ("b2", &["a2"], &[])]);
    for (step, group) in pipe.step.iter_mut().zip(["a", "b", "a", "b"]) {
        step.group = Some(group.into());
    }
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    let spec = Box::new(pipe);
    w.command(Command::Submit { job: job(1), key: "p".into(), owner: "o".into(), spec, plan_only: true }).unwrap();
    w.plan();
    let ids: Vec<String> = w.state.jobs[&job(1)].phases.iter().map(|p| p.id.to_string()).collect();
    assert_eq!(ids, ["a/probe", "b/probe"]);
    broken(&mut w, "a", "probe");
    let ended = &w.state.jobs[&job(1)];
    assert_eq!(
        (ended.status, &*ended.failure.as_ref().unwrap().message),
        (JobStatus::Failed, "step `a`: the data is not there")
    );
}

#[test]
fn a_plan_is_tried_again_for_what_it_has_lost_and_for_nothing_else() {
    for (class, ends) in [(FailureClass::Crash, true), (FailureClass::Disk, true), (FailureClass::LostDevice, false)] {
        let mut w = World::new();
        w.join(1, "a", 1).unwrap();
        let spec = Box::new(spec("1", 0));
        w.command(Command::Submit { job: job(1), key: "p".into(), owner: "o".into(), spec, plan_only: true }).unwrap();
        w.plan();
        let (phase, generation) = (PhaseId::new("main", "probe"), w.phase(1, "probe").generation);
        let (node, incarnation) = w.agent(1, "probe", 0);
        let failure = Some(Failure::new(class, "the hub cannot be reached", "give it a way"));
        w.command(Command::Exited { job: job(1), phase, generation, rank: 0, failure, node, incarnation }).unwrap();
        w.plan();
        let known = &w.state.jobs[&job(1)];
        let said = known.failure.as_ref().map(|f| f.message.as_str());
        assert_eq!((known.status == JobStatus::Failed, said.is_some()), (ends, ends), "{class}");
        assert!(said.is_none_or(|said| said == "the hub cannot be reached"), "{said:?}");
    }
}

#[test]
fn a_gate_on_a_figure_that_a_report_lacks_does_not_hold() {
    let mut w = with(&[("a", &[], &["val.macro_f1 > 0.1"]), ("b", &["a"], &[])], 1);
    trained(&mut w, "a", 1.0);
    let failure = w.state.jobs[&job(1)].failure.clone().unwrap();
    assert!(failure.message.ends_with("the report has no number for val.macro_f1, and must be > 0.1"), "{failure}");
}

#[test]
fn steps_that_do_not_need_a_failed_one_are_finished_and_a_retry_goes_on_where_it_failed() {
    let mut w = with(&[("a", &[], &[]), ("b", &["a"], &[]), ("c", &[], &[]), ("d", &["c"], &[])], 1);
    broken(&mut w, "a", "probe");
    assert_eq!((status(&w, "a", "train"), status(&w, "b", "probe")), (PhaseStatus::Skipped, PhaseStatus::Skipped));
    assert_eq!(status(&w, "c", "probe"), PhaseStatus::Running);
    trained(&mut w, "c", 0.5);
    broken(&mut w, "d", "probe");
    let failure = w.state.jobs[&job(1)].failure.clone().unwrap();
    assert_eq!(failure.message, "step `a`: the data is not there", "the first one in the file");
    assert!(says(&w).ends_with("; not run: `b`"), "{}", says(&w));
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.plan();
    assert_eq!((status(&w, "c", "train"), status(&w, "b", "probe")), (PhaseStatus::Succeeded, PhaseStatus::Waiting));
    ["a", "b", "d"].iter().for_each(|step| trained(&mut w, step, 0.5));
    assert_eq!((w.state.jobs[&job(1)].status, w.state.jobs[&job(1)].failure.is_none()), (JobStatus::Succeeded, true));
}

#[test]
fn a_job_without_steps_says_what_failed_as_it_is() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.exit(1, 0, FailureClass::User).unwrap();
    w.plan();
    assert_eq!(says(&w), "failed (user): x");
}

#[test]
fn a_log_of_an_older_release_ends_its_jobs_as_it_did() {
    let mut w = with(&[("a", &[], &[]), ("b", &[], &[])], 1);
    let text = r#"{ "event": "attempt_ended", "job": "JOB", "phase": "a/probe", "generation": 1, "at": 5,
        "end": { "how": "fail", "failure": { "class": "user", "message": "m" } } }"#;
    w.apply(vec![serde_json::from_str(&text.replace("JOB", job(1).as_str())).unwrap()]);
    assert_eq!((w.state.jobs[&job(1)].status, status(&w, "b", "probe")), (JobStatus::Failed, PhaseStatus::Failed));
    let text = r#"{ "event": "submitted", "job": "JOB", "key": "k", "owner": "o", "spec": SPEC, "at": 5 }"#;
    let text = text.replace("JOB", job(2).as_str());
    let submitted = text.replace("SPEC", &serde_json::to_string(&spec("1", 0)).unwrap());
    w.apply(vec![serde_json::from_str(&submitted).unwrap()]);
    assert!(w.state.jobs[&job(2)].models.is_empty());
}

#[test]
fn what_is_compared_is_told_as_far_as_it_is_known() {
    let mut pipe = pipeline(&[("main", &[], &[]), ("scratch", &[], &[])]);
    let baselines = vec!["scratch".into()];
    let (metric, candidate) = ("val.accuracy".into(), "main".into());
    pipe.compare = Some(tl_proto::spec::CompareSection { metric, candidate, baselines });
    let mut w = World::new();
    w.join(1, "a", 2).unwrap();
    w.submit_spec(1, pipe);
    let compared = |w: &World| {
        let known = &w.state.jobs[&job(1)];
        Comparison::of(&known.spec, &known.figures()).unwrap().summary
    };
    assert_eq!(
        (status(&w, "main", "probe"), status(&w, "scratch", "probe")),
        (PhaseStatus::Running, PhaseStatus::Running)
    );
    trained(&mut w, "main", 0.75);
    assert_eq!(compared(&w), "no verdict: `scratch` has 0 of 1 runs");
    trained(&mut w, "scratch", 0.8);
    assert!(compared(&w).starts_with("negative transfer: -5.0 points"), "{}", compared(&w));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Whatever holds and whatever breaks: every step is done, has failed, or needs what has failed; and the job ends so.
    #[test]
    fn every_pipeline_ends_and_only_what_needs_a_failed_step_is_not_run(
        shape in prop::collection::vec((0u8..8, any::<bool>(), 0u8..4), 1..6), slots in 1u32..4, cut in 0usize..30,
    ) {
        let ids: Vec<String> = (0..shape.len()).map(|i| format!("s{i}")).collect();
        let needs: Vec<Vec<&str>> = shape.iter().enumerate().map(|(i, (bits, ..))| {
            (0..i.min(3)).filter(|b| bits & (1 << b) != 0).map(|b| ids[i - 1 - b].as_str()).collect()
        }).collect();
        let gates: Vec<Vec<&str>> = shape.iter().map(|s| if s.1 { vec!["val.accuracy > 0.5"] } else { vec![] }).collect();
        let steps: Vec<(&str, &[&str], &[&str])> =
            (0..shape.len()).map(|i| (ids[i].as_str(), needs[i].as_slice(), gates[i].as_slice())).collect();
        let mut w = with(&steps, slots);
        for turn in 0..shape.len() * 2 {
            let running = w.state.jobs[&job(1)].phases.iter().find(|p| p.status == PhaseStatus::Running);
            let Some((step, kind)) = running.map(|p| (p.step.clone(), p.kind.as_str())) else { break };
            let fate = shape[step[1..].parse::<usize>().unwrap()].2;
            match (fate, kind) {
                (0, "probe") | (1, "train") => broken(&mut w, &step, kind),
                (2, _) => done(&mut w, &step, kind, 0.25),
                _ => done(&mut w, &step, kind, 0.75),
            }
            if turn == cut {
                // A coordinator that comes back knows the same.
                let mut again = State::default();
                w.log.iter().for_each(|e| apply(&mut again, e));
                prop_assert_eq!(&again.jobs, &w.state.jobs);
            }
        }
        let ended = &w.state.jobs[&job(1)];
        let lost = |i: usize| shape[i].2 < 2 || (shape[i].2 == 2 && shape[i].1);
        let mut skipped = vec![false; shape.len()];
        for i in 0..shape.len() {
            skipped[i] = needs[i].iter().any(|n| {
                let n: usize = n[1..].parse().unwrap();
                skipped[n] || lost(n)
            });
            let train = ended.phase(&PhaseId::new(&ids[i], "train")).unwrap().status;
            let want = if skipped[i] || shape[i].2 == 0 {
                PhaseStatus::Skipped
            } else if shape[i].2 == 1 {
                PhaseStatus::Failed
            } else {
                PhaseStatus::Succeeded
            };
            prop_assert_eq!(train, want, "{}", ids[i]);
        }
        let fails = (0..shape.len()).any(lost);
        prop_assert_eq!(ended.status, if fails { JobStatus::Failed } else { JobStatus::Succeeded });
    }
}
