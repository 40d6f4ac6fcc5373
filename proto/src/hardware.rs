//! What a node is made of, and the devices that ranks run on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::v1;

/// What a rank runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// A share of the cores.
    Cpu,
    /// A GPU of NVIDIA's, by its number on the node.
    Cuda(u32),
}

impl Device {
    /// What a slot calls its device; nothing for one that this build does not know.
    pub fn parse(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None if name == "cpu" => Some(Self::Cpu),
            Some(("cuda", number)) => number.parse().ok().map(Self::Cuda),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// The kind of a slot's device: `cuda` of `cuda:1`. A gang is of one kind.
pub fn kind(device: &str) -> &str {
    device.split(':').next().unwrap_or(device)
}

/// A machine, as its agent found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// Cores that the agent may use.
    pub cores: u32,
    /// Bytes of memory; 0 where the system does not tell.
    pub memory: u64,
    /// How wide vectors are: `avx512`, `avx2`, `base`.
    pub vector: String,
    /// GPUs, used or not.
    pub gpus: Vec<Gpu>,
    /// Version of NVIDIA's driver; empty without one.
    pub driver: String,
    /// The newest CUDA that it knows; empty without one.
    pub cuda: String,
    /// Version of NCCL; empty without it.
    pub nccl: String,
    /// Why GPUs are not used, in a sentence; empty where that needs no reason.
    pub note: String,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Its number on the node.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// The same in every process.
    pub uuid: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability, such as `9.0`.
    pub compute: String,
    /// Why it is not used, in a sentence; empty if it is.
    pub problem: String,
    /// Which numbers it computes, in a word: GPUs of one model with other libraries may compute other bits. Empty where nobody
    /// has tried it.
    pub numbers: String,
}

impl Hardware {
    /// The GPU that is the device of a slot, if one is.
    pub fn gpu(&self, device: &str) -> Option<&Gpu> {
        let Some(Device::Cuda(index)) = Device::parse(device) else { return None };
        self.gpus.iter().find(|gpu| gpu.index == index)
    }

    /// In a few words.
    pub fn summary(&self) -> String {
        if self.cores == 0 {
            return String::new();
        }
        let mut text = format!("{} cores", self.cores);
        if self.memory > 0 {
            text += &format!(", {} GiB", gib(self.memory));
        }
        for gpu in self.kinds() {
            let many = self.gpus.iter().filter(|g| (&g.name, g.memory) == (&gpu.name, gpu.memory)).count();
            text += &format!(", {many} x {} ({} GiB)", gpu.name, gib(gpu.memory));
        }
        let (all, idle) = (self.gpus.len(), self.gpus.iter().filter(|g| !g.problem.is_empty()).count());
        if all > 0 && (!self.note.is_empty() || idle == all) {
            text += ", not used";
        } else if idle > 0 {
            text += &format!(", {idle} not used");
        }
        text
    }

    /// One GPU of each model.
    fn kinds(&self) -> Vec<&Gpu> {
        let mut kinds: Vec<&Gpu> = Vec::new();
        for gpu in &self.gpus {
            if !kinds.iter().any(|k| (&k.name, k.memory) == (&gpu.name, gpu.memory)) {
                kinds.push(gpu);
            }
        }
        kinds
    }
}

/// To the nearest.
fn gib(bytes: u64) -> u64 {
    (bytes + (1 << 29)) >> 30
}

/// Ours from the message and the message from ours, by one list of the fields that both have; those that hold several are
/// named apart.
macro_rules! mirrored {
    ($name:ident, [$($field:ident),*], several [$($list:ident),*]) => {
        mirrored!(@ v1::$name, $name, [$($field),*], [$($list),*]);
        mirrored!(@ $name, v1::$name, [$($field),*], [$($list),*]);
    };
    (@ $from:ty, $to:ty, [$($field:ident),*], [$($list:ident),*]) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                Self {
                    $($field: from.$field,)*
                    $($list: from.$list.into_iter().map(Into::into).collect(),)*
                }
            }
        }
    };
}

mirrored!(Gpu, [index, name, uuid, memory, compute, problem, numbers], several []);
mirrored!(Hardware, [cores, memory, vector, driver, cuda, nccl, note], several[gpus]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(15)] {
            assert_eq!(Device::parse(&device.to_string()), Some(device));
        }
        for name in ["", "cpu:1", "cuda", "cuda:", "cuda:x", "rocm:0"] {
            assert_eq!(Device::parse(name), None, "{name}");
        }
        assert_eq!((kind("cuda:3"), kind("cpu")), ("cuda", "cpu"));
    }

    #[test]
    fn a_machine_is_summed_up_with_each_model_of_gpu_once() {
        let gpu = |name: &str, memory: u64| Gpu { name: name.into(), memory: memory << 30, ..Gpu::default() };
        let gpus = vec![gpu("H100", 80), gpu("L4", 24), gpu("H100", 80)];
        let mut machine = Hardware { cores: 16, memory: (128 << 30) - 7, gpus, ..Hardware::default() };
        assert_eq!(machine.summary(), "16 cores, 128 GiB, 2 x H100 (80 GiB), 1 x L4 (24 GiB)");
        machine.gpus[1].problem = "it is broken".into();
        assert!(machine.summary().ends_with(", 1 x L4 (24 GiB), 1 not used"), "{}", machine.summary());
        machine.gpus.iter_mut().for_each(|gpu| gpu.problem = "it is broken".into());
        assert!(machine.summary().ends_with(", 1 x L4 (24 GiB), not used"), "{}", machine.summary());
        machine.note = "why".into();
        (machine.gpus[1].index, machine.gpus[1].numbers) = (3, "0123".into());
        let named = |device: &str| machine.gpu(device).map(|gpu| gpu.name.as_str());
        assert_eq!([named("cuda:3"), named("cuda:1"), named("cpu")], [Some("L4"), None, None]);
        assert_eq!(machine.summary(), "16 cores, 128 GiB, 2 x H100 (80 GiB), 1 x L4 (24 GiB), not used");
        let there = v1::Hardware::from(machine.clone());
        assert_eq!((there.cores, there.note.as_str(), there.gpus[1].name.as_str()), (16, "why", "L4"));
        assert_eq!(Hardware::from(there), machine);
        assert_eq!(Hardware::default().summary(), "");
    }
}
