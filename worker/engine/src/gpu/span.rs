//! Runs of the numbers of an array: written one by one, and lent to another stream.

use std::{marker::PhantomData, ops::Range, sync::Arc};

use cudarc::driver::{CudaStream, CudaViewMut, DevicePtrMut, DeviceSlice, SyncOnDrop, sys::CUdeviceptr};

use super::{Array, Device, Fault, launch::own};

/// A run of an array that another stream works on.
///
/// Nothing keeps the two streams in order but what is said here: the other one begins when the array's own has come so far, and
/// goes on beside it, also while other parts are written. cudarc's trait, by which a span is handed on, wants no promise of that:
/// who makes one gives it ([`Span::of`]).
pub(crate) struct Span<'a> {
    pointer: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    array: PhantomData<&'a mut Array>,
}

impl<'a> Span<'a> {
    /// For `to`, which goes on once the array's own stream has done what was asked of it so far.
    ///
    /// # Errors
    /// A run that is not inside, or a driver that refuses.
    ///
    /// # Safety
    /// Until `to` is through with the run, nothing else uses it, and the array is not given back; unless its own stream was told
    /// to wait for that before ([`Array::after`]).
    #[expect(unsafe_code, reason = "the borrow ends before the other stream is through")]
    pub(crate) unsafe fn of(array: &'a mut Array, run: Range<usize>, to: &CudaStream) -> Result<Self, Fault> {
        let (stream, len) = (array.data.stream().clone(), run.len());
        // On its own stream there is nothing to wait for.
        let pointer = array.part(run, len)?.device_ptr_mut(&stream).0;
        to.join(&stream)?;
        Ok(Self { pointer, len, stream, array: PhantomData })
    }
}

impl DeviceSlice<f32> for Span<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl DevicePtrMut<f32> for Span<'_> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.pointer, SyncOnDrop::Record(None))
    }
}

impl Array {
    /// Overwrites a run with numbers of the host.
    ///
    /// # Errors
    /// A run of another length, or one that is not inside.
    pub(crate) fn fill(&mut self, run: Range<usize>, values: &[f32]) -> Result<(), Fault> {
        let stream = self.data.stream().clone();
        Ok(stream.memcpy_htod(values, &mut self.part(run, values.len())?)?)
    }

    /// Overwrites a run with all numbers of another array.
    ///
    /// # Errors
    /// As [`Self::fill`]; an array of another stream.
    pub(crate) fn place(&mut self, run: Range<usize>, from: &Self) -> Result<(), Fault> {
        let stream = self.data.stream().clone();
        Ok(stream.memcpy_dtod(own(&stream, &from.data)?, &mut self.part(run, from.count())?)?)
    }

    /// Lets everything that is done with it from now on wait for what another stream does until now.
    ///
    /// # Errors
    /// The driver refuses.
    pub(crate) fn after(&self, stream: &CudaStream) -> Result<(), Fault> {
        Ok(self.data.stream().join(stream)?)
    }

    fn part(&mut self, run: Range<usize>, count: usize) -> Result<CudaViewMut<'_, f32>, Fault> {
        let (all, bad) = (self.count(), format!("{count} numbers for {run:?}"));
        if run.len() != count {
            return Err(Fault::shape(bad));
        }
        self.data.try_slice_mut(run).ok_or_else(|| Fault::shape(format!("{bad} of {all}")))
    }
}

impl Device {
    /// Arrays in one flat one, each from a number of it on; what none of them covers is zero.
    ///
    /// # Errors
    /// The memory is full, or an array has more numbers than there are from there on.
    pub(crate) fn laid(&self, count: usize, parts: &[(usize, &Array)]) -> Result<Array, Fault> {
        let mut runs: Vec<Range<usize>> =
            parts.iter().map(|(first, part)| *first..first.saturating_add(part.count())).collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut end = 0;
        let close = runs.iter().all(|run| std::mem::replace(&mut end, run.end) == run.start);
        let mut all: Array = if close && end == count { self.fresh(&[count])? } else { self.zeros(&[count])? };
        for (first, part) in parts {
            all.place(*first..first.saturating_add(part.count()), part)?;
        }
        Ok(all)
    }

    /// As [`Device::download`], into memory that is there.
    ///
    /// # Errors
    /// What makes the numbers has failed, or there is room for more or fewer.
    pub(crate) fn download_to(&self, array: &Array, to: &mut [f32]) -> Result<(), Fault> {
        if array.count() != to.len() {
            return Err(Fault::shape(format!("{} numbers for {}", array.count(), to.len())));
        }
        self.expect_own(array)?;
        self.stream().memcpy_dtoh(&array.data, to)?;
        self.synchronize()
    }
}
