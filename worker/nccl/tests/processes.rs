//! Ranks as processes: one alone, and two of one GPU, of which one is killed.
//!
//! Over the real library where there is a GPU, to which two are two hosts, or newer versions let them share a GPU; elsewhere
//! over the fakes. `tests/gpu/run.sh` runs the real ones on such a machine.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{
    fmt::Display,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cudarc::driver::CudaContext;
use nccl_rs::{Communicator, Nccl, NcclError, Options, Standing, UniqueId};
use nvlib::{Library, driver::ProbeError, one_gpu::Way};

/// Says to this program that it is a rank, and which one of how many.
const RANK: &str = "NCCL_RS_TEST_RANK";
/// Stands before what a rank says, behind whatever the harness of the tests prints.
const MARK: &str = "rank says: ";
/// How long any wait of a rank may last.
const PATIENCE: Duration = Duration::from_secs(20);
/// Numbers that are added up: more than one chunk of the library's.
const COUNT: usize = 1 << 20;

fn says(what: impl Display) {
    println!("{MARK}{what}");
}

/// A rank, if this is one.
#[test]
fn a_rank_of_another_test() {
    let Ok(told) = std::env::var(RANK) else { return };
    let (rank, world) = told.split_once('/').unwrap();
    work(rank.parse().unwrap(), world.parse().unwrap());
}

fn work(rank: usize, world: usize) {
    Library::Driver.open().unwrap();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let nccl = Nccl::open().unwrap();
    let options = Options { patience: PATIENCE, ..Options::default() };
    let id = if rank == 0 {
        let id = nccl.unique_id().unwrap();
        says(format!("id {}", id.as_bytes().iter().map(|b| format!("{b:02x}")).collect::<String>()));
        id
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let byte = |i: usize| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).unwrap();
        let bytes: [u8; UniqueId::BYTES] = std::array::from_fn(byte);
        UniqueId::from(bytes)
    };
    let ranks = match Communicator::connect(&stream, rank, world, &id, options) {
        Err(refusal @ NcclError::Blocking { .. }) => return says(format!("refused: {refusal}")),
        made => made.unwrap(),
    };
    let mut data = stream.clone_htod(&vec![(rank + 1) as f32; COUNT]).unwrap();
    ranks.all_reduce(&mut data).unwrap();
    ranks.complete().unwrap();
    let (sums, want) = (stream.clone_dtoh(&data).unwrap(), (world * (world + 1) / 2) as f32);
    assert!(sums.iter().all(|v| *v == want), "{:?} instead of {want}", sums.iter().find(|v| **v != want));
    says("the sum is right");
    if world == 1 {
        ranks.finish().unwrap();
        says("finished");
        return;
    }
    // Until the other one is killed, or this one.
    let error = loop {
        if let Err(e) = ranks.all_reduce(&mut data).and_then(|()| ranks.complete()) {
            break e;
        }
    };
    let noticed = matches!(error, NcclError::PeerLost { .. } | NcclError::Async { .. } | NcclError::Deadline { .. });
    assert!(noticed, "{error}");
    says(format!("lost: {error}"));
    drop(ranks);
    if let Standing::Warned(why) = nccl.version().standing() {
        says(format!("alone: left out, since of NCCL {} {why}", nccl.version()));
        return;
    }
    // Goes on without it, on the same stream.
    let alone = Communicator::connect(&stream, 0, 1, &nccl.unique_id().unwrap(), options).unwrap();
    let mut data = stream.clone_htod(&[7.0f32]).unwrap();
    alone.all_reduce(&mut data).unwrap();
    alone.complete().unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [7.0]);
    alone.finish().unwrap();
    says("alone: the sum is right");
}

/// A process; killed with the test.
struct Rank {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Rank {
    fn start(rank: usize, world: usize, environment: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_rank_of_another_test", "--nocapture", "--test-threads=1"]);
        command.env(RANK, format!("{rank}/{world}")).envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that it says, which begins with a word; the rest of it.
    fn hears(&mut self, word: &str) -> String {
        let said = self.lines.by_ref().find_map(|line| Some(line.unwrap().split_once(MARK)?.1.to_owned()));
        let said = said.unwrap_or_else(|| panic!("the rank has ended, and `{word}` was to come"));
        let rest = said.strip_prefix(word).unwrap_or_else(|| panic!("the rank says `{said}` instead of `{word}`"));
        rest.trim().to_owned()
    }

    /// Its end, which is a good one.
    fn ends(&mut self) {
        // What it still prints; a full pipe would keep it.
        self.lines.by_ref().for_each(drop);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there are a GPU and an NCCL; says which one or what is missing.
fn real() -> bool {
    let missing = match nvlib::driver::probe() {
        Ok(driver) if driver.gpus.is_empty() => "this machine has a driver and no GPU".to_owned(),
        Ok(_) => match Library::Nccl.open() {
            Ok(nccl) => {
                // `tests/gpu/run.sh` keeps that.
                eprintln!("over NCCL {} of {}", nccl.version().unwrap_or_default(), nccl.path().display());
                String::new()
            }
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    };
    if !missing.is_empty() {
        eprintln!("skipped: {missing}");
    }
    missing.is_empty()
}

/// A rank without others, started with more in its environment, and what `then` does with it; over the fakes where there is no
/// driver.
fn alone(more: Option<(&'static str, String)>, then: impl FnOnce(Rank)) {
    let fakes = tempfile::tempdir().unwrap();
    let path = fakes.path().display().to_string();
    let mut environment = Vec::from_iter(more);
    if let Err(ProbeError::Missing(why)) = nvlib::driver::probe() {
        assert!(!nvlib::fake::is_barred(), "{why}");
        nvlib::fake::build(fakes.path()).unwrap();
        environment.push(("NVLIB_PATH", path));
    } else if !real() {
        return;
    }
    let mut rank = Rank::start(0, 1, &environment);
    assert_eq!(rank.hears("id ").len(), 2 * UniqueId::BYTES);
    then(rank);
}

#[test]
fn one_rank_sums_with_itself() {
    alone(None, |mut rank| {
        rank.hears("the sum is right");
        rank.hears("finished");
        rank.ends();
    });
}

#[test]
fn a_rank_that_is_started_with_calls_that_block_makes_no_communicator() {
    alone(Some(("NCCL_COMM_BLOCKING", "1".to_owned())), |mut rank| {
        let why = rank.hears("refused: ");
        assert!(why.starts_with("`NCCL_COMM_BLOCKING` is `1`"), "{why}");
        rank.ends();
    });
}

/// Two ranks, of which the second is killed: the first one notices, and goes on alone.
fn two(environment: impl Fn(usize) -> Vec<(&'static str, String)>) {
    let mut first = Rank::start(0, 2, &environment(0));
    let id = first.hears("id ");
    let mut second = Rank::start(1, 2, &environment(1));
    writeln!(second.child.stdin.take().unwrap(), "{id}").unwrap();
    first.hears("the sum is right");
    second.hears("the sum is right");
    second.child.kill().unwrap();
    let killed = Instant::now();
    let why = first.hears("lost: ");
    eprintln!("after {} ms: {why}", killed.elapsed().as_millis());
    eprintln!("alone: {}", first.hears("alone: "));
    first.ends();
}

#[test]
fn two_processes_sum_over_the_fakes_and_one_is_killed() {
    if !matches!(nvlib::driver::probe(), Err(ProbeError::Missing(_))) {
        // The tests below are of the same with a real one.
        return;
    }
    let fakes = tempfile::tempdir().unwrap();
    nvlib::fake::build(fakes.path()).unwrap();
    let path = fakes.path().display().to_string();
    two(|_| ["NVLIB_PATH", "FAKE_NCCL_DIR"].map(|name| (name, path.clone())).to_vec());
}

#[test]
fn two_ranks_of_one_gpu_are_two_hosts_and_one_is_killed() {
    if real() {
        two(|rank| Way::Hosts.environment(rank));
    }
}

#[test]
fn two_ranks_share_one_gpu_where_the_library_lets_them_and_one_is_killed() {
    if !real() {
        return;
    }
    match Way::Shared.refused_by(&Nccl::open().unwrap().version().to_string()) {
        Some(why) => eprintln!("skipped: {why}"),
        None => two(|rank| Way::Shared.environment(rank)),
    }
}

#[test]
fn where_only_a_real_gpu_counts_no_rank_sums_over_the_fakes() {
    if !matches!(nvlib::driver::probe(), Err(ProbeError::Missing(_))) {
        // There is nothing to stand for.
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "one_rank_sums_with_itself", "--nocapture"]).env("TL_GPU_REAL", "1");
    let ended = again.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("(libcuda.so.1) was not found in "), "{said}");
}

/// The marks of a rank are found behind what the harness prints on the same line.
#[test]
fn what_a_rank_says_is_told_from_what_the_harness_prints() {
    let mut command = Command::new("printf");
    command.args(["%s\n", "running 1 test", "test a ... rank says: id 7f", "ok"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut rank = Rank { child, lines };
    assert_eq!(rank.hears("id "), "7f");
    rank.ends();
}
