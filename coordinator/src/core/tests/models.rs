//! `job:ID`: whose model it is, from when on, and what becomes of it.

use super::*;

fn digest(w: &World, n: u128) -> Vec<String> {
    w.state.jobs[&job(n)].models.values().map(|m| m.blob.digest.clone()).collect()
}

/// A job that begins with the model of another.
fn on_model(place: &str) -> JobSpec {
    let mut spec = spec("1", 0);
    spec.model.as_mut().unwrap().weights = Some(place.into());
    spec
}

fn refused(w: &mut World, place: &str) -> (String, String) {
    let spec = Box::new(on_model(place));
    let submit = Command::Submit { job: job(9), key: "x".into(), owner: "o".into(), spec, plan_only: false };
    match w.command(submit).unwrap_err() {
        Refusal::Invalid { message, hint } => (message, hint),
        other => panic!("{other}"),
    }
}

/// A world in which job 1 has left a model.
fn trained() -> World {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.succeed(1, "train");
    assert_eq!(w.state.jobs[&job(1)].status, JobStatus::Succeeded);
    w
}

#[test]
fn a_model_is_taken_as_it_is_and_stays_when_its_job_goes() {
    let mut w = trained();
    let place = format!("job:{}", job(1));
    w.submit_spec(2, on_model(&place));
    assert_eq!(digest(&w, 2), ["d"]);
    let known = w.state.jobs[&job(2)].clone();
    let pinned = known.pinned_spec("main").unwrap();
    let weights = pinned.model.as_ref().unwrap().weights.clone().unwrap();
    assert_eq!(weights, format!("{place}/main"), "which step it is, is said");
    assert_eq!(known.inputs(&pinned).into_iter().collect::<Vec<_>>(), [(weights, &blob())]);
    assert_eq!(known.spec, on_model(&place), "the job stays as submitted");
    // Submitted again under the same key, it is the same job.
    w.submit_spec(2, on_model(&place));
    w.command(Command::Remove { job: job(1) }).unwrap();
    assert!(w.state.needs_blob("d"), "the second job needs it");
    w.succeed(2, "probe");
    w.exit(2, 0, FailureClass::User).unwrap();
    w.plan();
    w.command(Command::Retry { job: job(2) }).unwrap();
    assert_eq!(digest(&w, 2), ["d"], "a retry begins with the same");
    w.command(Command::Cancel { job: job(2) }).unwrap();
    w.command(Command::Remove { job: job(2) }).unwrap();
    assert!(!w.state.needs_blob("d"));
}

#[test]
fn a_model_that_is_not_there_is_refused_with_what_to_do() {
    let mut w = trained();
    let (message, hint) = refused(&mut w, &format!("job:{}", job(7)));
    assert!(message.starts_with("`model.weights` is `job:") && message.ends_with("there is no such job"), "{message}");
    assert!(hint.contains("`tlctl ls`"), "{hint}");
    let (message, hint) = refused(&mut w, &format!("job:{}/mian", job(1)));
    assert!(message.contains("has no step `mian`") && hint == "did you mean `main`?", "{message} {hint}");
    assert!(refused(&mut w, "step:a").0.ends_with("is `step:a`, and the job is no step of a pipeline"));
    assert!(refused(&mut w, "job:mine").0.contains("is not the model of a job"));
    w.submit(2, "1", 0);
    let (message, hint) = refused(&mut w, &format!("job:{}", job(2)));
    assert!(message.contains("is not done") && hint.contains("`[[step]]` with `needs`"), "{message} {hint}");
    w.command(Command::Cancel { job: job(2) }).unwrap();
    assert!(refused(&mut w, &format!("job:{}", job(2))).0.contains("has left no model"));
}

#[test]
fn a_model_that_arrived_before_its_training_was_done_is_none() {
    let mut w = World::new();
    w.join(1, "a", 1).unwrap();
    w.submit(1, "1", 0);
    w.succeed(1, "probe");
    w.command(w.artifact(1, Artifact::MODEL)).unwrap();
    assert!(refused(&mut w, &format!("job:{}", job(1))).0.contains("is not done"));
}

#[test]
fn a_job_that_was_only_looked_at_has_no_model_to_give() {
    let mut w = trained();
    w.state.jobs.get_mut(&job(1)).unwrap().plan_only = true;
    assert!(refused(&mut w, &format!("job:{}", job(1))).0.contains("no such job"));
}
