//! Where a rank computes.

use std::fmt;
#[cfg(feature = "cuda")]
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::Tensor;
use tl_proto::hardware;

#[cfg(feature = "cuda")]
use super::{Device, Fault, Placed, Staging, Upload, ahead::Ahead, fingerprint};
#[cfg(feature = "cuda")]
use crate::{Error, nn::host};
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
        let (staging, aside, ahead) = (Mutex::default(), Mutex::default(), Arc::default());
        device.spares(&ahead);
        Ok(Self::Gpu(Arc::new(OnGpu { device, numbers, staging, aside, ahead })))
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

    /// Says that tensors will be asked for here which are not made yet; what may be sent up of them has to name this
    /// announcement. What the last few have named is held, and no more.
    pub fn announce(&self) -> u64 {
        match self {
            Self::Host => 0,
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.ahead.announce(),
        }
    }

    /// Sends a tensor up before it is asked for, beside all that is computed there. Nothing comes of it on the host, nor
    /// where enough is on its way, or what was had to be given back for want of memory.
    pub fn expect(&self, tensor: &Tensor, announcement: u64) {
        match self {
            Self::Host => _ = (tensor, announcement),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.expect(tensor, announcement),
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
    /// The same for what goes up before it is asked for. Each has a stream, on which it is given back if nobody asks for it.
    aside: Mutex<VecDeque<Staging>>,
    ahead: Arc<Ahead>,
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
        let place = place_for(&mut staging, values.len(), || self.device.staging(values.len()));
        let sent = place.and_then(|mut place| {
            let sent = place.upload(values, shape);
            staging.push_back(place);
            sent
        });
        // Such memory is short on some hosts, and any other does. Where that of the GPU is, more of it is found there.
        let array = sent.and_then(|sent| self.device.adopt(sent)).or_else(|_| self.device.upload(values, shape))?;
        Ok(Placed::new(self.device.clone(), array))
    }

    /// What was sent up of a tensor before it was asked for, if it was.
    pub(crate) fn arrived(&self, tensor: &Tensor) -> Option<Placed> {
        let sent = self.ahead.take(tensor.id())?;
        // Where it cannot be waited for it is sent up anew, or whoever does that is told.
        self.device.adopt(sent).ok().map(|array| Placed::new(self.device.clone(), array))
    }

    /// How many tensors went up that nobody has asked for.
    pub fn waiting(&self) -> usize {
        self.ahead.waiting()
    }

    fn expect(&self, tensor: &Tensor, announcement: u64) {
        if self.ahead.is_closed() || self.waiting() >= UNDER_WAY {
            return;
        }
        // What fails here is told to whoever asks for it.
        let Ok(values) = host(tensor) else { return };
        let Ok(sent) = self.send_aside(&values, tensor.dims()) else { return };
        self.ahead.keep(tensor.id(), announcement, sent);
    }

    fn send_aside(&self, values: &[f32], shape: &[usize]) -> Result<Upload, Fault> {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = place_for(&mut aside, values.len(), || self.device.staging_aside(values.len()))?;
        let sent = place.upload(values, shape);
        aside.push_back(place);
        sent
    }
}

/// A place with room for `count` numbers, to be put back: of those that have it the one that was used longest ago, once there
/// are two, or a new one instead of one that has not.
#[cfg(feature = "cuda")]
fn place_for(
    places: &mut VecDeque<Staging>,
    count: usize,
    new: impl FnOnce() -> Result<Staging, Fault>,
) -> Result<Staging, Fault> {
    if places.len() < UNDER_WAY {
        return new();
    }
    let fits = places.iter().position(|place| place.room() >= count);
    match places.remove(fits.unwrap_or_default()).filter(|_| fits.is_some()) {
        Some(place) => Ok(place),
        None => new(),
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
