//! What this machine is made of: told to the coordinator when the agent starts, and printed by `tl-worker doctor`.

use std::{
    fs,
    str::FromStr,
    sync::mpsc,
    time::{Duration, Instant},
};

use tl_proto::hardware::{Gpu, Hardware};

use crate::rank::{
    gpu::{self, Gpus},
    simd,
};

/// How long the GPUs of a node may take to show that they work, all at a time: libraries are opened and kernels compiled.
const LIMIT: Duration = Duration::from_secs(15);
/// Why a GPU is not offered that nobody has tried.
const UNNAMED: &str = "`--gpus` does not name it";

/// Which GPUs a node offers, of those that work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// Every one.
    #[default]
    All,
    /// Those of these numbers.
    Only(Vec<u32>),
}

impl Offer {
    fn names(&self, index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(numbers) => numbers.contains(&index),
        }
    }
}

impl FromStr for Offer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |n: &str| format!("`{n}` is none of: all, none, numbers as in 0,2");
        let number = |n: &str| n.trim().parse::<u32>().map_err(|_| bad(n));
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::Only(Vec::new())),
            numbers => numbers.split(',').map(number).collect::<Result<_, _>>().map(Self::Only),
        }
    }
}

/// Looks at this machine, and tries the GPUs that it is to offer. That there is no driver is a sentence, not an error.
pub fn offered(offer: &Offer) -> Hardware {
    let mut hardware = with(gpu::look());
    let (named, others) = hardware.gpus.iter_mut().partition::<Vec<_>, _>(|gpu| offer.names(gpu.index));
    others.into_iter().for_each(|gpu| gpu.problem = UNNAMED.into());
    tried(named, gpu::works, LIMIT);
    hardware
}

/// Tries one GPU, as those that are to be offered are tried.
///
/// # Errors
/// Why it does not work, in a sentence.
pub fn works(index: u32) -> Result<(), String> {
    let mut one = Gpu { index, ..Gpu::default() };
    tried(vec![&mut one], gpu::works, LIMIT);
    if one.problem.is_empty() { Ok(()) } else { Err(one.problem) }
}

/// What is wrong with GPUs that were to be offered.
pub fn broken(hardware: &Hardware) -> impl Iterator<Item = &Gpu> {
    hardware.gpus.iter().filter(|gpu| !gpu.problem.is_empty() && gpu.problem != UNNAMED)
}

/// Says of each of some GPUs why it does not work, if so. One that has not ended within the time has failed.
fn tried<E: ToString + 'static>(mut gpus: Vec<&mut Gpu>, works: fn(u32) -> Result<(), E>, limit: Duration) {
    let until = Instant::now() + limit;
    let (done, results) = mpsc::channel();
    for gpu in &mut gpus {
        gpu.problem = format!("GPU {} has not shown within {} s that it works", gpu.index, limit.as_secs());
        let (done, index) = (done.clone(), gpu.index);
        // Not waited for: a driver that hangs must not hang us.
        std::thread::spawn(move || done.send((index, works(index).map_err(|e| e.to_string()))));
    }
    for _ in 0..gpus.len() {
        let left = until.saturating_duration_since(Instant::now());
        let Ok((index, result)) = results.recv_timeout(left) else { return };
        for gpu in gpus.iter_mut().filter(|gpu| gpu.index == index) {
            gpu.problem = result.clone().err().unwrap_or_default();
        }
    }
}

/// This machine, with GPUs that have been looked for already.
pub fn with(found: Gpus) -> Hardware {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let vector = match simd::level() {
        simd::Level::Base => "base",
        simd::Level::V3 => "avx2",
        simd::Level::V4 => "avx512",
    };
    Hardware {
        cores: cores as u32,
        memory: memory(),
        vector: vector.into(),
        gpus: found.gpus,
        driver: found.driver,
        cuda: found.cuda,
        nccl: found.nccl,
        note: found.note,
    }
}

/// Bytes of memory: those of the machine, or fewer where a control group allows no more. 0 where the system does not tell.
fn memory() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").map_or(0, |text| total(&text));
    let allowed = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    allowed.map_or(machine, |allowed: u64| if machine == 0 { allowed } else { machine.min(allowed) })
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_memory_and_what_cannot_be_read_is_nothing() {
        let here = offered(&Offer::Only(Vec::new()));
        assert!(here.cores > 0 && here.memory > 1 << 28, "{here:?}");
        assert!(here.gpus.iter().all(|gpu| gpu.problem == UNNAMED) && broken(&here).next().is_none(), "{here:?}");
        assert_eq!(total("MemFree: 3 kB\nMemTotal:  2 kB\n"), 2048);
        assert_eq!([total(""), total("MemTotal: much")], [0, 0]);
    }

    #[test]
    fn a_gpu_that_fails_or_hangs_is_left_out_and_takes_no_other_with_it() {
        let works = |index: u32| match index {
            0 => Ok(()),
            1 => Err("GPU 1 is broken"),
            _ => loop {
                std::thread::park();
            },
        };
        let mut gpus: Vec<Gpu> = (0..3).rev().map(|index| Gpu { index, ..Gpu::default() }).collect();
        tried(gpus.iter_mut().collect(), works, Duration::from_secs(1));
        let problems: Vec<&str> = gpus.iter().map(|gpu| gpu.problem.as_str()).collect();
        assert_eq!(problems, ["GPU 2 has not shown within 1 s that it works", "GPU 1 is broken", ""]);
        let machine = Hardware { gpus, ..Hardware::default() };
        assert_eq!(broken(&machine).map(|gpu| gpu.index).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn gpus_are_named_by_all_none_or_their_numbers() {
        let offer = |text: &str| text.parse::<Offer>();
        assert_eq!((offer("all").unwrap(), offer("none").unwrap()), (Offer::All, Offer::Only(Vec::new())));
        let some = offer("0, 2").unwrap();
        assert_eq!([0, 1, 2].map(|index| some.names(index)), [true, false, true]);
        for bad in ["", "0,", "x", "-1", "all,1"] {
            assert!(offer(bad).unwrap_err().contains("is none of: all, none"), "{bad}");
        }
    }
}
