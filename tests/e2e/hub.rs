//! Weights of the Hugging Face hub, from a hub on this machine, through a cluster.

#[path = "../../worker/src/store/hub/testing.rs"]
mod testing;

use std::process::Command;

use serde_json::Value;
use testing::{COMMIT, FakeHub, Faults};
use tl_proto::spec::JobSpec;
use tl_tests::{Sandbox, alone, jobs};

use crate::PROGRAM;

/// A job of a second or two, by `ranks` ranks.
fn short(ranks: &str) -> JobSpec {
    let mut spec = jobs::thorny(ranks);
    spec.stage.remove(0);
    spec.stage[0].epochs = 2;
    spec.data.as_mut().unwrap().augment = Default::default();
    spec.modifiers.clear();
    spec
}

fn tlctl(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).args(["--coordinator", sandbox.address(), "--output", "json"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    (output.status.code(), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "current_thread")]
async fn weights_of_the_hub_are_planned_without_downloading_fetched_once_and_pinned() {
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    let hub = FakeHub::start(&[]);
    let home = sandbox.dir().join("hf").display().to_string();
    sandbox.environment = vec![("HF_ENDPOINT", hub.endpoint.clone()), ("HF_HOME", home)];
    for _ in 0..2 {
        sandbox.add_worker(&[]);
    }
    sandbox.ready(2).await;
    let place = |name: &str| sandbox.dir().join(name).display().to_string();

    // Somebody has trained a model, and put it there.
    let teacher = sandbox.submit(&short("1")).await;
    assert_eq!(sandbox.ends(&teacher).await.0.status, "succeeded");
    let files = teacher.fetch(place("teacher").as_ref()).await.unwrap();
    let model = files.iter().find(|f| f.name == "model.safetensors").unwrap();
    hub.put("lab/net/model.safetensors", std::fs::read(&model.path).unwrap());

    let mut spec = short("2");
    spec.model.as_mut().unwrap().weights = Some("hf://lab/net".into());
    let file = place("job.toml");
    std::fs::write(&file, spec.to_toml()).unwrap();
    let (code, said, errors) = tlctl(&sandbox, &["plan", &file]);
    assert_eq!(code, Some(0), "{errors}");
    let plan = &said[0]["plan"]["steps"]["main"];
    let size = std::fs::metadata(&model.path).unwrap().len();
    assert_eq!(plan["downloads"]["hf://lab/net"], size, "{plan}");
    assert!(hub.asked().iter().all(|a| a.starts_with("HEAD")), "a plan downloads nothing");
    let saving = &plan["stages"][0]["saving"];
    // 216 samples to train and 60 to validate, in two epochs; each once to fill the cache.
    assert_eq!((saving["passes"].as_u64(), saving["encoded"].as_u64()), (Some(552), Some(276)), "{plan}");
    assert!(saving["bytes"].as_u64() > Some(0) && saving["share"].as_f64() < Some(0.5), "{plan}");

    let (code, said, errors) = tlctl(&sandbox, &["submit", &file, "--watch"]);
    assert_eq!(code, Some(0), "{errors}");
    let downloads = hub.asked().iter().filter(|a| a.starts_with("GET /elsewhere")).count();
    assert_eq!(downloads, 1, "the probe's node and two ranks share one machine");
    let text = said.iter().map(ToString::to_string).collect::<String>();
    assert!(text.contains("downloads `hf://lab/net` from http://127.0.0.1"), "a download is announced");
    let id = said.last().unwrap()["job"].as_str().unwrap();
    assert_eq!(tlctl(&sandbox, &["fetch", id, "--out", &place("out")]).0, Some(0));
    let pinned = format!("hf://lab/net@{COMMIT}#model.safetensors");
    let job = std::fs::read_to_string(sandbox.dir().join("out/job.toml")).unwrap();
    assert!(job.contains(&pinned), "{job}");
    let report = std::fs::read_to_string(sandbox.dir().join("out/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let digest = &report["sources"][0]["files"][0]["sha256"];
    assert_eq!((&report["sources"][0]["pinned"], digest), (&Value::from(pinned), &Value::from(model.sha256.clone())));

    // Without the hub, what is here goes on.
    hub.fail(Faults { away: true, ..Faults::default() });
    let (code, said, errors) = tlctl(&sandbox, &["plan", &file]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(said[0]["plan"]["steps"]["main"].get("downloads").is_none());
    // What is nowhere is named at once.
    hub.fail(Faults::default());
    spec.model.as_mut().unwrap().weights = Some("hf://lab/other".into());
    std::fs::write(&file, spec.to_toml()).unwrap();
    let (code, said, _) = tlctl(&sandbox, &["submit", &file, "--watch"]);
    let failure = &said.last().unwrap()["failure"];
    assert_eq!(code, Some(1), "{failure}");
    let says = |key: &str, what: &str| failure[key].as_str().unwrap().contains(what);
    assert!(
        says("message", "`hf://lab/other` cannot be fetched: the repository has no `model.safetensors`"),
        "{failure}"
    );
    assert!(says("hint", "hf://OWNER/REPO@REVISION#FILE"), "{failure}");
}
