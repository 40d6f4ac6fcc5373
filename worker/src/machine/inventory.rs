//! What this machine is made of: told to the coordinator when the agent starts, and printed by `tl-worker doctor`.

use std::{fs, str::FromStr, time::Duration};

use tl_proto::hardware::{Gpu, Hardware};

use super::look;
use crate::{
    rank::{
        gpu::{self, Gpus},
        simd,
    },
    supervise::command::RankCommand,
};

/// The longest that an agent looks at its machine before it goes on: once for which GPUs there are, and once for what they do.
pub const LONGEST: Duration = if gpu::TRAINS { Duration::from_secs(2 * look::LIMIT.as_secs()) } else { Duration::ZERO };
/// Why a GPU is not offered that nobody has tried.
const UNNAMED: &str = "`--gpus` does not name it";

/// Which GPUs a node offers, of those that work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Every one.
    #[default]
    All,
    /// Those of these numbers.
    Only(Vec<u32>),
    /// The one of this number, if there is one.
    Perhaps(u32),
}

impl Offer {
    fn names(&self, index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(numbers) => numbers.contains(&index),
            Self::Perhaps(number) => *number == index,
        }
    }

    /// Numbers that it names and no GPU has.
    pub(crate) fn unknown(&self, hardware: &Hardware) -> Vec<u32> {
        let Self::Only(numbers) = self else { return Vec::new() };
        numbers.iter().copied().filter(|n| hardware.gpus.iter().all(|gpu| gpu.index != *n)).collect()
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
            // For a worker beside others, one of which has each GPU that there is.
            perhaps if perhaps.ends_with('?') => number(&perhaps[..perhaps.len() - 1]).map(Self::Perhaps),
            numbers => numbers.split(',').map(number).collect::<Result<_, _>>().map(Self::Only),
        }
    }
}

/// Looks at this machine, and tries the GPUs that it is to offer, by processes of `program`. That there is no driver is a
/// sentence, not an error.
pub(crate) fn offered(offer: &Offer, program: &RankCommand) -> Hardware {
    let mut hardware = seen(program).unwrap_or_else(|note| with(Gpus { note, ..Gpus::default() }));
    let named = named(&mut hardware, offer);
    if !named.is_empty() {
        let numbers: Vec<String> = named.iter().map(|gpu| gpu.index.to_string()).collect();
        let (numbers, limit) = (numbers.join(", "), look::LIMIT.as_secs());
        tracing::info!("GPU {numbers}: tried with a small step of training each, for which they have {limit} s");
    }
    look::each(named, |index| program.to_look(Some(index)), look::LIMIT);
    hardware
}

/// This machine, as a process of `program` sees it; without GPUs where nothing could be done with them.
fn seen(program: &RankCommand) -> Result<Hardware, String> {
    if !gpu::TRAINS {
        return Ok(with(Gpus::default()));
    }
    look::look(program.to_look(None), look::LIMIT).map_err(|why| unseen(&why))
}

/// Why nobody has seen the GPUs of a machine.
fn unseen(why: &str) -> String {
    format!("the process that looked for GPUs {why}")
}

/// GPUs of this machine, as a process of its own sees them: a driver that falls over takes that one with it.
///
/// # Errors
/// Why nobody has seen them, in a sentence.
pub(crate) fn gpus() -> Result<Vec<Gpu>, String> {
    let program = RankCommand::ourselves(Vec::new()).map_err(|e| unseen(&format!("cannot be started: {e}")))?;
    seen(&program).map(|hardware| hardware.gpus)
}

/// The GPUs that are to be offered; of the others it is said why not.
fn named<'a>(hardware: &'a mut Hardware, offer: &Offer) -> Vec<&'a mut Gpu> {
    let (named, others) = hardware.gpus.iter_mut().partition::<Vec<_>, _>(|gpu| offer.names(gpu.index));
    others.into_iter().for_each(|gpu| gpu.problem = UNNAMED.into());
    named
}

/// Tries one GPU, as those that are to be offered are tried.
///
/// # Errors
/// Why it does not work, in a sentence.
pub(crate) fn works(index: u32) -> Result<(), String> {
    if !gpu::TRAINS {
        return gpu::works(index).map_err(|e| e.to_string());
    }
    let program = RankCommand::ourselves(Vec::new());
    let program = program.map_err(|e| format!("GPU {index} cannot be tried: {e}"))?;
    let mut one = Gpu { index, ..Gpu::default() };
    look::each(vec![&mut one], |index| program.to_look(Some(index)), look::LIMIT);
    if one.problem.is_empty() { Ok(()) } else { Err(one.problem) }
}

/// What is wrong with GPUs that were to be offered.
pub(crate) fn broken(hardware: &Hardware) -> impl Iterator<Item = &Gpu> {
    hardware.gpus.iter().filter(|gpu| !gpu.problem.is_empty() && gpu.problem != UNNAMED)
}

/// This machine, with GPUs that have been looked for already.
pub(crate) fn with(found: Gpus) -> Hardware {
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
        let here = with(Gpus::default());
        assert!(here.cores > 0 && here.memory > 1 << 28, "{here:?}");
        assert_eq!(total("MemFree: 3 kB\nMemTotal:  2 kB\n"), 2048);
        assert_eq!([total(""), total("MemTotal: much")], [0, 0]);
        assert_eq!(unseen("died of signal 11"), "the process that looked for GPUs died of signal 11");
    }

    #[test]
    fn of_gpus_that_are_not_named_that_is_said_and_of_numbers_that_no_gpu_has_it_is_told() {
        let gpus = |numbers: std::ops::Range<u32>| numbers.map(|index| Gpu { index, ..Gpu::default() }).collect();
        let mut machine = Hardware { gpus: gpus(0..3), ..Hardware::default() };
        let offer = Offer::Only(vec![1, 7]);
        assert_eq!(named(&mut machine, &offer).iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [1]);
        let problems: Vec<&str> = machine.gpus.iter().map(|gpu| gpu.problem.as_str()).collect();
        assert_eq!((problems, broken(&machine).count()), (vec![UNNAMED, "", UNNAMED], 0));
        machine.gpus[1].problem = "GPU 1 is broken".into();
        assert_eq!(broken(&machine).map(|gpu| gpu.index).collect::<Vec<_>>(), [1]);
        assert_eq!((offer.unknown(&machine), Offer::All.unknown(&machine)), (vec![7], vec![]));
        assert_eq!((offer.unknown(&Hardware::default()), Offer::Perhaps(7).unknown(&machine)), (vec![1, 7], vec![]));
    }

    #[test]
    fn gpus_are_named_by_all_none_or_their_numbers() {
        let offer = |text: &str| text.parse::<Offer>();
        assert_eq!((offer("all").unwrap(), offer("none").unwrap()), (Offer::All, Offer::Only(Vec::new())));
        let some = offer("0, 2").unwrap();
        assert_eq!([0, 1, 2].map(|index| some.names(index)), [true, false, true]);
        let perhaps = offer("1?").unwrap();
        assert_eq!([0, 1, 2].map(|index| perhaps.names(index)), [false, true, false]);
        for bad in ["", "0,", "x", "-1", "all,1", "?", "0?,1"] {
            assert!(offer(bad).unwrap_err().contains("is none of: all, none"), "{bad}");
        }
    }
}
