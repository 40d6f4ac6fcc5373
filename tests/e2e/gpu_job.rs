//! Whole jobs on a GPU, through a coordinator and a worker: on libraries in C that stand for NVIDIA's.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use nvlib::Library;
use serde_json::Value;
use tl_client::Job;
use tl_proto::{
    failure::FailureClass,
    hardware::Device,
    spec::{JobSpec, Ranks, parse},
    v1,
};
use tl_tests::{Sandbox, Series, alone, eventually};

/// The program whose mains the sandbox runs.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tl-sandbox");

/// A folder with libraries that stand for NVIDIA's; nothing where the machine has a driver of its own, which would come in the
/// way, or no compiler of kernels.
fn libraries() -> Option<String> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        if Library::Driver.open().is_ok() {
            eprintln!("skipped: this machine has a driver of its own");
            return None;
        }
        let cxx = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        if !Command::new(cxx).arg("--version").output().is_ok_and(|o| o.status.success()) {
            eprintln!("skipped: there is no C++ compiler to run kernels with");
            return None;
        }
        // That of the engine's tests: what is compiled of kernels stays there.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
        std::fs::create_dir_all(&dir).unwrap();
        nvlib::fake::build_computing(&dir).unwrap();
        for library in [Library::Driver, Library::Nvrtc, Library::Cublas, Library::Cudnn] {
            library.open_from(std::slice::from_ref(&dir)).unwrap();
        }
        // Compiles what a worker tries when it starts: there, it would wait no longer for that than for a GPU.
        tl_engine::gpu::works(0).unwrap();
        tl_engine::gpu::Place::open(Device::Cuda(0)).unwrap();
        Some(dir)
    };
    FOUND.get_or_init(find).as_ref().map(|dir| dir.display().to_string())
}

/// A head on frozen features, then everything; of so many samples a class, and a grain.
fn job(device: &str, samples: usize, (batch, grains): (usize, usize)) -> JobSpec {
    parse(&format!(
        r#"
schema = 1
job = {{ name = "gpu", kind = "finetune", seed = 3 }}
cluster = {{ device = "{device}" }}
optimizer = {{ name = "sgd" }}
[data]
format = "generated"
train = "target"
val = "target"
batch = {batch}
grains = {grains}
params = {{ train_samples = {samples}, val_samples = 2 }}
[model]
backbone = "small_cnn"
input = {side}
[[stage]]
name = "head"
epochs = 1
train = ["head"]
lr = 0.05
[[stage]]
name = "all"
epochs = 2
train = ["*"]
lr = 0.05
bn = "train"
"#,
        side = if grains == 1 { 32 } else { 16 }
    ))
    .unwrap()
}

async fn report(job: &Job, dir: &Path) -> Value {
    job.fetch(dir).await.unwrap();
    serde_json::from_slice(&std::fs::read(dir.join("report.json")).unwrap()).unwrap()
}

async fn log(job: &Job) -> String {
    let mut chunks = job.logs(false, 0).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        chunk.lines.iter().for_each(|line| text.push_str(&format!("{}\n", line.text)));
    }
    text
}

async fn nodes(sandbox: &Sandbox) -> BTreeMap<String, v1::Node> {
    let all = sandbox.client().await.nodes().await.unwrap();
    all.into_iter().map(|node| (node.name.clone(), node)).collect()
}

/// A folder with some of the libraries, and with what is compiled of kernels: what is done to it is nothing to other tests.
fn copied(libraries: &str, to: PathBuf, without: &[&str]) -> PathBuf {
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(libraries).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && !without.contains(&name.as_str()) {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
    to
}

/// A cluster of one worker that finds its libraries in a folder, and what else is in its environment.
async fn cluster(libraries: &str, environment: &[(&'static str, &str)], arguments: &[&str]) -> Sandbox {
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    sandbox.environment = vec![("NVLIB_PATH", libraries.to_owned())];
    sandbox.environment.extend(environment.iter().map(|(name, value)| (*name, (*value).to_owned())));
    sandbox.add_worker(arguments);
    sandbox.ready(1).await;
    sandbox
}

/// Waits until a job says that it waits for a reason with some words in it; all of them.
async fn waits(job: &Job, words: &str) -> String {
    eventually(words, async || job.get().await.ok().map(|job| job.why).filter(|why| why.contains(words))).await
}

async fn succeeds(sandbox: &Sandbox, job: &Job) -> (v1::Job, Series, Option<String>) {
    let found = sandbox.ends(job).await;
    assert_eq!(found.0.status, "succeeded", "{:#?}\n{}", found.0, log(job).await);
    found
}

fn history(job: &v1::Job) -> String {
    job.phases.iter().flat_map(|p| &p.history).map(|line| format!("{line}\n")).collect()
}

/// Sums have other orders on a GPU, and a sample between two classes may fall to either.
fn near(name: &str, got: f64, want: f64) {
    let room = if name.contains("accuracy") { 0.15 } else { 1e-3 * (1.0 + want.abs()) };
    assert!((got - want).abs() <= room, "{name}: {got} on the GPU and {want} on the CPU");
}

fn all_near(got: &Series, want: &Series) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (((step, name), got), want) in got.iter().zip(want.values()) {
        near(&format!("{name} of step {step}"), f64::from_bits(*got), f64::from_bits(*want));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_job_on_a_gpu_comes_to_what_it_comes_to_on_a_cpu() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    // One cache for both: what one has computed is of no use to the other.
    let cache = sandbox.dir().join("cache").display().to_string();
    sandbox.environment = vec![("NVLIB_PATH", libraries)];
    sandbox.add_worker(&["--cache", &cache, "--gpus", "none"]);
    sandbox.add_worker(&["--cache", &cache]);
    sandbox.ready(2).await;
    let nodes = nodes(&sandbox).await;
    assert_eq!((nodes["w0"].device.as_str(), nodes["w1"].device.as_str()), ("cpu", "cuda, cpu"));
    assert!(nodes["w0"].machine.ends_with("1 x Fake GPU (80 GiB), not used"), "{}", nodes["w0"].machine);

    let mut found = Vec::new();
    for (device, runs_on) in [("cpu", "cpu"), ("cuda", "cuda:0"), ("auto", "cuda:0")] {
        let job = sandbox.submit(&job(device, 4, (9, 3))).await;
        let (ended, series, _) = sandbox.ends(&job).await;
        assert_eq!(ended.status, "succeeded", "{ended:#?}\n{}", log(&job).await);
        let said = log(&job).await;
        assert!(said.contains(&format!("rank 0 of 1 on {runs_on} ")), "{said}");
        found.push((series, report(&job, &sandbox.dir().join(device)).await));
    }
    let [(on_cpu, by_cpu), (on_gpu, by_gpu), (again, once_more)] = &found[..] else { panic!("three jobs") };
    all_near(on_gpu, on_cpu);
    for figure in ["loss", "accuracy"] {
        let of = |report: &Value| report["evaluation"][figure].as_f64().unwrap();
        near(figure, of(by_gpu), of(by_cpu));
    }
    assert_eq!((by_gpu["steps"].as_u64(), again), (by_cpu["steps"].as_u64(), on_gpu));
    let computed = [by_cpu, by_gpu, once_more].map(|report| report["prefix"]["computed"].as_u64().unwrap());
    assert_eq!(computed, [36, 36, 0], "features belong to the numbers of a device");
}

#[tokio::test(flavor = "current_thread")]
async fn what_does_not_fit_into_the_memory_of_a_gpu_is_told_with_what_to_do() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    // cuBLAS has 32 MiB of it for itself.
    sandbox.environment = vec![("NVLIB_PATH", libraries), ("FAKE_MEMORY", (40 << 20).to_string())];
    sandbox.add_worker(&["--slots", "1"]);
    sandbox.ready(1).await;
    assert_eq!(nodes(&sandbox).await["w0"].device, "cuda, cpu");
    let job = sandbox.submit(&job("cuda", 12, (64, 1))).await;
    let (ended, ..) = sandbox.ends(&job).await;
    let failure = ended.failure.expect("a failure");
    assert_eq!((ended.status.as_str(), failure.class.as_str()), ("failed", FailureClass::OutOfMemory.as_str()));
    assert_eq!(failure.message, "the memory of the GPU is full");
    assert!(failure.hint.contains("`data.grains`"), "{}", failure.hint);
}

#[tokio::test(flavor = "current_thread")]
async fn a_gpu_that_does_not_work_is_left_out_and_the_cpu_is_there() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    sandbox.environment = vec![("NVLIB_PATH", libraries), ("FAKE_MEMORY", "1000".into())];
    sandbox.add_worker(&[]);
    sandbox.ready(1).await;
    let node = nodes(&sandbox).await.remove("w0").unwrap();
    assert_eq!((node.device.as_str(), node.slots), ("cpu", 1));
    assert!(node.machine.ends_with(", not used"), "{}", node.machine);
    let problem = node.hardware.unwrap().gpus[0].problem.clone();
    assert_eq!(problem, "GPU 0 cannot be used: the memory of the GPU is full");
    assert_eq!(sandbox.logs().matches(&format!("{problem}; it is not offered")).count(), 1, "{}", sandbox.logs());
    let job = sandbox.submit(&job("cuda", 4, (9, 3))).await;
    let want = format!("it needs 1 slots on GPUs and all nodes together have 0; `w0`: {problem}");
    assert_eq!(waits(&job, "on GPUs").await, want);
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_for_the_gpu_keeps_nobody_from_the_cpu() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let sandbox = cluster(&libraries, &[], &[]).await;
    let mut long = job("cuda", 4, (9, 3));
    long.stage[1].epochs = 1_000;
    let first = sandbox.submit(&long).await;
    sandbox.passes(&first, 1).await;
    let second = sandbox.submit(&job("cuda", 4, (9, 3))).await;
    let third = sandbox.submit(&job("cpu", 4, (9, 3))).await;
    succeeds(&sandbox, &third).await;
    let waiting = second.get().await.unwrap();
    assert_eq!((waiting.status.as_str(), waiting.why_code.as_str()), ("queued", "slots_busy"), "{waiting:#?}");
    first.cancel().await.unwrap();
    succeeds(&sandbox, &second).await;
    assert!(log(&second).await.contains("rank 0 of 1 on cuda:0 "));
}

#[tokio::test(flavor = "current_thread")]
async fn a_rank_that_is_killed_goes_on_on_its_gpu_and_comes_to_the_same() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let sandbox = cluster(&libraries, &[], &[]).await;
    // Moments live on the GPU, too.
    let mut spec = job("auto", 4, (9, 3));
    (spec.optimizer.name, spec.checkpoint.every, spec.stage[1].epochs) = ("adamw".into(), 2, 6);
    spec.stage.iter_mut().for_each(|stage| stage.lr = 1e-3f64.into());
    let undisturbed = sandbox.submit(&spec).await;
    let (_, series, model) = succeeds(&sandbox, &undisturbed).await;
    let disturbed = sandbox.submit(&spec).await;
    sandbox.passes(&disturbed, 8).await;
    let ranks = eventually("a rank", async || Some(sandbox.ranks(0)).filter(|ranks| !ranks.is_empty())).await;
    kill(Pid::from_raw(ranks[0]), Signal::SIGKILL).unwrap();
    let (ended, again, same) = succeeds(&sandbox, &disturbed).await;
    let (told, said) = (history(&ended), log(&disturbed).await);
    assert!(told.contains("was killed") && told.contains("training goes on from step"), "{told}");
    assert_eq!((said.matches("rank 0 of 1 on cuda:0 ").count(), said.matches(" on cpu ").count()), (2, 0), "{said}");
    assert_eq!((again, same), (series, model));
}

#[tokio::test(flavor = "current_thread")]
async fn a_gpu_that_goes_after_the_start_is_withdrawn_and_is_used_again_when_it_is_back() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let own = copied(&libraries, folder.path().join("libraries"), &[]);
    let sandbox = cluster(&own.display().to_string(), &[], &[]).await;
    assert_eq!(nodes(&sandbox).await["w0"].device, "cuda, cpu");
    let (driver, away) = (own.join("libcuda.so.1"), folder.path().join("away"));
    std::fs::rename(&driver, &away).unwrap();
    let job = sandbox.submit(&job("cuda", 4, (9, 3))).await;
    let why = waits(&job, "GPU 0 cannot be used").await;
    assert!(why.starts_with("it needs 1 slots on GPUs and all nodes together have 0; `w0`: GPU 0 cannot be"), "{why}");
    let node = nodes(&sandbox).await.remove("w0").unwrap();
    assert_eq!((node.device.as_str(), node.slots), ("cpu", 1));
    assert!(node.machine.ends_with(", not used"), "{}", node.machine);
    std::fs::rename(&away, &driver).unwrap();
    let (ended, ..) = succeeds(&sandbox, &job).await;
    assert!(history(&ended).contains("rank 0 ended (lost_device): GPU 0 cannot be used"), "{}", history(&ended));
    assert_eq!(nodes(&sandbox).await["w0"].device, "cuda, cpu");
}

#[tokio::test(flavor = "current_thread")]
async fn ranks_on_two_gpus_add_up_over_nccl_and_without_it_are_no_gang() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let meeting = folder.path().join("nccl");
    std::fs::create_dir(&meeting).unwrap();
    let environment = [("FAKE_GPUS", "2"), ("FAKE_NCCL_DIR", meeting.to_str().unwrap())];
    let mut two = job("cuda", 4, (9, 3));
    two.cluster.ranks = Ranks { min: 2, max: 2 };
    {
        let sandbox = cluster(&libraries, &environment, &[]).await;
        let together = sandbox.submit(&two).await;
        let (_, series, _) = succeeds(&sandbox, &together).await;
        let said = log(&together).await;
        assert!((0..2).all(|rank| said.contains(&format!("rank {rank} of 2 on cuda:{rank} "))), "{said}");
        let alone = sandbox.submit(&job("cpu", 4, (9, 3))).await;
        all_near(&series, &succeeds(&sandbox, &alone).await.1);
    }
    if Library::Nccl.open().is_ok() {
        eprintln!("the rest is skipped: this machine has an NCCL of its own");
        return;
    }
    let own = copied(&libraries, folder.path().join("libraries"), &["libnccl.so.2"]);
    let sandbox = cluster(&own.display().to_string(), &environment, &[]).await;
    let together = sandbox.submit(&two).await;
    waits(&together, "; 2 GPUs have no NCCL, over which ranks add up").await;
    two.cluster.ranks.min = 1;
    let either = sandbox.submit(&two).await;
    succeeds(&sandbox, &either).await;
    assert!(log(&either).await.contains("rank 0 of 1 on cuda:"));
}

#[tokio::test(flavor = "current_thread")]
async fn two_workers_of_one_machine_do_not_share_a_gpu_and_a_number_that_none_has_is_told() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let mut sandbox = cluster(&libraries, &[], &[]).await;
    sandbox.add_worker(&[]);
    sandbox.ready(2).await;
    sandbox.add_worker(&["--gpus", "7"]);
    sandbox.ready(3).await;
    let nodes = nodes(&sandbox).await;
    let devices = ["w0", "w1", "w2"].map(|name| nodes[name].device.as_str());
    assert_eq!(devices, ["cuda, cpu", "cpu", "cpu"]);
    let problem = &nodes["w1"].hardware.as_ref().unwrap().gpus[0].problem;
    assert!(problem.starts_with("GPU 0 is the one that node `w0` offers; "), "{problem}");
    assert!(sandbox.logs().contains("`--gpus` names GPU 7, and there is none of that number here"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_driver_that_falls_over_leaves_the_agent_and_the_cpu() {
    if libraries().is_none() {
        return;
    }
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("driver.c"), folder.path().join("libcuda.so.1"));
    let falls = "#include <stdlib.h>\n__attribute__((constructor)) static void fall(void) { abort(); }\n";
    std::fs::write(&source, falls).unwrap();
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let done = Command::new(cc).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(done.success());
    let sandbox = cluster(&folder.path().display().to_string(), &[], &[]).await;
    let node = nodes(&sandbox).await.remove("w0").unwrap();
    assert_eq!((node.device.as_str(), node.slots), ("cpu", 1));
    assert_eq!(node.hardware.unwrap().note, "the process that looked for GPUs died of signal 6");
    let job = sandbox.submit(&job("auto", 4, (9, 3))).await;
    succeeds(&sandbox, &job).await;
}
