//! Where a rank computes.

use std::fmt;
#[cfg(feature = "cuda")]
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tl_proto::hardware;

#[cfg(feature = "cuda")]
use super::{Device, Fault, Placed, Staging, fingerprint};
#[cfg(feature = "cuda")]
use crate::Error;
use crate::{Result, num::fingerprint::fingerprint as of_host};

/// Where layers compute with the tensors of a store: what the first of them is given goes there before. A build without CUDA
/// knows one place.
#[derive(Clone, Default)]
pub enum Place {
    /// The host.
    #[default]
    Host,
    /// A GPU, shared by all who compute on it: what they ask of it happens in the order of the asking.
    #[cfg(feature = "cuda")]
    Gpu(Arc<OnGpu>),
}

impl Place {
    /// What a slot names, ready to be computed on.
    ///
    /// # Errors
    /// It cannot be used; this build has no CUDA.
    pub fn open(device: hardware::Device) -> Result<Self> {
        match device {
            hardware::Device::Cpu => Ok(Self::Host),
            hardware::Device::Cuda(number) => Self::gpu(number),
        }
    }

    #[cfg(feature = "cuda")]
    fn gpu(number: u32) -> Result<Self> {
        let opened = Device::open(number).and_then(|device| Self::of(Arc::new(device)));
        opened.map_err(|fault| Error::Gpu { number, cause: fault.to_string() })
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_: u32) -> Result<Self> {
        Err(super::no_cuda())
    }

    /// A GPU that is open.
    ///
    /// # Errors
    /// It does not compute.
    #[cfg(feature = "cuda")]
    pub fn of(device: Arc<Device>) -> Result<Self, Fault> {
        let numbers = fingerprint(&device)?;
        Ok(Self::Gpu(Arc::new(OnGpu { device, numbers, staging: Mutex::default() })))
    }

    /// Which numbers are computed there. Equal digests mean equal bits as far as could be seen; different ones mean
    /// different bits.
    pub fn numbers(&self) -> [u8; 32] {
        match self {
            Self::Host => of_host(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.numbers,
        }
    }

    /// The most bytes of a GPU's memory that arrays have had at a time, in this process; nothing of the host, or where the
    /// driver keeps no count.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn peak(&self) -> Result<Option<u64>> {
        match self {
            Self::Host => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => Ok(gpu.device.peak()?),
        }
    }

    /// Waits until all that was asked of it is done.
    ///
    /// # Errors
    /// Something of that has failed.
    pub fn wait(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => Ok(gpu.device.synchronize()?),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "Host",
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => "Gpu",
        })
    }
}

/// Batches that may be on their way up: one is filled while another is read.
#[cfg(feature = "cuda")]
const UNDER_WAY: usize = 2;

/// A GPU that a rank computes on.
#[cfg(feature = "cuda")]
pub struct OnGpu {
    device: Arc<Device>,
    numbers: [u8; 32],
    /// Memory of the host's that it reads by itself; what was used longest ago comes first.
    staging: Mutex<VecDeque<Staging>>,
}

#[cfg(feature = "cuda")]
impl OnGpu {
    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Numbers of the host, on their way up while the host goes on.
    ///
    /// # Errors
    /// The memory is full; a shape of another count.
    pub fn send(&self, values: &[f32], shape: &[usize]) -> Result<Placed, Fault> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let used = if staging.len() < UNDER_WAY { None } else { staging.pop_front() };
        let used = used.filter(|place| place.room() >= values.len());
        let array = match used.map_or_else(|| self.device.staging(values.len()), Ok) {
            Ok(mut place) => {
                let sent = place.upload(&self.device, values, shape);
                staging.push_back(place);
                sent?
            }
            // Such memory is short on some hosts, and any other does.
            Err(_) => self.device.upload(values, shape)?,
        };
        Ok(Placed::new(self.device.clone(), array))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_always_there_and_a_gpu_that_is_not_is_refused_with_what_to_do() {
        let host = Place::open(hardware::Device::Cpu).unwrap();
        assert_eq!((host.numbers(), host.wait().is_ok()), (of_host(), true));
        assert!(matches!(host.peak(), Ok(None)), "the system knows that");
        // More than any machine has.
        let failure = Place::open(hardware::Device::Cuda(4096)).unwrap_err().to_failure();
        let why = if cfg!(feature = "cuda") { "GPU 4096 cannot be used: " } else { "this build has no CUDA" };
        assert!(failure.message.starts_with(why), "{failure}");
        assert!(failure.hint.contains("`cluster.device = \"cpu\"`"), "{}", failure.hint);
    }
}
