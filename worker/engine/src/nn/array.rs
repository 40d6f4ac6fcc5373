//! What layers take and give.

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use super::host;
use super::{Act, sum::add, tensor};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, Placed, ops::Element};
use crate::{Error, Result, gpu::Place};

/// The numbers between two layers, or the gradient of them, row-major: f32, or on a GPU what bf16 has of them, where layers hand
/// that on. A clone shares them.
///
/// Each lies in one memory, and a layer computes where its input is, or says that it cannot. Above the taps all is
/// [`Tensor`]s of the host's: they become arrays in front of a chain of layers, and arrays become tensors behind it.
#[derive(Clone, Debug)]
pub enum Array {
    /// In the memory of the host.
    Host(Tensor),
    /// In that of a GPU.
    #[cfg(feature = "cuda")]
    Device(Mixed),
}

impl Array {
    /// What layers take of a tensor where they compute: itself on the host, else what is on its way to a GPU, or went there
    /// before ([`Place::expect`]).
    ///
    /// # Errors
    /// The memory of the GPU is full.
    pub fn at(tensor: Tensor, place: &Place) -> Result<Self> {
        match place {
            Place::Host => Ok(tensor.into()),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => match gpu.arrived(&tensor) {
                Some(placed) => Ok(placed.into()),
                None => Ok(gpu.send(&host(&tensor)?, tensor.dims())?.into()),
            },
        }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Host(tensor) => tensor.dims(),
            #[cfg(feature = "cuda")]
            Self::Device(numbers) => numbers.shape(),
        }
    }

    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// One dimension.
    ///
    /// # Errors
    /// It has fewer.
    pub fn dim(&self, axis: usize) -> Result<usize> {
        let dim = self.dims().get(axis).copied();
        dim.ok_or_else(|| Error::Internal(format!("{:?} has no dimension {axis}", self.dims())))
    }

    fn shape<const N: usize>(&self) -> Result<[usize; N]> {
        <[usize; N]>::try_from(self.dims())
            .map_err(|_| Error::Internal(format!("{N} dimensions are expected, given {:?}", self.dims())))
    }

    /// Rows and their width.
    ///
    /// # Errors
    /// It has not two dimensions.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        self.shape::<2>().map(|[a, b]| (a, b))
    }

    /// Samples, rows and their width.
    ///
    /// # Errors
    /// It has not three dimensions.
    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        self.shape::<3>().map(|[a, b, c]| (a, b, c))
    }

    /// Images, their height, width and channels.
    ///
    /// # Errors
    /// It has not four dimensions.
    pub fn dims4(&self) -> Result<(usize, usize, usize, usize)> {
        self.shape::<4>().map(|[a, b, c, d]| (a, b, c, d))
    }

    /// The sum of two.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        add(self, other, Act::None)
    }

    /// A tensor in the host's memory: the same numbers where they lie there, else what a GPU sends down when it has made
    /// them.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            #[cfg(feature = "cuda")]
            Self::Device(numbers) => tensor(numbers.download()?, numbers.shape()),
        }
    }
}

impl From<Tensor> for Array {
    fn from(tensor: Tensor) -> Self {
        Self::Host(tensor)
    }
}

#[cfg(feature = "cuda")]
impl From<Mixed> for Array {
    fn from(numbers: Mixed) -> Self {
        Self::Device(numbers)
    }
}

#[cfg(feature = "cuda")]
impl<T: Element> From<Placed<T>> for Array {
    fn from(placed: Placed<T>) -> Self {
        Self::Device(placed.into())
    }
}

/// What [`host`](super::host) can open.
pub trait OnHost {
    /// The tensor that holds the numbers.
    ///
    /// # Errors
    /// They lie on a GPU: a layer that does not know it has none to compute with.
    fn on_host(&self) -> Result<&Tensor>;
}

impl OnHost for Tensor {
    fn on_host(&self) -> Result<&Tensor> {
        Ok(self)
    }
}

impl OnHost for Array {
    fn on_host(&self) -> Result<&Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Device(_) => Err(Error::Internal("numbers of a GPU were opened as the host's".into())),
        }
    }
}

impl<T: OnHost + ?Sized> OnHost for &T {
    fn on_host(&self) -> Result<&Tensor> {
        (**self).on_host()
    }
}

/// An array of the host's that owns `data`.
///
/// # Errors
/// A shape of another count.
pub fn array(data: Vec<f32>, shape: &[usize]) -> Result<Array> {
    tensor(data, shape).map(Array::Host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::host;

    #[test]
    fn a_tensor_goes_in_and_comes_out_without_a_copy() {
        let x = tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]).unwrap();
        let place = |x: &Tensor| host(x).unwrap().as_ptr();
        let array = Array::from(x.clone());
        assert_eq!((place(&array.to_tensor().unwrap()), array.dims(), array.count()), (place(&x), &[3, 2][..], 6));
        // Part of a tensor is opened where it begins.
        let rows = Array::from(x.narrow(0, 1, 2).unwrap());
        assert_eq!(host(&rows.clone()).unwrap().to_vec(), [3.0, 4.0, 5.0, 6.0]);
        assert!(host(&Array::from(x.t().unwrap())).is_err());
    }

    #[test]
    fn shapes_are_asked_for_by_their_number_of_dimensions() {
        let x = array(vec![0.0; 24], &[1, 2, 3, 4]).unwrap();
        assert_eq!((x.dims4().unwrap(), x.dim(2).unwrap()), ((1, 2, 3, 4), 3));
        assert!(x.dim(4).is_err() && x.dims2().is_err() && x.dims3().is_err());
        assert!(array(vec![0.0; 24], &[5, 5]).is_err());
        assert!(x.plus(&array(vec![0.0; 24], &[4, 6]).unwrap()).is_err());
    }
}
