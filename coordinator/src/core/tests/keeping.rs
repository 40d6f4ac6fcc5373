//! What is kept, for how long, and who may take it away: data sets, keys, the place in the queue, nodes.

use super::*;

const DIGEST: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn push(name: &str) -> Command {
    Command::PushData { blob: Blob { digest: DIGEST.into(), size: 5 }, name: name.into(), files: 2 }
}

fn remove() -> Command {
    Command::RemoveData { digest: DIGEST.into() }
}

/// A job on the pushed data set.
fn on_data() -> JobSpec {
    let mut spec = spec("1", 0);
    let data = spec.data.as_mut().unwrap();
    data.format = "image_folder".into();
    (data.train, data.val) = (format!("data:{DIGEST}/train"), format!("data:{DIGEST}/val"));
    spec
}

fn submit(n: u128, key: &str, spec: JobSpec) -> Command {
    Command::Submit { job: job(n), key: key.into(), owner: "o".into(), spec: Box::new(spec), plan_only: false }
}

#[test]
fn a_data_set_stays_while_a_job_needs_it_and_no_job_starts_without_it() {
    let mut w = World::new();
    let error = w.command(submit(1, "a", on_data())).unwrap_err();
    assert!(matches!(&error, Refusal::Invalid { message, .. } if message.contains("there is no data set")), "{error}");
    assert!(matches!(w.command(remove()), Err(Refusal::NotFound(_))));
    w.command(push("photos")).unwrap();
    let events = decide(&w.state, push("photos"), w.now).unwrap();
    assert!(events.is_empty(), "the same again changes nothing");
    w.command(push("renamed")).unwrap();
    assert_eq!(w.state.data[DIGEST].name, "renamed");
    assert!(w.state.needs_blob(DIGEST));

    w.command(submit(1, "a", on_data())).unwrap();
    let error = w.command(remove()).unwrap_err();
    assert!(matches!(&error, Refusal::Precondition(text) if text.contains("needs it")), "{error}");
    w.command(Command::Cancel { job: job(1) }).unwrap();
    w.command(Command::Retry { job: job(1) }).unwrap();
    w.command(Command::Cancel { job: job(1) }).unwrap();
    // Another job that is at work holds only what it names.
    w.command(submit(2, "b", spec("1", 0))).unwrap();
    w.command(remove()).unwrap();
    assert!(!w.state.needs_blob(DIGEST));
    let error = w.command(Command::Retry { job: job(1) }).unwrap_err();
    assert!(matches!(&error, Refusal::Invalid { message, .. } if message.contains("there is no data set")), "{error}");
}

#[test]
fn a_removed_job_takes_its_key_along_and_no_other() {
    let mut w = World::new();
    for (n, key) in [(1, "a"), (2, "b")] {
        w.command(submit(n, key, spec("1", 0))).unwrap();
        w.command(Command::Cancel { job: job(n) }).unwrap();
    }
    w.command(Command::Remove { job: job(1) }).unwrap();
    assert_eq!(w.state.keys.keys().collect::<Vec<_>>(), ["b"]);
    w.command(submit(3, "a", spec("1", 0))).unwrap();
    assert!(w.state.jobs.contains_key(&job(3)), "the key is free again");
}

#[test]
fn only_jobs_that_are_not_over_count_against_the_limit() {
    let mut w = World::new();
    w.command(submit(0, "first", spec("1", 0))).unwrap();
    let cancelled = {
        w.command(Command::Cancel { job: job(0) }).unwrap();
        w.state.jobs[&job(0)].clone()
    };
    let crowd =
        |state: &mut State, like: &Job| (1..=10_000).for_each(|n| drop(state.jobs.insert(job(n), like.clone())));
    crowd(&mut w.state, &cancelled);
    decide(&w.state, submit(20_000, "x", spec("1", 0)), w.now).unwrap();
    let active = Job { status: JobStatus::Active, finished_ms: None, ..cancelled };
    crowd(&mut w.state, &active);
    let error = decide(&w.state, submit(20_000, "x", spec("1", 0)), w.now).unwrap_err();
    assert!(matches!(error, Refusal::Exhausted(_)), "{error}");
}

#[test]
fn the_end_of_an_old_connection_says_nothing_and_who_has_left_cannot_leave_again() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    let gone = |incarnation: &str| Command::Disconnect { node: node(1), incarnation: incarnation.into() };
    w.command(gone("older")).unwrap();
    assert_eq!(w.state.nodes[&node(1)].status, NodeStatus::Ready);
    w.command(gone("a")).unwrap();
    assert_eq!(w.state.nodes[&node(1)].status, NodeStatus::Unknown);
    assert!(decide(&w.state, gone("a"), w.now).unwrap().is_empty(), "it is gone already");
    w.command(Command::Drain { node: node(1), undo: false }).unwrap();
    w.command(Command::Leave { node: node(1) }).unwrap();
    assert_eq!((w.state.nodes[&node(1)].status, w.state.nodes[&node(1)].draining), (NodeStatus::Lost, false));
    assert!(decide(&w.state, Command::Leave { node: node(1) }, w.now).unwrap().is_empty());
}

#[test]
fn what_a_revision_stood_for_when_it_was_probed_is_what_every_attempt_takes() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    let mut hub = spec("1", 0);
    hub.model.as_mut().unwrap().weights = Some("hf://a/b".into());
    w.submit_spec(1, hub);
    let weights = |w: &World| w.state.jobs[&job(1)].pinned_spec("main").unwrap().model.unwrap().weights.unwrap();
    assert_eq!(weights(&w), "hf://a/b", "nobody has looked yet");
    let pinned = "hf://a/b@00112233445566778899aabbccddeeff00112233#model.safetensors";
    let file = serde_json::json!({ "name": "model.safetensors", "bytes": 7, "sha256": "x" });
    let found = serde_json::json!({ "sources": [{ "place": "hf://a/b", "pinned": pinned, "files": [file] }] });
    let Command::Result { job: id, phase, generation, node, incarnation, .. } = w.result(1, "probe") else { panic!() };
    w.command(Command::Result { job: id, phase, generation, result: found, node, incarnation }).unwrap();
    w.plan();
    assert_eq!(weights(&w), pinned);
    // What is no commit of the same place is not taken for it.
    for lie in ["hf://a/c@00112233445566778899aabbccddeeff00112233", "hf://a/b@main", "/etc/passwd"] {
        let mut other = w.state.jobs[&job(1)].clone();
        let result = other.phases.iter_mut().find_map(|p| p.result.as_mut()).unwrap();
        result["sources"][0]["pinned"] = lie.into();
        let spec = other.pinned_spec("main").unwrap();
        assert_eq!(spec.model.unwrap().weights.as_deref(), Some("hf://a/b"), "{lie}");
    }
    w.exit(1, 0, FailureClass::LostNode).unwrap();
    w.after(60_000);
    assert_eq!(weights(&w), pinned);
    let known = &w.state.jobs[&job(1)];
    assert_eq!(known.spec.model.as_ref().unwrap().weights.as_deref(), Some("hf://a/b"), "the job stays as submitted");
    assert_eq!(known.sources("main")[0].bytes(), 7);
}
