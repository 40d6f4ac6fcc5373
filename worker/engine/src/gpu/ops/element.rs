//! What products take: f32, or bf16 in half the memory, which a GPU multiplies many times as fast.

use std::ops::Range;

use cudarc::{
    cublas::sys,
    driver::{DeviceRepr, ValidAsZeroBits},
};
use half::bf16;
use tl_proto::spec::Precision;

use super::{add_bias, add_bias_rounded, begin_bias, from_bf16, to_bf16, to_bf16_run};
use crate::gpu::{Array, Device, Fault, Mixed, Placed};

/// What products take. They are summed in f32, and what layers make of a sum is rounded to what the product took.
pub trait Element: sealed::Sealed + DeviceRepr + ValidAsZeroBits + Sized {
    /// What cuBLAS calls it.
    #[doc(hidden)]
    const TYPE: sys::cudaDataType;
    /// Whether it is bf16.
    #[doc(hidden)]
    const HALF: bool;

    /// What products of it are, of which those of f32 may be TF32.
    #[doc(hidden)]
    fn precision(tf32: bool) -> Precision;

    /// Numbers as a product takes them.
    ///
    /// # Errors
    /// The memory is full, or the GPU has failed; so for all that follow.
    fn taken<'a>(device: &Device, x: &'a Array) -> Result<Taken<'a, Self>, Fault>;

    /// Some numbers of an array as a product takes them, in a shape of as many.
    ///
    /// # Errors
    /// As [`Element::taken`]; none, some that are not there, or a shape of another count.
    fn part(device: &Device, x: &Array, run: Range<usize>, shape: &[usize]) -> Result<Array<Self>, Fault>;

    /// Numbers as layers hand them on.
    #[doc(hidden)]
    fn mixed(placed: Placed<Self>) -> Mixed;

    /// Sums in f32 as a product gives them: rounded to what it took.
    ///
    /// # Errors
    /// As [`Element::taken`].
    fn given(device: &Device, y: Array) -> Result<Array<Self>, Fault>;

    /// The same numbers in f32.
    ///
    /// # Errors
    /// As [`Element::taken`].
    fn wide(device: &Device, x: Array<Self>) -> Result<Array, Fault>;

    /// The same of numbers that stay: lent where they lie in f32.
    ///
    /// # Errors
    /// As [`Element::taken`].
    fn widened<'a>(device: &Device, x: &'a Array<Self>) -> Result<Taken<'a, f32>, Fault>;

    /// What sums of that shape begin with, to have a bias that the type has as it is; nothing where the bias is added to them.
    ///
    /// # Errors
    /// As [`Element::taken`]; another number of channels.
    fn begun(device: &Device, bias: &Array, shape: &[usize]) -> Result<Option<Array<Self>>, Fault>;

    /// Adds a bias to sums, and rounds them.
    ///
    /// # Errors
    /// Another number of channels.
    fn add_bias(device: &Device, y: Array, bias: &Array) -> Result<Array<Self>, Fault>;
}

impl Element for f32 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;
    const HALF: bool = false;

    fn precision(tf32: bool) -> Precision {
        if tf32 { Precision::Tf32 } else { Precision::F32 }
    }

    fn taken<'a>(_: &Device, x: &'a Array) -> Result<Taken<'a, Self>, Fault> {
        Ok(Taken::Lent(x))
    }

    fn part(device: &Device, x: &Array, run: Range<usize>, shape: &[usize]) -> Result<Array, Fault> {
        device.part(x, run, shape)
    }

    fn mixed(placed: Placed) -> Mixed {
        Mixed::Full(placed.into())
    }

    fn given(_: &Device, y: Array) -> Result<Array, Fault> {
        Ok(y)
    }

    fn wide(_: &Device, x: Array) -> Result<Array, Fault> {
        Ok(x)
    }

    fn widened<'a>(_: &Device, x: &'a Array) -> Result<Taken<'a, f32>, Fault> {
        Ok(Taken::Lent(x))
    }

    fn begun(_: &Device, _: &Array, _: &[usize]) -> Result<Option<Array>, Fault> {
        Ok(None)
    }

    fn add_bias(device: &Device, mut y: Array, bias: &Array) -> Result<Array, Fault> {
        add_bias(device, &mut y, bias)?;
        Ok(y)
    }
}

impl Element for bf16 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_16BF;
    const HALF: bool = true;

    fn precision(_: bool) -> Precision {
        Precision::Bf16
    }

    fn taken<'a>(device: &Device, x: &'a Array) -> Result<Taken<'a, Self>, Fault> {
        to_bf16(device, x).map(Taken::Made)
    }

    fn part(device: &Device, x: &Array, run: Range<usize>, shape: &[usize]) -> Result<Array<Self>, Fault> {
        to_bf16_run(device, x, run, shape)
    }

    fn mixed(placed: Placed<Self>) -> Mixed {
        Mixed::Half(placed)
    }

    fn given(device: &Device, y: Array) -> Result<Array<Self>, Fault> {
        to_bf16(device, &y)
    }

    fn wide(device: &Device, x: Array<Self>) -> Result<Array, Fault> {
        from_bf16(device, &x)
    }

    fn widened<'a>(device: &Device, x: &'a Array<Self>) -> Result<Taken<'a, f32>, Fault> {
        from_bf16(device, x).map(Taken::Made)
    }

    fn begun(device: &Device, bias: &Array, shape: &[usize]) -> Result<Option<Array<Self>>, Fault> {
        begin_bias(device, bias, shape).map(Some)
    }

    fn add_bias(device: &Device, y: Array, bias: &Array) -> Result<Array<Self>, Fault> {
        add_bias_rounded(device, &y, bias)
    }
}

/// The kernel of a name for that type.
macro_rules! of_type {
    ($type:ident, $name:literal) => {
        if <$type as $crate::gpu::ops::Element>::HALF { concat!($name, "_bf16") } else { $name }
    };
}
pub(super) use of_type;

mod sealed {
    /// Only what cuBLAS and cuDNN can.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// Numbers as a product takes them: lent where they lie so already.
pub enum Taken<'a, T> {
    /// Those that were given.
    Lent(&'a Array<T>),
    /// New ones.
    Made(Array<T>),
}

impl<T> Taken<'_, T> {
    /// The numbers.
    pub fn array(&self) -> &Array<T> {
        match self {
            Self::Lent(array) => array,
            Self::Made(array) => array,
        }
    }
}
