//! Data sets and weights that are pushed to the cluster: no path of any node is needed.

use std::{path::Path, process::Command};

use serde_json::Value;
use tl_tests::{Sandbox, alone, eventually};

use crate::PROGRAM;

fn tlctl(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).args(["--coordinator", sandbox.address(), "--output", "json"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    (output.status.code(), last, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Photos of two classes that differ in brightness, `each` per class and part.
fn photos(dir: &Path, each: u8) {
    for part in ["train", "val"] {
        for (class, shade) in [("dark", 30u8), ("light", 190)] {
            let folder = dir.join(part).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..each {
                let photo = image::RgbImage::from_fn(36, 40, |x, y| {
                    let v = shade + i + (x * y % 29) as u8;
                    image::Rgb([v, v / 2 + i, v])
                });
                photo.save(folder.join(format!("{i:02}.png"))).unwrap();
            }
        }
    }
}

fn job(dir: &Path, kind: &str, place: &str, more: &str) -> String {
    let path = dir.join(format!("{kind}.toml"));
    let text = format!(
        r#"
schema = 1
job = {{ name = "{kind}", kind = "{kind}", seed = 3 }}
cluster = {{ ranks = 2 }}
data = {{ format = "image_folder", train = "{place}/train", val = "{place}/val", batch = 12, grains = 4 }}
[model]
backbone = "small_cnn"
{more}
[[stage]]
name = "all"
epochs = 6
train = ["*"]
lr = 5e-3
bn = "train"
"#
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "current_thread")]
async fn a_pushed_data_set_and_a_pushed_teacher_train_where_no_path_is_allowed() {
    let _alone = alone().await;
    let sandbox = Sandbox::start_rootless(PROGRAM, 2).await;
    let here = tempfile::tempdir().unwrap();
    photos(&here.path().join("photos"), 12);
    let folder = here.path().join("photos").display().to_string();

    // A plain path is refused on these nodes.
    let (code, last, said) = tlctl(&sandbox, &["submit", &job(here.path(), "finetune", &folder, ""), "--watch"]);
    assert_eq!(code, Some(1), "{last} {said}");
    assert!(last["failure"]["message"].as_str().unwrap().contains("not below a data root"), "{last}");

    let (code, pushed, said) = tlctl(&sandbox, &["data", "push", &folder]);
    assert_eq!(code, Some(0), "{said}");
    let place = pushed["data"].as_str().unwrap().to_owned();
    assert_eq!((pushed["set"]["files"].as_u64(), pushed["set"]["name"].as_str()), (Some(48), Some("photos")));
    let blobs = || std::fs::read_dir(sandbox.blobs()).unwrap().flatten().filter(|e| e.path().is_file()).count();
    let before = blobs();
    assert_eq!(tlctl(&sandbox, &["data", "push", &folder]).1["data"], place.as_str(), "the same files, the same name");
    assert_eq!(blobs(), before);

    let out = here.path().join("teacher");
    let (code, last, said) = tlctl(&sandbox, &["submit", &job(here.path(), "finetune", &place, ""), "--watch"]);
    assert_eq!(code, Some(0), "{last} {said}");
    assert_eq!(last["metrics"]["val.accuracy"], 1.0, "{last}");
    let id = last["job"].as_str().unwrap();
    assert_eq!(tlctl(&sandbox, &["fetch", id, "--out", &out.display().to_string()]).0, Some(0));
    let effective = std::fs::read_to_string(out.join("job.toml")).unwrap();
    assert!(effective.contains(&place), "the exported job names the data set, not a folder of one node: {effective}");

    // The teacher of a distillation is pushed as well: a single file.
    let model = out.join("model.safetensors").display().to_string();
    let (_, pushed, said) = tlctl(&sandbox, &["data", "push", &model, "--name", "teacher"]);
    let weights = format!("{}/model.safetensors", pushed["data"].as_str().unwrap_or_else(|| panic!("{said}")));
    let teacher = format!("[nets.teacher]\nbackbone = \"small_cnn\"\nweights = \"{weights}\"");
    let (code, last, said) = tlctl(&sandbox, &["submit", &job(here.path(), "distill", &place, &teacher), "--watch"]);
    assert_eq!(code, Some(0), "{last} {said}");
    assert_eq!(last["metrics"]["val.accuracy"], 1.0, "{last}");
    let result = sandbox.client().await.job(last["job"].as_str().unwrap()).get().await.unwrap();
    let result: Value = serde_json::from_slice(&result.phases[1].result_json).unwrap();
    assert_eq!(result["prefix"]["computed"], 24, "the teacher runs once per training sample, over both ranks");

    // What a job needs stays; what none needs goes, with its blob.
    let file = job(here.path(), "finetune", &place, "");
    let mut slow = tl_client::spec_file::load(file.as_ref(), &[], &Default::default()).unwrap();
    slow.stage[0].epochs = 10_000;
    let running = sandbox.submit(&slow).await;
    let (code, _, said) = tlctl(&sandbox, &["data", "rm", &place]);
    assert!(code == Some(5) && said.contains("needs it"), "{said}");
    running.cancel().await.unwrap();
    assert_eq!(tlctl(&sandbox, &["data", "rm", "photos"]).0, Some(0));
    assert_eq!(tlctl(&sandbox, &["data", "ls"]).1["sets"].as_array().unwrap().len(), 1);
    assert!(!sandbox.blobs().join(place.strip_prefix("data:").unwrap()).exists());
    let (code, last, said) = tlctl(&sandbox, &["submit", &job(here.path(), "finetune", &place, "")]);
    assert!(code == Some(2) && said.contains("there is no data set"), "{last} {said}");
    let (code, _, said) = tlctl(&sandbox, &["submit", &job(here.path(), "finetune", "data:photos", "")]);
    assert!(code == Some(2) && said.contains("not the name of a pushed data set"), "{said}");
    eventually("no rank", async || (0..2).all(|n| sandbox.ranks(n).is_empty()).then_some(())).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pushed_list_names_files_of_its_own_data_set_and_no_others() {
    let _alone = alone().await;
    let sandbox = Sandbox::start_rootless(PROGRAM, 2).await;
    let here = tempfile::tempdir().unwrap();
    let folder = here.path().join("photos");
    photos(&folder, 12);
    let named = |class: &str| (0..8).map(|i| format!("{class}/{i:02}.png a {class} one\n")).collect::<String>();
    std::fs::write(folder.join("some.txt"), named("dark") + &named("light")).unwrap();
    std::fs::write(folder.join("train/out.txt"), "../val/dark/00.png\n").unwrap();
    let (_, pushed, said) = tlctl(&sandbox, &["data", "push", &folder.display().to_string()]);
    let place = pushed["data"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned();
    let file = job(here.path(), "finetune", &place, "");
    let submit = |list: &str, more: &[&str]| {
        let train = format!("data.train={place}/{list}");
        let mut arguments =
            vec!["submit", file.as_str(), "--watch", "--set", "stage.0.epochs=1", "--set", train.as_str()];
        arguments.extend_from_slice(more);
        tlctl(&sandbox, &arguments)
    };
    let root = format!("data.params.root={place}/train");
    let (code, last, said) = submit("some.txt", &["--set", &root, "--set", "data.params.depth=1"]);
    assert_eq!(code, Some(0), "{last} {said}");
    let done = sandbox.client().await.job(last["job"].as_str().unwrap()).get().await.unwrap();
    let result: Value = serde_json::from_slice(&done.phases[1].result_json).unwrap();
    assert_eq!(result["samples"], serde_json::json!([16, 24]), "{result}");
    let (code, last, said) = submit("train/out.txt", &[]);
    let failed = last["failure"]["message"].as_str().unwrap_or_default();
    assert!(code == Some(1) && failed.contains("line 1 of") && failed.contains("leads out of"), "{last} {said}");
    let out = format!("data.params.root={place}/..");
    let (code, _, said) = submit("some.txt", &["--set", &out]);
    assert!(code == Some(2) && said.contains("leads out of its data set"), "{said}");
}
