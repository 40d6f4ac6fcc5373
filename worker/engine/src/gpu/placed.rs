//! Numbers of a GPU, with the GPU: what whoever has them needs to go on there.

use std::{fmt, sync::Arc};

use cudarc::driver::DeviceRepr;

use super::{Array, Device, Fault};

/// An array, and the GPU that it lies on. A clone shares both.
pub struct Placed<T = f32> {
    device: Arc<Device>,
    array: Arc<Array<T>>,
    /// Rows of each sample, where it holds sequences and whoever made it has said so.
    lengths: Option<Arc<[usize]>>,
}

// By hand, since a derived one would ask `T` to be so too.
impl<T> Clone for Placed<T> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), array: self.array.clone(), lengths: self.lengths.clone() }
    }
}

impl<T> Placed<T> {
    /// An array of that GPU.
    pub fn new(device: Arc<Device>, array: Array<T>) -> Self {
        Self { device, array: Arc::new(array), lengths: None }
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Another array of the same GPU.
    pub fn beside<U>(&self, array: Array<U>) -> Placed<U> {
        Placed::new(self.device.clone(), array)
    }

    /// The numbers.
    pub fn array(&self) -> &Array<T> {
        &self.array
    }

    /// The numbers, shared.
    pub(in crate::gpu) fn shared(&self) -> &Arc<Array<T>> {
        &self.array
    }

    /// Whether others hold them too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.array) > 1
    }

    /// What an operation makes of them, on the same GPU.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn made<U>(
        &self,
        operation: impl FnOnce(&Device, &Array<T>) -> Result<Array<U>, Fault>,
    ) -> Result<Placed<U>, Fault> {
        Ok(self.beside(operation(&self.device, &self.array)?))
    }

    /// The same numbers, said to be sequences of these lengths.
    pub fn with_lengths(self, lengths: &[usize]) -> Self {
        Self { lengths: Some(lengths.into()), ..self }
    }

    /// Rows of each sample, if that was said: what the headers of a frame say too, without a question to the GPU, which
    /// would have to finish all that it has been given.
    pub fn lengths(&self) -> Option<&[usize]> {
        self.lengths.as_deref()
    }

    /// Changes them where they lie.
    ///
    /// # Errors
    /// Others hold them too; those of the operation.
    pub fn change(&mut self, operation: impl FnOnce(&Device, &mut Array<T>) -> Result<(), Fault>) -> Result<(), Fault> {
        self.lengths = None;
        match Arc::get_mut(&mut self.array) {
            Some(array) => operation(&self.device, array),
            None => Err(Fault::shape("an array that others hold too was to be changed")),
        }
    }
}

impl<T: DeviceRepr> Placed<T> {
    /// What an operation changes them to: where they lie, or in a copy if others hold them too.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn changed(
        mut self,
        operation: impl FnOnce(&Device, &mut Array<T>) -> Result<(), Fault>,
    ) -> Result<Self, Fault> {
        if Arc::get_mut(&mut self.array).is_none() {
            self.array = Arc::new(self.device.copy(&self.array)?);
        }
        self.change(operation)?;
        Ok(self)
    }

    /// The same numbers in another shape; a copy of them where others hold them too.
    ///
    /// # Errors
    /// One of another count.
    pub fn reshaped(self, shape: &[usize]) -> Result<Self, Fault> {
        let device = self.device.clone();
        Ok(Self::new(device, self.into_array()?.reshaped(shape)?))
    }

    /// The numbers without the GPU; a copy of them where others hold them too.
    ///
    /// # Errors
    /// The memory is full.
    pub fn into_array(self) -> Result<Array<T>, Fault> {
        match Arc::try_unwrap(self.array) {
            Ok(own) => Ok(own),
            Err(shared) => self.device.copy(&shared),
        }
    }
}

impl Placed {
    /// The numbers for the host; waits until they are made.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn download(&self) -> Result<Vec<f32>, Fault> {
        self.device.download(&self.array)
    }
}

impl<T> fmt::Debug for Placed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Placed").field(&self.array.shape()).finish()
    }
}
