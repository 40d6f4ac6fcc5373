//! The fast reduction on GPUs, which begins before backward ends.
//!
//! The last grain of a rank adds what is final of its gradient to the sum of the grains before it, unit by unit, from the end
//! of the network to its beginning ([`Gradients::passed`](crate::nn::Gradients::passed)). As soon as a bucket is whole NCCL has
//! it, on a stream of its own, and backward goes on meanwhile. What has no unit, or one that backward passed over, and the
//! sums of batch-norms go when it is over. A rank without grains, or one that wants to know its last grain before that, hands
//! in all at once: the buckets are the same ones, in the same order.
//!
//! An error on the way is one of any other kind: the rank leaves, and the others hear of it where they wait for it.

#[cfg(feature = "cuda")]
use std::{ops::Range, sync::Arc};

use super::step::Step;
use crate::{
    Result,
    backbone::Unit,
    collective::Collective,
    nn::{Flat, ParamId, Taker},
};
#[cfg(feature = "cuda")]
use crate::{
    collective::Buckets,
    gpu::{Device, Place, Placed},
};

/// Whether the sum of a step in the fast reduction may begin that early, of which every rank has to think the same: not with
/// several tasks, which leave more than one gradient, nor with episodes, which pass the network as often as they like.
#[cfg(feature = "cuda")]
pub(super) fn may(step: &Step<'_>, group: &mut dyn Collective) -> bool {
    let simple = step.tasks.is_none() && step.run.few.is_none();
    let there = matches!(step.state.store.place, Place::Gpu(_));
    simple && there && group.world() > 1 && group.on_gpus().is_some()
}

/// The sum over all ranks of `own`, that of the grains that are done, and of `last`, which `compute` hands in.
///
/// # Errors
/// Those of the grain; a lost peer.
#[cfg(feature = "cuda")]
pub(super) fn sum(
    step: &Step<'_>,
    group: &mut dyn Collective,
    own: Option<Flat>,
    last: Option<usize>,
    compute: impl FnOnce(usize, &mut dyn Taker) -> Result<()>,
) -> Result<Flat> {
    let (Some(group), Place::Gpu(gpu)) = (group.on_gpus(), &step.state.store.place) else {
        return Err(crate::Error::Internal("a sum cannot begin early here".into()));
    };
    let (device, layout) = (gpu.device(), &step.stage.layout);
    let len = layout.total_len();
    let flat = match own {
        Some(Flat::Device(own)) => own.into_array()?,
        Some(Flat::Host(own)) => device.upload(&own, &[own.len()])?,
        None => device.zeros(&[len])?,
    };
    let mut early = Early { device, buckets: group.open(flat, layout.params_len()) };
    match last {
        Some(grain) => compute(grain, &mut early)?,
        None => early.take(0..len, None)?,
    }
    Ok(Flat::Device(Placed::new(device.clone(), early.buckets.finish()?)))
}

/// This rank's sum, on its way.
#[cfg(feature = "cuda")]
struct Early<'a> {
    device: &'a Arc<Device>,
    buckets: Buckets<'a>,
}

#[cfg(feature = "cuda")]
impl Taker for Early<'_> {
    fn take(&mut self, run: Range<usize>, part: Option<Flat>) -> Result<()> {
        if let Some(part) = part {
            let part = part.placed(self.device)?;
            self.buckets.add(self.device, run.clone(), part.array())?;
        }
        self.buckets.ready(run)
    }
}

impl Step<'_> {
    /// Each parameter, as often as a part of the network that uses it goes backward in a grain: units of its own, those of a
    /// second network, the old head; and once what the objective trains beside them.
    pub(super) fn uses(&self) -> Vec<ParamId> {
        let network = &self.inputs.net.network;
        let second = self.paired.and_then(|paired| paired.inputs);
        let second = second.map(|inputs| &inputs.net.network.units[inputs.cut..]);
        let old = self.said.map(|_| &network.old[..]);
        let parts = [Some(&network.units[self.stage.cut..]), second, old];
        let used = parts.into_iter().flatten().flatten().flat_map(Unit::params);
        used.chain(network.own.iter().copied()).collect()
    }
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub(super) fn may(_: &Step<'_>, _: &mut dyn Collective) -> bool {
    false
}

/// This build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub(super) fn sum(
    _: &Step<'_>,
    _: &mut dyn Collective,
    _: Option<Flat>,
    _: Option<usize>,
    _: impl FnOnce(usize, &mut dyn Taker) -> Result<()>,
) -> Result<Flat> {
    Err(crate::Error::Internal("this build has no CUDA".into()))
}
