//! Numbers of a GPU, with the GPU: what a layer needs to go on there.

use std::{fmt, sync::Arc};

use super::{Array, Device, Fault};

/// An array, and the GPU that it lies on. A clone shares both.
#[derive(Clone)]
pub struct Placed {
    device: Arc<Device>,
    array: Arc<Array>,
}

impl Placed {
    /// An array of that GPU.
    pub fn new(device: Arc<Device>, array: Array) -> Self {
        Self { device, array: Arc::new(array) }
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The numbers.
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// What an operation makes of them, on the same GPU.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn made(&self, operation: impl FnOnce(&Device, &Array) -> Result<Array, Fault>) -> Result<Self, Fault> {
        let array = operation(&self.device, &self.array)?;
        Ok(Self::new(self.device.clone(), array))
    }

    /// Changes them where they lie.
    ///
    /// # Errors
    /// Others hold them too; those of the operation.
    pub fn change(&mut self, operation: impl FnOnce(&Device, &mut Array) -> Result<(), Fault>) -> Result<(), Fault> {
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
}

impl fmt::Debug for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Placed").field(&self.array.shape()).finish()
    }
}
