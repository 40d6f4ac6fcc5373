//! Whole jobs on a GPU, through a coordinator and a worker: on the first one of this machine, else on libraries in C that
//! stand for NVIDIA's. `tests/gpu/run.sh` brings them to a machine that has one.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod gpu_cluster;
mod gpu_gang;
mod gpu_photos;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use nvlib::{Library, driver::ProbeError};
use serde_json::Value;
use tl_client::Job;
use tl_engine::{collective::Solo, link::Deaf, train};
use tl_proto::{
    failure::FailureClass,
    hardware::Device,
    spec::{JobSpec, parse},
    v1,
};
use tl_tests::{Sandbox, Series, alone, alone_blocking};

/// The program whose mains the sandbox runs: that of this build, or one that came with these tests.
fn program() -> String {
    std::env::var("TL_SANDBOX").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tl-sandbox").into())
}

/// What workers compute on.
enum Gpu {
    /// The first one of this machine.
    Real,
    /// One that libraries in this folder stand for.
    Fake(String),
}

impl Gpu {
    fn is_real(&self) -> bool {
        matches!(self, Self::Real)
    }

    /// What a worker finds it by.
    fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Real => Vec::new(),
            Self::Fake(dir) => vec![("NVLIB_PATH", dir.clone())],
        }
    }
}

/// The GPU; nothing where there is neither one nor a compiler of kernels, which it says.
fn gpu() -> Option<&'static Gpu> {
    static FOUND: OnceLock<Option<Gpu>> = OnceLock::new();
    let find = || match nvlib::driver::probe() {
        Ok(driver) if driver.gpus.is_empty() => skip("this machine has a driver and no GPU"),
        Ok(driver) => {
            eprintln!("on {}", driver.gpus[0].name);
            Some(Gpu::Real)
        }
        Err(ProbeError::Missing(why)) => {
            assert!(!nvlib::fake::is_barred(), "{why}");
            fake().map(|dir| Gpu::Fake(dir.display().to_string()))
        }
        Err(e) => skip(&e.to_string()),
    };
    FOUND.get_or_init(find).as_ref()
}

/// The folder of the libraries, for what no GPU does on demand.
fn libraries() -> Option<String> {
    match gpu()? {
        Gpu::Fake(dir) => Some(dir.clone()),
        Gpu::Real => skip("this machine has a driver of its own"),
    }
}

fn skip<T>(why: &str) -> Option<T> {
    eprintln!("skipped: {why}");
    None
}

fn fake() -> Option<PathBuf> {
    let cxx = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if !Command::new(cxx).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skip("there is no C++ compiler to run kernels with");
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
    let Some(gpu) = gpu() else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(&program(), None).await;
    // One cache for both: what one has computed is of no use to the other.
    let cache = sandbox.dir().join("cache").display().to_string();
    sandbox.environment = gpu.environment();
    sandbox.add_worker(&["--cache", &cache, "--gpus", "none"]);
    sandbox.add_worker(&["--cache", &cache, "--gpus", "0"]);
    sandbox.ready(2).await;
    let nodes = nodes(&sandbox).await;
    assert_eq!((nodes["w0"].device.as_str(), nodes["w1"].device.as_str()), ("cpu", "cuda, cpu"), "{}", sandbox.logs());
    assert!(nodes["w0"].machine.ends_with(", not used"), "{}", nodes["w0"].machine);
    let named = gpu.is_real() || nodes["w0"].machine.contains("1 x Fake GPU (80 GiB)");
    assert!(named, "{}", nodes["w0"].machine);
    let kept = std::fs::read_dir(Path::new(&cache).join("kernels")).map(Iterator::count);
    assert!(kept.is_ok_and(|kept| kept > 0), "what a look at the GPU has compiled is there for ranks");

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
    eprintln!("evaluated: {} on the CPU, {} on the GPU", by_cpu["evaluation"]["loss"], by_gpu["evaluation"]["loss"]);
    let computed = [by_cpu, by_gpu, once_more].map(|report| report["prefix"]["computed"].as_u64().unwrap());
    assert_eq!(computed, [36, 36, 0], "features belong to the numbers of a device");
}

#[test]
fn where_only_a_real_gpu_counts_no_job_runs_on_a_fake_one() {
    let Some(Gpu::Fake(_)) = gpu() else { return };
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "a_job_on_a_gpu_comes_to_what_it_comes_to_on_a_cpu", "--nocapture"]);
    let ended = again.env("TL_GPU_REAL", "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("(libcuda.so.1) was not found in "), "{said}");
}

#[tokio::test(flavor = "current_thread")]
async fn what_does_not_fit_into_the_memory_of_a_gpu_is_told_with_what_to_do() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(&program(), None).await;
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
    let mut sandbox = Sandbox::bare(&program(), None).await;
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
    let want = format!("it needs 1 slot on GPUs and all nodes together have 0; `w0`: {problem}");
    assert_eq!(gpu_cluster::waits(&job, "on GPUs").await, want);
}

/// Runs a command on the libraries to its end: its exit code, the events that it has printed, and what else it said.
fn tlctl(libraries: &str, arguments: &[&str], more: &[(&str, &str)]) -> (Option<i32>, Vec<Value>, String) {
    let mut command = Command::new(program());
    command.args(arguments).env("NVLIB_PATH", libraries).envs(more.iter().copied()).env_remove("TL_COORDINATOR");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let events = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (output.status.code(), events, printed + &String::from_utf8_lossy(&output.stderr))
}

/// A model of the job that was trained in this process, by its folder.
fn trained(dir: &Path) -> String {
    let work = dir.join("work");
    std::fs::create_dir_all(&work).unwrap();
    let config = train::Config {
        spec: job("cpu", 4, (9, 3)),
        inputs: Default::default(),
        pushed: Default::default(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        work: work.clone(),
        cache: dir.join("cache"),
        cache_bytes: 1 << 26,
        features: Vec::new(),
        resume: Vec::new(),
        place: Default::default(),
    };
    train::run(&config, &mut Solo, &mut Deaf).unwrap();
    work.join("model").display().to_string()
}

#[test]
fn a_finished_model_runs_on_the_device_that_is_asked_for() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let model = trained(dir.path());
    let images = ["a.png", "b.png"].map(|name| dir.path().join(name).display().to_string());
    for (image, dark) in images.iter().zip([true, false]) {
        let side = |x: u32| if (x < 16) == dark { 20 } else { 230 };
        image::RgbImage::from_fn(32, 32, |x, _| image::Rgb([side(x); 3])).save(image).unwrap();
    }
    let (model, [a, b]) = (model.as_str(), images.each_ref().map(String::as_str));
    let data = ["evaluate", model, "target", "--format", "generated", "--seed", "3", "--param", "val_samples=2"];
    let predict = ["predict", model, a, b, "--top", "9"];
    let run = |arguments: &[&str], device: &str, more: &[(&str, &str)]| {
        let on = ["--output", "json", "--device", device];
        let (code, events, said) = tlctl(&libraries, &[arguments, &on].concat(), more);
        assert_eq!(code, Some(0), "{device}: {said}");
        events
    };
    let (scored, seen) = (run(&data, "cpu", &[]), run(&predict, "cpu", &[]));
    assert_eq!((&scored[0]["device"], &seen[1]["device"], seen.len()), (&"cpu".into(), &"cpu".into(), 2));
    for device in ["cuda", "auto"] {
        let (score, sight) = (run(&data, device, &[]), run(&predict, device, &[]));
        assert_eq!((&score[0]["device"], &sight[1]["device"]), (&"cuda:0".into(), &"cuda:0".into()), "{device}");
        for name in ["val.loss", "val.accuracy"] {
            let of = |events: &[Value]| events[0]["metrics"][name].as_f64().unwrap();
            near(name, of(&score), of(&scored));
        }
        for (got, want) in sight.iter().zip(&seen) {
            let chances = |event: &Value| {
                let all = event["classes"].as_array().unwrap().iter();
                all.map(|c| (c["class"].to_string(), c["probability"].as_f64().unwrap())).collect::<BTreeMap<_, _>>()
            };
            let (got, want) = (chances(got), chances(want));
            assert!(got.len() == 6 && got.keys().eq(want.keys()), "{got:?} and {want:?}");
            got.iter().zip(want.values()).for_each(|((class, got), want)| near(class, *got, *want));
        }
    }

    // One that does not work is passed over, unless it was asked for.
    let full = [("FAKE_MEMORY", "1000")];
    assert_eq!(run(&data, "auto", &full)[0]["device"], "cpu");
    let (code, _, said) = tlctl(&libraries, &data, &full);
    assert!(code == Some(0) && said.contains("the memory of the GPU is full; cpu is used"), "{said}");
    for (device, more, why) in [
        ("cuda:0", &full[..], "GPU 0 cannot be used: the memory of the GPU is full"),
        ("cuda:7", &full[..0], "GPU 7 cannot be used: "),
    ] {
        let on = ["--output", "json", "--device", device];
        let (code, events, said) = tlctl(&libraries, &[&data[..], &on].concat(), more);
        assert_eq!((code, events[0]["event"].as_str()), (Some(2), Some("error")), "{said}");
        assert!(events[0]["message"].as_str().unwrap().starts_with(why), "{said}");
        assert!(events[0]["hint"].as_str().unwrap().contains("`--device cpu`"), "{said}");
    }
}

#[test]
fn ranks_that_share_a_gpu_give_the_same() {
    let Some(libraries) = libraries() else { return };
    let _alone = alone_blocking();
    let dir = tempfile::tempdir().unwrap();
    let mut spec = job("auto", 4, (9, 3));
    spec.stage.remove(0);
    spec.stage[0].train = ["head", "block1"].map(str::to_owned).into();
    let file = dir.path().join("job.toml");
    std::fs::write(&file, spec.to_toml()).unwrap();
    let file = file.display().to_string();
    let verify = ["verify", &file, "--steps", "2", "--device", "cuda:0", "--output", "json"];
    let (code, events, said) = tlctl(&libraries, &verify, &[]);
    assert_eq!((code, events.len()), (Some(0), 2), "{said}");
    for (event, ranks) in events.iter().zip([2, 3]) {
        assert_eq!((&event["holds"], &event["compared"]["ranks"]), (&true.into(), &ranks.into()), "{said}");
        assert_eq!((&event["device"], &event["compared"]["steps"]), (&"cuda:0".into(), &2.into()), "{said}");
    }
}
