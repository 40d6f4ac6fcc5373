//! How products of f32 are computed.

use std::sync::Arc;

use crate::gpu::Device;

/// A GPU, and whether products and convolutions of f32 may be TF32 there: operands are read as TF32 has them, which tensor cores
/// multiply; sums and what they come to are f32. Those of bf16 are the same in either. A device alone stands for f32 as it is.
#[derive(Clone, Copy)]
pub struct Math<'a> {
    /// The GPU.
    pub device: &'a Device,
    /// Whether TF32 will do.
    pub tf32: bool,
}

impl<'a> From<&'a Device> for Math<'a> {
    fn from(device: &'a Device) -> Self {
        Self { device, tf32: false }
    }
}

impl<'a> From<&'a Arc<Device>> for Math<'a> {
    fn from(device: &'a Arc<Device>) -> Self {
        Self::from(&**device)
    }
}
