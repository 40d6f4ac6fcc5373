//! Jobs made of jobs: gates, baselines, models of earlier jobs, with real processes.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tl_proto::{
    spec::{CompareSection, Gates, JobSpec, StepSection, parse},
    v1,
};
use tl_tests::{Sandbox, alone, eventually};

use crate::PROGRAM;

/// A training of a second, on a task of the generated data.
fn training(task: &str, more: &str) -> JobSpec {
    parse(&format!(
        r#"
schema = 1
job = {{ name = "{task}", kind = "finetune", seed = 3 }}
cluster = {{ ranks = 1, reduction = "ordered" }}
data = {{ format = "generated", train = "{task}", val = "{task}", batch = 32, train_per_class = 16, params = {{ val_samples = 10, noise = 0.1 }} }}
model = {{ backbone = "small_cnn" {more} }}
stage = [{{ name = "all", epochs = 2, train = ["*"], lr = 2e-3, bn = "train" }}]
"#
    ))
    .unwrap()
}

fn step(id: &str, needs: &[&str], gate: &str, spec: JobSpec) -> StepSection {
    StepSection {
        id: id.into(),
        needs: needs.iter().map(|n| (*n).into()).collect(),
        gate: Gates(if gate.is_empty() { Vec::new() } else { vec![gate.parse().unwrap()] }),
        spec: Some(Box::new(spec)),
        ..StepSection::default()
    }
}

/// A teacher with a gate, a student that it teaches, and one that learns alone.
pub fn school(gate: &str) -> JobSpec {
    let mut student = training("target", "");
    student.job.kind = "distill".into();
    let teacher = r#"{ "backbone": "small_cnn", "weights": "step:teacher" }"#;
    student.nets.insert("teacher".into(), serde_json::from_str(teacher).unwrap());
    let mut spec = parse("schema = 1\njob = { name = \"school\", kind = \"pipeline\" }\n").unwrap();
    spec.step = vec![
        step("teacher", &[], gate, training("target", "")),
        step("student", &["teacher"], "", student),
        step("alone", &[], "", training("target", "")),
    ];
    let (metric, candidate, baselines) = ("val.accuracy".into(), "student".into(), vec!["alone".into()]);
    spec.compare = Some(CompareSection { metric, candidate, baselines });
    spec
}

fn tlctl(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).args(["--coordinator", sandbox.address(), "--output", "json"]);
    command.output().unwrap()
}

/// The last line of JSON that a command has printed.
fn last(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().last().and_then(|l| serde_json::from_str(l).ok());
    line.unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn write(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let path = sandbox.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn status<'a>(job: &'a v1::Job, phase: &str) -> &'a str {
    &job.phases.iter().find(|p| p.id == phase).unwrap_or_else(|| panic!("no {phase}")).status
}

#[tokio::test(flavor = "current_thread")]
async fn a_gate_decides_whether_a_student_is_taught() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let open = sandbox.submit(&school("val.loss < 100")).await;
    let (ended, ..) = sandbox.ends(&open).await;
    assert_eq!((ended.status.as_str(), status(&ended, "student/train")), ("succeeded", "succeeded"), "{}", ended.why);

    let file = write(&sandbox, "closed.toml", &school("val.loss < 1e-9").to_toml());
    let output = tlctl(&sandbox, &["submit", &file, "--watch"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let finished = last(&output);
    assert_eq!(finished["failure"]["class"], "gate", "{finished}");
    let job = finished["job"].as_str().unwrap();
    let ended = sandbox.client().await.job(job).get().await.unwrap();
    let states = ["teacher/train", "teacher/gate", "student/train", "alone/train"].map(|p| status(&ended, p));
    assert_eq!(states, ["succeeded", "failed", "skipped", "succeeded"]);
    let loss = finished["steps"]["teacher"]["val.loss"].as_f64().unwrap();
    let why = last(&tlctl(&sandbox, &["why", job]))["why"].as_str().unwrap().to_owned();
    let bound =
        "val.loss is LOSS, and must be < 0.000000001; not run: `student`".replace("LOSS", &format!("{loss:.4}"));
    let want = format!("failed (gate): the gate of step `teacher` does not hold: {bound}");
    assert_eq!(why, want);
    // What is done can be had, all of it or one step's.
    let out = sandbox.dir().join("out").display().to_string();
    let fetched = last(&tlctl(&sandbox, &["fetch", job, "--out", &out, "--step", "teacher"]));
    assert!(fetched["artifacts"].as_array().unwrap().iter().all(|a| a["step"] == "teacher"), "{fetched}");
    assert!(Path::new(&out).join("teacher/model.safetensors").is_file());
    assert_eq!(tlctl(&sandbox, &["retry", job]).status.code(), Some(5), "the same would come to the same");
}

#[tokio::test(flavor = "current_thread")]
async fn a_job_beats_its_baselines_on_idle_workers_from_a_model_that_is_gone_by_then() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let first = sandbox.submit(&training("source", "")).await;
    let (_, _, pretrained) = sandbox.ends(&first).await;

    let job = training("target", &format!(", weights = \"job:{}\"", first.id())).to_toml();
    let file = write(&sandbox, "job.toml", &job);
    let set = ["--set", "job.baseline=[\"scratch\", \"linear_probe\"]", "--set", "job.seeds=[1, 2]"];
    let plan = tlctl(&sandbox, &[&["plan", &file][..], &set[..]].concat());
    assert_eq!(last(&plan)["plan"]["steps"].as_object().unwrap().len(), 3, "one seed of each: {plan:?}");
    let submitted = last(&tlctl(&sandbox, &[&["submit", &file][..], &set[..]].concat()));
    let id = submitted["job"].as_str().unwrap_or_else(|| panic!("{submitted}")).to_owned();
    let job = sandbox.client().await.job(&id);
    // Its model is taken as it was: the job that left it can go at once.
    first.remove().await.unwrap();
    let together = eventually("two steps at a time", async || {
        let now = job.get().await.ok()?;
        let steps = now.phases.iter().filter(|p| p.status == "running").count();
        (steps == 2 || now.finished_ms > 0).then_some(steps)
    });
    assert_eq!(together.await, 2, "baselines run beside the job");
    let (ended, ..) = sandbox.ends(&job).await;
    assert_eq!(ended.status, "succeeded", "{}", ended.why);

    let compared: Value = serde_json::from_slice(&ended.compared_json).unwrap();
    let names: Vec<&str> = compared["rows"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["main", "scratch", "linear_probe"]);
    let figures = tl_client::metrics(&ended);
    let of = |step: &str| figures[step]["val.accuracy"];
    let mean = (of("main") + of("main-seed2")) / 2.0;
    assert!((compared["rows"][0]["value"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{compared}");
    assert!(compared["rows"][1]["gain"]["half"].is_f64() && compared["summary"].as_str().unwrap().contains("2 seeds"));

    // The model that is fetched is the job's own, with the first seed, and says what it began with.
    let out = sandbox.dir().join("out");
    let fetched = job.fetch(&out).await.unwrap();
    let model = |step: &str| fetched.iter().find(|f| f.step == step && f.name == "model.safetensors").unwrap();
    assert_eq!(model("main").path, out.join("model.safetensors"));
    assert_eq!(model("scratch").path, out.join("scratch/model.safetensors"));
    let written = std::fs::read_to_string(out.join("job.toml")).unwrap();
    assert!(written.contains(&format!("weights = \"job:{}/main\"", first.id())), "{written}");
    // Only the head of a linear probe is another; from scratch, nothing is the same.
    let tensors = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let of_backbone = all.tensors().into_iter().filter(|(n, _)| !n.starts_with("fc."));
        of_backbone.map(|(n, t)| (n, t.data().to_vec())).collect::<std::collections::BTreeMap<_, _>>()
    };
    let given = sandbox.blobs().join(pretrained.unwrap());
    assert!(given.is_file(), "the model stays while a job names it");
    let given = tensors(&given);
    assert_eq!(tensors(&model("linear_probe").path), given, "features stay as they were");
    let anew = tensors(&model("scratch").path);
    assert!(anew.iter().all(|(name, values)| name.contains("num_batches") || *values != given[name]));
    let removed = tlctl(&sandbox, &["rm", &id]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let left = std::fs::read_dir(sandbox.blobs()).unwrap().flatten().filter(|e| e.path().is_file()).count();
    assert_eq!(left, 0, "with the last job that names it, the model goes");
}

#[tokio::test(flavor = "current_thread")]
async fn a_coordinator_that_is_killed_between_steps_goes_on_with_the_next_one() {
    let _alone = alone().await;
    let mut sandbox = Sandbox::start(PROGRAM, 1).await;
    let undisturbed = sandbox.submit(&school("val.loss < 100")).await;
    let (_, series, model) = sandbox.ends(&undisturbed).await;
    let job = sandbox.submit(&school("val.loss < 100")).await;
    eventually("the end of the first step", async || {
        let now = job.get().await.ok()?;
        (status(&now, "teacher/train") == "succeeded").then_some(())
    })
    .await;
    sandbox.kill_coordinator();
    sandbox.start_coordinator();
    let (ended, again, same) = sandbox.ends(&job).await;
    assert_eq!((ended.status.as_str(), status(&ended, "teacher/gate")), ("succeeded", "succeeded"), "{}", ended.why);
    assert_eq!((again, same), (series, model));
}

#[test]
fn a_model_of_a_job_needs_a_cluster_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.toml");
    let id = "job_00000000000000000000000007";
    std::fs::write(&file, training("target", &format!(", weights = \"job:{id}\"")).to_toml()).unwrap();
    for command in [&["local", "run"][..], &["verify"]] {
        let output = Command::new(PROGRAM).args(command).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("`model.weights` is `job:{id}`")) && said.contains("`tlctl fetch JOB"),
            "{said}"
        );
    }
}
