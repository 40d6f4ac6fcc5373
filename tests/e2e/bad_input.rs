//! Bad input: a clear sentence, what to do next, an exit code; and nothing half-started.

use std::{path::Path, process::Command};

use tl_proto::spec::{BnMode, JobSpec};
use tl_tests::{Sandbox, alone, eventually, jobs};

use crate::PROGRAM;

/// What a user gets to read, and the exit code.
fn submit(sandbox: &Sandbox, file: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.arg("submit").arg(file).args(["--watch", "--coordinator", sandbox.address()]).args(more);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// What must not change: jobs, blobs, ranks.
async fn footprint(sandbox: &Sandbox) -> (usize, usize, usize) {
    let jobs = sandbox.client().await.list(100, false).await.unwrap().len();
    let blobs = std::fs::read_dir(sandbox.blobs()).unwrap().flatten().filter(|e| e.path().is_file()).count();
    (jobs, blobs, (0..sandbox.workers.len()).map(|n| sandbox.ranks(n).len()).sum())
}

fn photo(path: &Path, shade: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    // A PNG of one grey pixel row by row would do; a portable grey map is no format of ours, so a real PNG is drawn.
    image::RgbImage::from_pixel(40, 40, image::Rgb([shade, 90, 200 - shade])).save(path).unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn what_the_job_file_says_wrong_is_refused_before_anything_starts() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 1).await;
    let good = jobs::thorny("1").to_toml();
    let before = footprint(&sandbox).await;
    let file = sandbox.dir().join("job.toml");
    for (from, to, says, hint) in [
        ("epochs = 16", "epocs = 16", "unknown key `epocs`", "did you mean `epochs`?"),
        ("small_cnn", "smal_cnn", "there is no backbone `smal_cnn`", "did you mean `small_cnn`?"),
        ("\"finetune\"", "\"finetun\"", "there is no job kind `finetun`", "did you mean `finetune`?"),
        ("lr = 0.002", "lr = -0.002", "lr cannot be -0.002", "a number from"),
        ("batch = 27", "batch = -27", "invalid value", ""),
        ("ranks = 1", "ranks = 40", "a batch of 27 is smaller than 40 ranks", "raise `data.batch`"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        std::fs::write(&file, good.replace(from, to)).unwrap();
        let (code, said) = submit(&sandbox, &file, &[]);
        assert_eq!(code, Some(2), "{to}: {said}");
        assert!(said.contains(says) && said.contains(hint), "{to}: {said}");
    }
    let (code, said) = submit(&sandbox, &sandbox.dir().join("none.toml"), &[]);
    assert!(code == Some(2) && said.contains("none.toml` cannot be read"), "{said}");
    std::fs::File::create(&file).and_then(|f| f.set_len(100 << 20)).unwrap();
    let (code, said) = submit(&sandbox, &file, &[]);
    assert!(code == Some(2) && said.contains("more than the limit"), "{said}");
    assert_eq!(footprint(&sandbox).await, before);
}

#[tokio::test(flavor = "current_thread")]
async fn what_only_a_node_can_see_fails_the_job_with_names() {
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 1).await;
    let photos = sandbox.dir().join("photos");
    for (class, shade) in [("a", 10), ("b", 150)] {
        (0..12).for_each(|n| photo(&photos.join(format!("{class}/{n}.png")), shade + n));
    }
    let with = |change: &dyn Fn(&mut JobSpec)| {
        let mut spec = jobs::thorny("1");
        let data = spec.data.as_mut().unwrap();
        data.format = "image_folder".into();
        data.params.clear();
        data.train_per_class = None;
        (data.train, data.val) = (photos.display().to_string(), photos.display().to_string());
        spec.stage.truncate(1);
        spec.stage[0].epochs = 1;
        change(&mut spec);
        spec
    };
    let place = |name: &str| sandbox.dir().join(name).display().to_string();
    photo(&sandbox.dir().join("one-class/a/0.png"), 1);
    photo(&sandbox.dir().join("empty/a/0.png"), 1);
    std::fs::create_dir_all(sandbox.dir().join("empty/b")).unwrap();
    photo(&sandbox.dir().join("odd/a/0.png"), 1);
    photo(&sandbox.dir().join("odd/b/0.png"), 90);
    std::fs::write(sandbox.dir().join("odd/b/1.jpg"), "not an image").unwrap();
    // A model of another architecture, under a name that says otherwise.
    let weights = sandbox.dir().join("other.safetensors");
    let job = sandbox.submit(&with(&|s| s.model.as_mut().unwrap().head.hidden = vec![])).await;
    let (ended, _, _) = sandbox.ends(&job).await;
    assert_eq!(ended.status, "succeeded", "{ended:#?}");
    let files = job.fetch(&sandbox.dir().join("fetched")).await.unwrap();
    let model = files.iter().find(|f| f.name == "model.safetensors").unwrap();
    std::fs::copy(&model.path, &weights).unwrap();

    type Change<'a> = Box<dyn Fn(&mut JobSpec) + 'a>;
    let train = |path: String| -> Change<'_> { Box::new(move |s| s.data.as_mut().unwrap().train = path.clone()) };
    let rows: Vec<(Change<'_>, &str, &str)> = vec![
        (train(place("missing")), "cannot be opened", "check the path"),
        (train("/etc".into()), "is not below a data root", "allowed on this node"),
        (train(place("one-class")), "has only one class", "folder of its own"),
        (train(place("empty")), "`b`", "remove the empty folder"),
        (train(place("odd")), "1.jpg` cannot be decoded", "data.skip_bad = 1"),
        (
            Box::new(|s| {
                let model = s.model.as_mut().unwrap();
                (model.backbone, model.weights) = ("resnet20".into(), Some(weights.display().to_string()));
            }),
            "are of another network: no conv1.weight",
            "",
        ),
        (
            Box::new(|s| {
                (s.optimizer.name, s.optimizer.clip_norm) = ("sgd".into(), None);
                (s.stage[0].lr, s.stage[0].epochs, s.stage[0].bn) = (1e3.into(), 20, BnMode::Frozen);
                s.modifiers.clear();
            }),
            "failed (nan): the",
            "lower the learning rate",
        ),
    ];
    for (change, says, hint) in rows {
        let file = sandbox.dir().join("job.toml");
        std::fs::write(&file, with(&*change).to_toml()).unwrap();
        let (code, said) = submit(&sandbox, &file, &[]);
        assert_eq!(code, Some(1), "{says}: {said}");
        assert!(said.contains(says) && said.contains(hint), "{says}: {said}");
        eventually("no rank", async || (sandbox.ranks(0).is_empty()).then_some(())).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_unreachable_coordinator_a_taken_port_and_a_second_twin_are_named() {
    let _alone = alone().await;
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().to_string();
    let (code, said) = run(&["ls", "--coordinator", &free]);
    assert!(code == Some(4) && said.contains("cannot be reached") && said.contains("hint: start one"), "{said}");

    let mut sandbox = Sandbox::start(PROGRAM, 1).await;
    let data = sandbox.dir().join("second").display().to_string();
    let (code, said) = run(&["coordinator", "--listen", sandbox.address(), "--http", "127.0.0.1:0", "--data", &data]);
    assert!(code == Some(1) && said.contains("cannot listen on") && said.contains(sandbox.address()), "{said}");
    let held = sandbox.dir().join("coordinator").display().to_string();
    let (_, said) = run(&["coordinator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", &held]);
    assert!(said.contains("another coordinator uses"), "{said}");
    let (_, said) = run(&["coordinator", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--data", &data]);
    assert!(said.contains("there is no token for the role `user`"), "{said}");

    // The same folder is locked; a copy of it is the same node.
    let (_, said) =
        run(&["worker", "--coordinator", sandbox.address(), "--data", &sandbox.workers[0].data.display().to_string()]);
    assert!(said.contains("another agent uses"), "{said}");
    let copy = sandbox.dir().join("worker-1");
    std::fs::create_dir_all(&copy).unwrap();
    std::fs::copy(sandbox.workers[0].data.join("node-id"), copy.join("node-id")).unwrap();
    sandbox.add_worker(&[]);
    assert!(!sandbox.worker_ends(1).await.success());
    let said = std::fs::read_to_string(sandbox.dir().join("worker-1.log")).unwrap();
    assert!(said.contains("two agents share a data folder"), "{said}");
    assert_eq!(sandbox.client().await.nodes().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_message_over_the_limit_is_refused_and_the_next_one_is_served() {
    use tl_proto::v1::{SubmitRequest, user_client::UserClient};
    let _alone = alone().await;
    let sandbox = Sandbox::start(PROGRAM, 1).await;
    let before = footprint(&sandbox).await;
    let mut user = UserClient::connect(format!("http://{}", sandbox.address())).await.unwrap();
    let mut submit = async |bytes: usize| {
        let request = SubmitRequest { idempotency_key: "k".into(), spec_json: vec![b' '; bytes] };
        let refused = user.submit(request).await.unwrap_err();
        (format!("{:?}", refused.code()), refused.message().to_owned())
    };
    // Over the limit of gRPC, over that of a job, and no job at all.
    let (code, said) = submit(tl_proto::MAX_MESSAGE_BYTES + 1).await;
    assert!(code == "OutOfRange" && said.contains("limit"), "{code}: {said}");
    let (code, said) = submit(tl_proto::MAX_SPEC_BYTES + 1).await;
    assert!(code == "ResourceExhausted" && said.contains("more than the limit"), "{code}: {said}");
    assert_eq!(submit(10).await.0, "InvalidArgument");
    assert_eq!(footprint(&sandbox).await, before);
}
