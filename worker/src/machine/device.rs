//! What a command of this machine computes on that needs no cluster: `--device` of `tlctl`.

use std::str::FromStr;

use tl_proto::{
    failure::{Failure, FailureClass},
    hardware::Device,
};

use super::inventory;
use crate::rank::gpu::{self, Place};

/// What a command is told to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU that works, else the CPU.
    #[default]
    Auto,
    /// This, or nothing.
    On(Device),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::On(Device::Cuda(0))),
            name => {
                let bad = || format!("`{name}` is none of: auto, cpu, cuda, a GPU by its number as in cuda:1");
                Device::parse(name).map(Self::On).ok_or_else(bad)
            }
        }
    }
}

/// A device that computes.
#[derive(Debug)]
pub struct Here {
    /// Which one.
    pub device: Device,
    /// The same, for the engine.
    pub place: Place,
    /// Why GPUs of this machine are passed over, in a sentence; empty if none is.
    pub note: String,
}

impl Choice {
    /// Opens what was chosen. A GPU has to show first that it trains, as one that a worker offers.
    ///
    /// # Errors
    /// That device cannot be used.
    pub fn open(self) -> Result<Here, Failure> {
        match self {
            Self::Auto => Ok(auto()),
            Self::On(device) => {
                let place = opened(device).map_err(|why| {
                    let hint = match gpu::TRAINS {
                        true => "`tl-worker doctor` says more; `--device cpu` does without",
                        false => "build with `--features cuda`, or take `--device cpu`",
                    };
                    Failure::new(FailureClass::User, why, hint)
                })?;
                Ok(Here { device, place, note: String::new() })
            }
        }
    }
}

fn opened(device: Device) -> Result<Place, String> {
    if let Device::Cuda(number) = device {
        inventory::works(number)?;
    }
    Place::open(device).map_err(|e| e.to_string())
}

fn auto() -> Here {
    let mut problems = Vec::new();
    let gpus = inventory::gpus().unwrap_or_else(|why| {
        problems.push(why);
        Vec::new()
    });
    for gpu in gpus {
        let device = Device::Cuda(gpu.index);
        match opened(device) {
            Ok(place) => return Here { device, place, note: noted(&problems, device) },
            Err(why) => problems.push(why),
        }
    }
    Here { device: Device::Cpu, place: Place::Host, note: noted(&problems, Device::Cpu) }
}

/// Says what is used in place of what does not work.
fn noted(problems: &[String], used: Device) -> String {
    if problems.is_empty() { String::new() } else { format!("{}; {used} is used", problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_slots_are_and_auto_is_the_default() {
        let choice = |text: &str| text.parse::<Choice>();
        assert_eq!((choice("auto"), choice("cpu")), (Ok(Choice::default()), Ok(Choice::On(Device::Cpu))));
        assert_eq!(choice("cuda"), choice("cuda:0"));
        assert_eq!(choice("cuda:3"), Ok(Choice::On(Device::Cuda(3))));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cpu:1"] {
            assert!(choice(bad).unwrap_err().contains("is none of: auto, cpu, cuda, "), "{bad}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_a_gpu_that_is_not_is_refused_with_what_to_do() {
        let here = Choice::On(Device::Cpu).open().unwrap();
        assert_eq!((here.device, here.note.as_str()), (Device::Cpu, ""));
        // More than any machine has.
        let failure = Choice::On(Device::Cuda(4096)).open().unwrap_err();
        assert_eq!(failure.class, FailureClass::User);
        assert!(failure.hint.contains("`--device cpu`"), "{failure:?}");
        if !gpu::TRAINS {
            assert_eq!(failure.message, "this build has no CUDA");
            assert_eq!(Choice::Auto.open().unwrap().device, Device::Cpu);
        }
    }

    #[test]
    fn what_is_passed_over_is_told_with_what_is_used() {
        let problems = ["GPU 0 is broken".to_owned(), "GPU 1 is broken".to_owned()];
        assert_eq!(noted(&[], Device::Cpu), "");
        assert_eq!(noted(&problems, Device::Cpu), "GPU 0 is broken; GPU 1 is broken; cpu is used");
        assert_eq!(noted(&problems[..1], Device::Cuda(1)), "GPU 0 is broken; cuda:1 is used");
    }
}
