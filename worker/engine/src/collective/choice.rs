//! How the ranks of a gang talk to each other: a function of what they run on alone, so that all of them choose the same.

use std::fmt;

use tl_proto::{hardware::Device, spec::Reduction};

/// How ranks reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One rank alone.
    Solo,
    /// Over TCP, in the host's memory.
    Tcp,
    /// Over NCCL, in the GPUs' memory. The mesh over TCP is there too: it carries NCCL's unique id, and all else that ranks
    /// say to each other.
    Nccl,
}

/// Why devices make no gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGang {
    /// There is no rank.
    Empty,
    /// Some have a GPU and some have none.
    Mixed {
        /// Ranks with a GPU.
        gpus: Vec<usize>,
        /// Ranks without.
        cpus: Vec<usize>,
    },
}

impl fmt::Display for NoGang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a gang without a rank"),
            Self::Mixed { gpus, cpus } => write!(
                f,
                "ranks {gpus:?} run on GPUs and ranks {cpus:?} on CPUs: they compute other bits, and a gang is of one kind"
            ),
        }
    }
}

impl std::error::Error for NoGang {}

/// How ranks on these devices talk to each other.
///
/// # Errors
/// They make no gang.
pub fn choose(devices: &[Device]) -> Result<Way, NoGang> {
    let on = |gpu: bool| -> Vec<usize> {
        let kinds = devices.iter().map(|d| matches!(d, Device::Cuda(_)));
        kinds.enumerate().filter(|(_, has)| *has == gpu).map(|(rank, _)| rank).collect()
    };
    let (gpus, cpus) = (on(true), on(false));
    match (gpus.len(), cpus.len()) {
        (0, 0) => Err(NoGang::Empty),
        (1, 0) | (0, 1) => Ok(Way::Solo),
        (0, _) => Ok(Way::Tcp),
        (_, 0) => Ok(Way::Nccl),
        _ => Err(NoGang::Mixed { gpus, cpus }),
    }
}

/// How gradients are added up on these devices, where the job leaves that to them.
pub fn reduction(asked: Reduction, devices: &[Device]) -> Reduction {
    match asked {
        Reduction::Auto if devices.iter().any(|d| matches!(d, Device::Cuda(_))) => Reduction::Fast,
        Reduction::Auto => Reduction::Ordered,
        asked => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::Cpu;

    #[test]
    fn one_kind_of_device_has_one_way_and_one_rank_needs_none() {
        let gpu = Device::Cuda;
        assert_eq!((choose(&[CPU]), choose(&[gpu(3)])), (Ok(Way::Solo), Ok(Way::Solo)));
        assert_eq!((choose(&[CPU; 2]), choose(&[CPU; 9])), (Ok(Way::Tcp), Ok(Way::Tcp)));
        // Two nodes each have a first GPU.
        assert_eq!((choose(&[gpu(0), gpu(1)]), choose(&[gpu(0), gpu(0)])), (Ok(Way::Nccl), Ok(Way::Nccl)));
    }

    #[test]
    fn a_mixed_gang_is_refused_with_the_ranks_of_each_kind() {
        let mixed = choose(&[CPU, Device::Cuda(0), CPU]).unwrap_err();
        assert_eq!(mixed, NoGang::Mixed { gpus: vec![1], cpus: vec![0, 2] });
        assert!(mixed.to_string().starts_with("ranks [1] run on GPUs and ranks [0, 2] on CPUs"), "{mixed}");
        assert_eq!(choose(&[]), Err(NoGang::Empty));
    }

    #[test]
    fn what_the_job_asks_for_holds_and_what_it_leaves_open_follows_from_the_devices() {
        let gpus = [Device::Cuda(0); 2];
        for asked in [Reduction::Ordered, Reduction::Fast] {
            assert_eq!([reduction(asked, &[CPU]), reduction(asked, &gpus)], [asked; 2]);
        }
        assert_eq!(reduction(Reduction::Auto, &[CPU, CPU]), Reduction::Ordered);
        assert_eq!([&gpus[..1], &gpus[..]].map(|all| reduction(Reduction::Auto, all)), [Reduction::Fast; 2]);
    }
}
