//! Teachers whose work nodes beyond the gang take: what is lost with one of them is done by others, and nothing changes.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tl_proto::{
    spec::{JobSpec, StepSection, parse},
    v1,
};
use tl_tests::{Sandbox, alone, eventually};

use crate::PROGRAM;

/// Samples of the student, over eight classes.
const SAMPLES: u64 = 512;

fn training(backbone: &str, samples: u64) -> JobSpec {
    parse(&format!(
        r#"
schema = 1
job = {{ name = "t", kind = "finetune", seed = 3 }}
cluster = {{ ranks = 1, reduction = "ordered" }}
data = {{ format = "generated", train = "source", val = "source", batch = 32, params = {{ train_samples = {}, val_samples = 5 }} }}
model = {{ backbone = "{backbone}" }}
stage = [{{ name = "all", epochs = 1, train = ["*"], lr = 1e-3, bn = "train" }}]
"#,
        samples / 8
    ))
    .unwrap()
}

/// A teacher that is slow and knows little, and a student.
fn school() -> JobSpec {
    let mut student = training("small_cnn", SAMPLES);
    student.job.kind = "distill".into();
    let teacher = r#"{ "backbone": "resnet20", "weights": "step:teacher" }"#;
    student.nets.insert("teacher".into(), serde_json::from_str(teacher).unwrap());
    let step = |id: &str, needs: &[&str], spec: JobSpec| StepSection {
        id: id.into(),
        needs: needs.iter().map(|n| (*n).into()).collect(),
        spec: Some(Box::new(spec)),
        ..StepSection::default()
    };
    let mut spec = parse("schema = 1\njob = { name = \"school\", kind = \"pipeline\" }\n").unwrap();
    spec.step = vec![step("teacher", &[], training("resnet20", 64)), step("student", &["teacher"], student)];
    spec
}

fn phase<'a>(job: &'a v1::Job, id: &str) -> Option<&'a v1::Phase> {
    job.phases.iter().find(|p| p.id == id)
}

/// What the history of the training says of units, if there were any.
fn units_of(job: &v1::Job) -> Option<&String> {
    phase(job, "student/train")?.history.iter().find(|line| line.contains("units of what teachers say"))
}

/// Outputs of the teacher that the ranks of the training have computed themselves.
fn computed(job: &v1::Job) -> u64 {
    let trained = phase(job, "student/train").expect("a training");
    let result: Value = serde_json::from_slice(&trained.result_json).unwrap();
    result["prefix"]["computed"].as_u64().expect("a number")
}

#[tokio::test(flavor = "current_thread")]
async fn units_of_a_teacher_go_to_every_node_and_what_is_killed_changes_nothing() {
    let _alone = alone().await;
    let one = Sandbox::start(PROGRAM, 1).await;
    let job = one.submit(&school()).await;
    let (ended, _, wanted) = one.ends(&job).await;
    assert_eq!((ended.status.as_str(), computed(&ended)), ("succeeded", SAMPLES), "{ended:#?}");
    assert_eq!(units_of(&ended), None, "nobody else is idle");
    drop(one);

    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    sandbox.change_deadlines(|deadlines| deadlines.teach_saves_ms = 0);
    for _ in 0..3 {
        sandbox.add_worker(&[]);
    }
    sandbox.ready(3).await;
    let job = sandbox.submit(&school()).await;
    eventually("a unit to lose", async || {
        // It is held still before anything is asked, so that it cannot end meanwhile and dies in the middle of its unit.
        let rank = Pid::from_raw(*sandbox.ranks(2).first()?);
        kill(rank, Signal::SIGSTOP).ok()?;
        let now = job.get().await.ok();
        let units = now.as_ref().and_then(|now| phase(now, "student/teach"));
        if units.is_some_and(|units| units.status == "running") {
            return Some(());
        }
        let _ = kill(rank, Signal::SIGCONT);
        None
    })
    .await;
    sandbox.kill_worker(2);
    // Nor does this lose what others have done.
    sandbox.kill_coordinator();
    sandbox.start_coordinator();
    let (ended, _, model) = sandbox.ends(&job).await;
    assert_eq!((ended.status.as_str(), computed(&ended)), ("succeeded", 0), "{ended:#?}");
    assert_eq!((model.is_some(), model), (true, wanted), "the model differs");
    let told = units_of(&ended).expect("units");
    for part in ["done on `w0`", "done on `w1`", "begun anew"] {
        assert!(told.contains(part), "{told}");
    }
}
