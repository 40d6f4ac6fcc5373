//! Numbers in the memory of a GPU.

use std::ops::Range;

use cudarc::driver::CudaSlice;

use super::Fault;

/// A row-major array in the memory of a GPU. It is never empty: a kernel over nothing cannot be started.
#[derive(Debug)]
pub struct Array<T = f32> {
    pub(in crate::gpu) data: CudaSlice<T>,
    shape: Vec<usize>,
}

impl<T> Array<T> {
    /// Of memory that holds as many numbers as the shape says.
    pub(in crate::gpu) fn new(data: CudaSlice<T>, shape: &[usize]) -> Self {
        Self { data, shape: shape.to_vec() }
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.data.len()
    }

    /// The last dimension.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// How many rows of the last dimension it has.
    pub fn rows(&self) -> usize {
        self.count() / self.width()
    }

    /// The same numbers in another shape.
    ///
    /// # Errors
    /// One of another count.
    pub fn reshaped(self, shape: &[usize]) -> Result<Self, Fault> {
        if counted(shape)? != self.count() {
            return Err(Fault::shape(format!("{:?} cannot become {shape:?}", self.shape)));
        }
        Ok(Self { shape: shape.to_vec(), ..self })
    }

    /// Images `[n, h, w, c]`.
    pub(in crate::gpu) fn images(&self) -> Result<[usize; 4], Fault> {
        <[usize; 4]>::try_from(&self.shape[..])
            .map_err(|_| Fault::shape(format!("images are expected, given {:?}", self.shape)))
    }

    /// Refuses another shape.
    pub(in crate::gpu) fn expect(&self, shape: &[usize]) -> Result<(), Fault> {
        if self.shape != shape {
            return Err(Fault::shape(format!("{shape:?} is expected, given {:?}", self.shape)));
        }
        Ok(())
    }

    /// Refuses another count.
    pub(in crate::gpu) fn expect_count(&self, count: usize) -> Result<(), Fault> {
        if self.count() != count {
            return Err(Fault::shape(format!("{count} numbers are expected, given {:?}", self.shape)));
        }
        Ok(())
    }

    /// Refuses a run of numbers that is none, or that is not inside.
    pub(in crate::gpu) fn expect_run(&self, run: &Range<usize>) -> Result<(), Fault> {
        if run.is_empty() || run.end > self.count() {
            return Err(Fault::shape(format!("{run:?} of {} numbers", self.count())));
        }
        Ok(())
    }
}

/// How many numbers a shape holds.
///
/// # Errors
/// None, or more than memory can have.
pub(in crate::gpu) fn counted(shape: &[usize]) -> Result<usize, Fault> {
    let count = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
    match count {
        Some(count) if count > 0 && count < 1 << 60 => Ok(count),
        _ => Err(Fault::shape(format!("an array of {shape:?} cannot be"))),
    }
}
