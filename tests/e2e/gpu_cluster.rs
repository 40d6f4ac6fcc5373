//! Workers with GPUs in a cluster, on the libraries in C: who waits for whom, who has a GPU that two offer, and what becomes of
//! jobs when a GPU, its driver or a rank on it goes.

use std::{path::PathBuf, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use nvlib::Library;
use tl_client::Job;
use tl_proto::{spec::Ranks, v1};
use tl_tests::{Sandbox, Series, alone, eventually};

use crate::{all_near, job, libraries, log, nodes, program, tlctl};

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
    let mut sandbox = Sandbox::bare(&program(), None).await;
    sandbox.environment = vec![("NVLIB_PATH", libraries.to_owned())];
    sandbox.environment.extend(environment.iter().map(|(name, value)| (*name, (*value).to_owned())));
    sandbox.add_worker(arguments);
    sandbox.ready(1).await;
    sandbox
}

/// Waits until a job says that it waits for a reason with some words in it; all of them.
pub async fn waits(job: &Job, words: &str) -> String {
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
    assert!(why.starts_with("it needs 1 slot on GPUs and all nodes together have 0; `w0`: GPU 0 cannot be"), "{why}");
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
    let spec = job("auto", 4, (9, 3));
    let submitted = sandbox.submit(&spec).await;
    succeeds(&sandbox, &submitted).await;
    // Nor does a command that computes by itself fall with it.
    let file = folder.path().join("job.toml");
    std::fs::write(&file, spec.to_toml()).unwrap();
    let verify = ["verify", file.to_str().unwrap(), "--steps", "2"];
    let (code, _, said) = tlctl(&folder.path().display().to_string(), &verify, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the process that looked for GPUs died of signal 6; cpu is used"), "{said}");
}
