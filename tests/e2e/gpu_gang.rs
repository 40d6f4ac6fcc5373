//! Jobs of two ranks that have one GPU, add up over NCCL, and lose one of them. NCCL refuses that by itself; the ways around it
//! are those of `nvlib::one_gpu`. Over the fakes, ranks meet in a folder.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use nvlib::{Library, one_gpu::Way};
use tl_proto::{
    spec::{JobSpec, Ranks, Rates},
    v1,
};
use tl_tests::{Sandbox, Series, alone, eventually};

use crate::{Gpu, gpu, job, log, program};

/// A worker for each rank, on the same GPU; `ways` says what each finds in its environment.
async fn two(gpu: &Gpu, ways: impl Fn(usize) -> Vec<(&'static str, String)>) -> Sandbox {
    let mut sandbox = Sandbox::bare(&program(), None).await;
    for n in 0..2 {
        sandbox.environment = [gpu.environment(), ways(n)].concat();
        sandbox.add_worker(&["--gpus", "0", "--share-gpus"]);
    }
    sandbox.ready(2).await;
    sandbox
}

/// Four steps an epoch. On the fakes, which are slow, a head alone is trained, on features.
fn long(gpu: &Gpu) -> JobSpec {
    let mut spec = job("cuda", 8, (12, 4));
    spec.cluster.ranks = Ranks { min: 2, max: 2 };
    spec.checkpoint.every = 20;
    spec.stage.remove(usize::from(!gpu.is_real()));
    // Many steps have to be left when the news of the first is here, and two processes take turns on a real GPU.
    spec.stage[0].epochs = if gpu.is_real() { 100 } else { 60 };
    spec.stage[0].lr = Rates::One(0.01);
    spec
}

async fn done(sandbox: &Sandbox, job: &tl_client::Job) -> (v1::Job, Series, Option<String>) {
    let (ended, series, model) = sandbox.ends(job).await;
    assert_eq!(ended.status, "succeeded", "{ended:#?}\n{}", log(job).await);
    assert!(log(job).await.contains("rank 1 of 2 on cuda:0 "), "{}", log(job).await);
    (ended, series, model)
}

fn generation(job: &v1::Job) -> u64 {
    job.phases.iter().find(|p| p.kind == "train").map_or(0, |p| p.generation)
}

/// One rank is killed in the middle; both begin anew from what was saved, and the job comes to what it comes to undisturbed.
async fn lose_one(gpu: &Gpu, ways: impl Fn(usize) -> Vec<(&'static str, String)>) {
    let sandbox = &two(gpu, ways).await;
    let job = sandbox.submit(&long(gpu)).await;
    sandbox.passes(&job, 6).await;
    let ranks = sandbox.ranks(1);
    let victim = *ranks.first().unwrap_or_else(|| panic!("the job was over before a rank could be killed"));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let killed = std::time::Instant::now();
    eventually("a new attempt", async || job.get().await.ok().filter(|j| generation(j) > 1)).await;
    eprintln!("a new attempt after {} ms", killed.elapsed().as_millis());
    let (ended, series, model) = done(sandbox, &job).await;
    let history: Vec<&String> = ended.phases.iter().flat_map(|p| &p.history).collect();
    assert!(history.iter().any(|line| line.contains("was killed")), "{history:?}");
    let job = sandbox.submit(&long(gpu)).await;
    let (undisturbed, want, digest) = done(sandbox, &job).await;
    assert_eq!(generation(&undisturbed), 1);
    let odd = want.iter().find(|(at, value)| series.get(*at) != Some(value));
    assert_eq!(odd, None, "the series differs; got {:?}", odd.map(|(at, _)| series.get(at)));
    assert_eq!((series.len(), model), (want.len(), digest));
}

/// The same on the GPU of this machine.
async fn on_one(way: Way) {
    let Some(gpu) = gpu() else { return };
    if !gpu.is_real() {
        // The test below is of the same over the fakes.
        return;
    }
    let nccl = match Library::Nccl.open() {
        Ok(nccl) => nccl,
        Err(missing) => {
            eprintln!("skipped: {missing}");
            return;
        }
    };
    let version = nccl.version().unwrap_or_default();
    // `tests/gpu/run.sh` keeps that.
    eprintln!("over NCCL {version} of {}", nccl.path().display());
    if let Some(why) = way.refused_by(&version) {
        eprintln!("skipped: {why}");
        return;
    }
    let _alone = alone().await;
    lose_one(gpu, |rank| way.environment(rank)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn two_ranks_that_are_hosts_lose_one_and_form_anew() {
    on_one(Way::Hosts).await;
}

#[tokio::test(flavor = "current_thread")]
async fn two_ranks_that_share_a_gpu_lose_one_and_form_anew() {
    on_one(Way::Shared).await;
}

#[tokio::test(flavor = "current_thread")]
async fn two_ranks_over_the_fakes_lose_one_and_form_anew() {
    let Some(gpu @ Gpu::Fake(_)) = gpu() else { return };
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let meet = folder.path().display().to_string();
    lose_one(gpu, |_| vec![("FAKE_NCCL_DIR", meet.clone())]).await;
    // Not over TCP, which would do too.
    assert!(std::fs::read_dir(folder.path()).unwrap().count() > 0, "nobody has met over NCCL");
}
