//! What ranks do together with device memory.
//!
//! Each call is ordered on the communicator's stream and returns once the library has taken it over. Results may be used by
//! other work on streams, but nothing may be concluded from them before [`Communicator::complete`] has said yes.

use std::ffi::{c_int, c_void};

use cudarc::{
    driver::{DevicePtr, DevicePtrMut, DeviceSlice},
    nccl::sys::ncclRedOp_t,
};

use crate::{Communicator, Element, NcclError, Result, api::Stream};

const SUM: c_int = ncclRedOp_t::ncclSum as c_int;

impl Communicator {
    /// The sum over all ranks, in place of what each has.
    ///
    /// # Errors
    /// The communicator is gone, fails, or does not take it in time.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn all_reduce<T: Element, D: DevicePtrMut<T>>(&self, data: &mut D) -> Result<()> {
        self.is_here(data)?;
        let (count, call) = (data.len(), self.shared.nccl.all_reduce);
        let (pointer, _until_taken_over) = data.device_ptr_mut(&self.stream);
        self.enqueue("ncclAllReduce", |comm| {
            let at = pointer as *mut c_void;
            // SAFETY: `count` elements of `T` that are borrowed until the library has queued its work on the stream. That they
            // are there, and that later uses of them are ordered after that, is taken from who implements `DevicePtrMut`, as
            // cudarc's own copies take it: cudarc, or a type that lends memory of its own and orders its uses itself.
            unsafe { call(at, at, count, T::TYPE, SUM, comm, self.raw_stream()) }
        })
    }

    /// The sum over all ranks of `from`, into `to` of each.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; slices of different lengths.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn all_reduce_into<T: Element, S: DevicePtr<T>, D: DevicePtrMut<T>>(&self, from: &S, to: &mut D) -> Result<()> {
        self.fits(from, 1, to, 1)?;
        let (count, call) = (from.len(), self.shared.nccl.all_reduce);
        let (source, _read) = from.device_ptr(&self.stream);
        let (target, _written) = to.device_ptr_mut(&self.stream);
        self.enqueue("ncclAllReduce", |comm| {
            // SAFETY: as in `all_reduce`, `count` elements each.
            unsafe { call(source as _, target as _, count, T::TYPE, SUM, comm, self.raw_stream()) }
        })
    }

    /// What rank `root` has, in place of what the others have.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; a rank that there is not.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn broadcast<T: Element, D: DevicePtrMut<T>>(&self, data: &mut D, root: usize) -> Result<()> {
        self.is_here(data)?;
        if root >= self.world {
            return Err(NcclError::Argument(format!("there is no rank {root} in a group of {}", self.world)));
        }
        let (count, call) = (data.len(), self.shared.nccl.broadcast);
        let (pointer, _until_taken_over) = data.device_ptr_mut(&self.stream);
        self.enqueue("ncclBroadcast", |comm| {
            let at = pointer as *mut c_void;
            // SAFETY: as in `all_reduce`.
            unsafe { call(at, at, count, T::TYPE, root as c_int, comm, self.raw_stream()) }
        })
    }

    /// `from` of every rank, by rank, into `to` of each.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; `to` is not as long as all of `from`.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn all_gather<T: Element, S: DevicePtr<T>, D: DevicePtrMut<T>>(&self, from: &S, to: &mut D) -> Result<()> {
        self.fits(from, self.world, to, 1)?;
        let (count, call) = (from.len(), self.shared.nccl.all_gather);
        let (source, _read) = from.device_ptr(&self.stream);
        let (target, _written) = to.device_ptr_mut(&self.stream);
        self.enqueue("ncclAllGather", |comm| {
            // SAFETY: as in `all_reduce`: `count` elements are read, `count` for each rank written.
            unsafe { call(source as _, target as _, count, T::TYPE, comm, self.raw_stream()) }
        })
    }

    /// The sum over all ranks of `from`, cut into one run per rank, the own one into `to`.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; `from` is not as long as all of `to`.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn reduce_scatter<T: Element, S: DevicePtr<T>, D: DevicePtrMut<T>>(&self, from: &S, to: &mut D) -> Result<()> {
        self.fits(from, 1, to, self.world)?;
        let (count, call) = (to.len(), self.shared.nccl.reduce_scatter);
        let (source, _read) = from.device_ptr(&self.stream);
        let (target, _written) = to.device_ptr_mut(&self.stream);
        self.enqueue("ncclReduceScatter", |comm| {
            // SAFETY: as in `all_reduce`: `count` elements for each rank are read, `count` written.
            unsafe { call(source as _, target as _, count, T::TYPE, SUM, comm, self.raw_stream()) }
        })
    }

    fn raw_stream(&self) -> Stream {
        self.stream.cu_stream().cast()
    }

    /// Whether memory is on the communicator's GPU.
    fn is_here<T>(&self, data: &impl DeviceSlice<T>) -> Result<()> {
        if data.stream().context() == self.stream.context() {
            return Ok(());
        }
        Err(NcclError::Argument("the memory is on another GPU than the communicator".into()))
    }

    /// Whether `from` times `sent` is as long as `to` times `received`, and both are on the communicator's GPU.
    fn fits<T>(
        &self,
        from: &impl DeviceSlice<T>,
        sent: usize,
        to: &impl DeviceSlice<T>,
        received: usize,
    ) -> Result<()> {
        if from.len().checked_mul(sent) != to.len().checked_mul(received) {
            let (from, to, world) = (from.len(), to.len(), self.world);
            return Err(NcclError::Argument(format!("{from} elements do not go into {to} with {world} ranks")));
        }
        self.is_here(from)?;
        self.is_here(to)
    }
}
