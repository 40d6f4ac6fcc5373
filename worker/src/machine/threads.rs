//! How the cores of a machine are shared out among the ranks on it.

use tl_proto::hardware::Device;

/// Threads of a rank, by what it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Of one that computes with them.
    pub cpu: usize,
    /// Of one that prepares with them what a GPU computes.
    pub gpu: usize,
}

impl Threads {
    /// As many for each.
    pub fn each(threads: usize) -> Self {
        Self { cpu: threads, gpu: threads }
    }

    /// Shares cores out among slots, all of which may be busy. Where some have a GPU and some have none, each kind gets half of
    /// them, however many slots it has.
    pub fn shared(cores: usize, devices: &[Device]) -> Self {
        let cpus = devices.iter().filter(|device| **device == Device::Cpu).count();
        let gpus = devices.len() - cpus;
        let parts = if cpus > 0 { 2 * gpus } else { gpus };
        let gpu = (cores / parts.max(1)).max(1);
        let left = cores.saturating_sub(gpu * gpus);
        Self { cpu: (left / cpus.max(1)).max(1), gpu }
    }

    /// Those of a rank on a device.
    pub fn of(&self, device: Device) -> usize {
        match device {
            Device::Cpu => self.cpu,
            Device::Cuda(_) => self.gpu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_slots_together_have_no_more_threads_than_there_are_cores_as_far_as_that_can_be() {
        let shared = |cores: usize, gpus: u32, cpus: usize| {
            let devices: Vec<Device> = (0..gpus).map(Device::Cuda).chain(vec![Device::Cpu; cpus]).collect();
            let threads = Threads::shared(cores, &devices);
            let all: usize = devices.iter().map(|device| threads.of(*device)).sum();
            assert!(all <= cores.max(devices.len()), "{threads:?} for {gpus} and {cpus} on {cores}");
            (threads.gpu, threads.cpu)
        };
        assert_eq!((shared(16, 0, 1).1, shared(16, 0, 3).1), (16, 5));
        assert_eq!((shared(16, 1, 0).0, shared(16, 8, 0).0, shared(4, 8, 0).0), (16, 2, 1));
        // A rank on the CPU is no ninth of the machine.
        assert_eq!((shared(64, 8, 1), shared(16, 1, 1), shared(64, 8, 4)), ((4, 32), (8, 8), (4, 8)));
        assert_eq!((shared(12, 8, 1), shared(1, 1, 1), shared(3, 1, 1)), ((1, 4), (1, 1), (1, 2)));
        assert_eq!((Threads::each(3).of(Device::Cpu), Threads::each(3).of(Device::Cuda(1))), (3, 3));
    }
}
