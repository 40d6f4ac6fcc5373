//! Numbers of a GPU, with the GPU: what a layer needs to go on there.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use half::bf16;

use super::{Array, Device, Fault, ops};

/// An array, and the GPU that it lies on. A clone shares both.
#[derive(Clone)]
pub struct Placed {
    device: Arc<Device>,
    array: Arc<Array>,
    /// Rows of each sample, where it holds sequences and whoever made it has said so.
    lengths: Option<Arc<[usize]>>,
    /// The same numbers in bf16, once somebody has asked for them.
    half: Arc<OnceLock<Arc<Array<bf16>>>>,
}

impl Placed {
    /// An array of that GPU.
    pub fn new(device: Arc<Device>, array: Array) -> Self {
        Self { device, array: Arc::new(array), lengths: None, half: Arc::default() }
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Another array of the same GPU.
    pub fn beside(&self, array: Array) -> Self {
        Self::new(self.device.clone(), array)
    }

    /// The numbers.
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// The numbers, shared.
    pub(in crate::gpu) fn shared(&self) -> &Arc<Array> {
        &self.array
    }

    /// The numbers in bf16: rounded once for all products that take them.
    pub(in crate::gpu) fn half(&self) -> Result<Arc<Array<bf16>>, Fault> {
        if let Some(known) = self.half.get() {
            return Ok(known.clone());
        }
        let made = Arc::new(ops::to_bf16(&self.device, &self.array)?);
        Ok(self.half.get_or_init(|| made).clone())
    }

    /// What an operation makes of them, on the same GPU.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn made(&self, operation: impl FnOnce(&Device, &Array) -> Result<Array, Fault>) -> Result<Self, Fault> {
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

    /// What an operation changes them to: where they lie, or in a copy if others hold them too.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn changed(mut self, operation: impl FnOnce(&Device, &mut Array) -> Result<(), Fault>) -> Result<Self, Fault> {
        if Arc::get_mut(&mut self.array).is_none() {
            self.array = Arc::new(self.device.copy(&self.array)?);
        }
        self.change(operation)?;
        Ok(self)
    }

    /// Changes them where they lie.
    ///
    /// # Errors
    /// Others hold them too; those of the operation.
    pub fn change(&mut self, operation: impl FnOnce(&Device, &mut Array) -> Result<(), Fault>) -> Result<(), Fault> {
        (self.lengths, self.half) = (None, Arc::default());
        match Arc::get_mut(&mut self.array) {
            Some(array) => operation(&self.device, array),
            None => Err(Fault::shape("an array that others hold too was to be changed")),
        }
    }

    /// The numbers for the host; waits until they are made.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn download(&self) -> Result<Vec<f32>, Fault> {
        self.device.download(&self.array)
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
    pub fn into_array(self) -> Result<Array, Fault> {
        match Arc::try_unwrap(self.array) {
            Ok(own) => Ok(own),
            Err(shared) => self.device.copy(&shared),
        }
    }
}

impl fmt::Debug for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Placed").field(&self.array.shape()).finish()
    }
}
