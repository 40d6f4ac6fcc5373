//! `tlctl` as a person or a script uses it.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tl_tests::{Sandbox, alone, eventually, jobs, processes};

use crate::PROGRAM;

/// Runs a command to its end.
fn tlctl(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).envs(environment.iter().copied()).env_remove("TL_COORDINATOR").stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of JSON that a command has printed.
fn events(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap_or_else(|_| panic!("no JSON: {l}"))).collect()
}

fn write(dir: &Path, name: &str, spec: &tl_proto::spec::JobSpec) -> String {
    let path = dir.join(name);
    std::fs::write(&path, spec.to_toml()).unwrap();
    path.display().to_string()
}

/// A job of a second or two.
fn short() -> tl_proto::spec::JobSpec {
    let mut spec = jobs::thorny("\"1..2\"");
    spec.stage.truncate(1);
    spec.stage[0].epochs = 1;
    spec
}

#[tokio::test(flavor = "current_thread")]
async fn a_job_goes_through_submit_watch_logs_show_fetch_predict_and_rm() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 2).await;
    let ctl = |arguments: &[&str]| {
        tlctl(&[arguments, &["--coordinator", sandbox.address(), "--output", "json"]].concat(), &[])
    };
    let file = write(sandbox.dir(), "job.toml", &short());
    let output = ctl(&["submit", &file, "--watch"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let all = events(&output);
    let (first, last) = (&all[0], all.last().unwrap());
    let job = first["job"].as_str().unwrap();
    assert_eq!((first["event"].as_str(), last["event"].as_str()), (Some("submitted"), Some("finished")));
    assert_eq!((last["phase"].as_str(), last["job"].as_str()), (Some("succeeded"), Some(job)));
    let accuracy = last["metrics"]["val.accuracy"].as_f64().unwrap();
    let steps = all.iter().filter(|e| e["metric"]["values"]["train.loss"].is_f64()).count();
    assert_eq!(steps, 8, "216 samples by 27");

    let shown = events(&ctl(&["show", job]));
    assert_eq!(shown[0]["job"]["status"], "succeeded");
    assert_eq!(events(&ctl(&["why", job]))[0]["why"], "succeeded");
    assert_eq!(events(&ctl(&["ls"]))[0]["jobs"][0]["id"], job);
    let logged = text(&ctl(&["logs", job]).stdout);
    assert!(logged.contains("rank 0 of 2") && logged.contains("rank 1 of 2"), "{logged}");

    let out = sandbox.dir().join("out");
    let fetched = events(&ctl(&["fetch", job, "--out", &out.display().to_string()]));
    let names: Vec<_> =
        fetched[0]["artifacts"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    for name in ["model.safetensors", "labels.txt", "preprocess.json", "report.json", "report.txt", "job.toml"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    // The effective job is a job file.
    assert_eq!(ctl(&["check", &out.join("job.toml").display().to_string()]).status.code(), Some(0));

    let model = out.display().to_string();
    // The data set that the job was scored on is drawn from its seed.
    let scored = events(&ctl(&[
        "evaluate",
        &model,
        "target",
        "--format",
        "generated",
        "--seed",
        "7",
        "--param",
        "val_samples=10",
        "--param",
        "noise=0.1",
    ]));
    assert_eq!(scored[0]["metrics"]["val.accuracy"].as_f64().unwrap(), accuracy);

    let removed = ctl(&["rm", job]);
    assert_eq!(removed.status.code(), Some(0), "{}", text(&removed.stderr));
    assert_eq!(ctl(&["show", job]).status.code(), Some(5));
    let left = std::fs::read_dir(sandbox.blobs()).unwrap().flatten().filter(|e| e.path().is_file()).count();
    assert_eq!(left, 0, "the blobs of a removed job go");
}

#[tokio::test(flavor = "current_thread")]
async fn a_plan_says_what_would_happen_and_leaves_nothing() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 1).await;
    let file = write(sandbox.dir(), "job.toml", &jobs::thorny("1"));
    let output = tlctl(&["plan", &file, "--coordinator", sandbox.address(), "--output", "json"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let plan = &events(&output)[0]["plan"]["steps"]["main"];
    assert_eq!(plan["samples"], serde_json::json!([216, 60]));
    assert_eq!(plan["stages"][1]["name"], "second");
    assert!(plan["stages"][1]["trained"].as_u64().unwrap() < plan["stages"][0]["trained"].as_u64().unwrap());
    assert_eq!(sandbox.client().await.list(10, false).await.unwrap().len(), 0);
    eventually("a free slot", async || {
        let nodes = sandbox.client().await.nodes().await.ok()?;
        (nodes[0].busy == 0).then_some(())
    })
    .await;
    // Without a coordinator.
    let cache = sandbox.dir().join("cache").display().to_string();
    let output = tlctl(&["local", "plan", &file, "--cache", &cache, "--output", "json"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(events(&output)[0]["plan"]["steps"]["main"]["samples"], plan["samples"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_plan_that_nobody_is_there_for_is_answered_soon() {
    let _alone = alone().await;
    let sandbox = Sandbox::bare(PROGRAM, None).await;
    let file = write(sandbox.dir(), "job.toml", &jobs::thorny("1"));
    let begun = std::time::Instant::now();
    let output = tlctl(&["plan", &file, "--coordinator", sandbox.address()], &[]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(5) && said.contains("no node is connected"), "{said}");
    // A plan waits for a minute where there is somebody.
    assert!(begun.elapsed() < std::time::Duration::from_secs(45), "{:?}", begun.elapsed());
    assert_eq!(sandbox.client().await.list(10, false).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_second_run_leaves_the_first_model_whole_and_a_bad_file_leaves_the_others() {
    let _alone = alone().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut spec = short();
    for seed in [1, 2] {
        spec.job.seed = seed;
        let file = write(dir.path(), "job.toml", &spec);
        let output = tlctl(&["local", "run", &file, "--cache", &at("cache"), "--out", &at("out")], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        // As an earlier job with an adapter leaves it, for the second run to find.
        std::fs::write(at("out/adapter_config.json"), "{}").unwrap();
        assert_eq!(text(&output.stderr).contains("out.1"), seed == 2, "{}", text(&output.stderr));
    }
    let seed = |name: &str| std::fs::read_to_string(at(name)).unwrap().contains("seed = 1");
    assert!(seed("out.1/job.toml") && !seed("out/job.toml"));
    assert!(Path::new(&at("out.1/adapter_config.json")).exists() && Path::new(&at("out.1/model.safetensors")).exists());

    let photo = |name: &str, shade: u8| {
        image::RgbImage::from_pixel(40, 40, image::Rgb([shade, 90, 9])).save(at(name)).unwrap();
        at(name)
    };
    let (first, second) = (photo("1.png", 10), photo("2.png", 200));
    std::fs::write(at("bad.png"), "no image").unwrap();
    let output = tlctl(&["predict", &at("out"), &first, &at("bad.png"), &second, "--output", "json"], &[]);
    let said: Vec<Value> = events(&output).iter().map(|e| e["event"].clone()).collect();
    assert_eq!(said, ["prediction", "error", "prediction"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("bad.png` cannot be decoded"), "{}", text(&output.stderr));
}

/// Processes that were started from `dir`.
fn of(dir: &str) -> Vec<(i32, i32, String)> {
    processes().into_iter().filter(|(id, _, words)| words.contains(dir) && *id != std::process::id() as i32).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_is_left_of_a_local_run_that_is_interrupted_or_killed() {
    let _alone = alone().await;
    for signal in [Signal::SIGINT, Signal::SIGKILL, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        let file = write(dir.path(), "job.toml", &jobs::thorny("2"));
        let mut child = Command::new(PROGRAM)
            .args(["local", "run", &file, "--data", &format!("{at}/data"), "--cache", &format!("{at}/cache")])
            .args(["--out", &format!("{at}/out")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until it trains: the folder of a rank has rows then.
        eventually("training", async || {
            let rows = std::fs::read_dir(format!("{at}/data/worker-1/work")).ok()?.count();
            (rows > 0 && processes().iter().filter(|(_, _, w)| w.ends_with("sandbox rank")).count() == 2).then_some(())
        })
        .await;
        let family = of(&at);
        assert!(family.len() >= 4, "{family:?}");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let status = eventually("its end", async || child.try_wait().unwrap()).await;
        if signal != Signal::SIGKILL {
            assert_eq!(status.code(), Some(130));
        }
        eventually("the end of all", async || {
            let ranks = processes().into_iter().any(|(_, _, w)| w.ends_with("sandbox rank"));
            (of(&at).is_empty() && !ranks).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_wrong_token_is_refused_for_users_and_for_nodes() {
    let _alone = alone().await;
    let (user, node) = ("a-token-for-users-1", "a-token-for-nodes-1");
    let mut sandbox = Sandbox::bare(PROGRAM, Some((user, node))).await;
    sandbox.add_worker(&[]);
    sandbox.ready(1).await;
    let ls = |token: &str| tlctl(&["ls", "--coordinator", sandbox.address()], &[("TL_TOKEN", token)]);
    assert_eq!(ls(user).status.code(), Some(0));
    for wrong in [node, "something-else-entirely"] {
        let output = ls(wrong);
        assert_eq!(output.status.code(), Some(5));
        assert!(text(&output.stderr).contains("the token is missing or wrong"), "{}", text(&output.stderr));
    }
    sandbox.add_worker(&["--token", user]);
    assert!(!sandbox.worker_ends(1).await.success());
    let said = std::fs::read_to_string(sandbox.dir().join("worker-1.log")).unwrap();
    assert!(said.contains("the token is missing or wrong"), "{said}");
    assert!(!sandbox.logs().contains(user) && !sandbox.logs().contains(node), "no token is logged");
}

#[test]
fn the_schema_holds_for_every_recipe_and_not_for_a_misspelled_key() {
    let output = tlctl(&["schema"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/recipes");
    for entry in std::fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let written: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let mut value = serde_json::to_value(&written).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        value["job"]["sed"] = 1.into();
        assert!(!validator.is_valid(&value));
    }
    let full = serde_json::to_value(jobs::thorny("\"1..2\"")).unwrap();
    let errors: Vec<String> = validator.iter_errors(&full).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut unknown = full.clone();
    unknown["model"]["backbone"] = "resnet19".into();
    assert!(!validator.is_valid(&unknown));
}
