//! What this machine is made of: told to the coordinator when the agent starts, and printed by `tl-worker doctor`.

use std::fs;

use tl_proto::hardware::Hardware;

use crate::rank::{gpu::Gpus, simd};

/// Looks at this machine. Where there is no driver, that is a sentence, not an error.
pub fn look() -> Hardware {
    with(crate::rank::gpu::look())
}

/// The same with GPUs that have been looked for already.
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
        let here = look();
        assert!(here.cores > 0 && here.memory > 1 << 28, "{here:?}");
        assert_eq!(total("MemFree: 3 kB\nMemTotal:  2 kB\n"), 2048);
        assert_eq!([total(""), total("MemTotal: much")], [0, 0]);
    }
}
