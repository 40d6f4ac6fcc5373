//! What layers hand on on a GPU: f32, or bf16 in half the memory. Both are numbers of f32, and those of bf16 are exact in it:
//! an operation that knows bf16 reads and writes half as much, and for any other they are widened.

use std::sync::{Arc, OnceLock};

use half::bf16;

use super::{
    Array, Device, Fault, Placed,
    ops::{self, Element},
};
use crate::num::bf16::rounded;

/// Numbers in f32, with what bf16 has of them once somebody has asked for it. A clone shares both.
#[derive(Clone, Debug)]
pub struct Full {
    numbers: Placed,
    known: Arc<OnceLock<Placed<bf16>>>,
}

impl Full {
    /// The numbers.
    pub fn numbers(&self) -> &Placed {
        &self.numbers
    }

    fn half(&self) -> Result<Placed<bf16>, Fault> {
        if let Some(known) = self.known.get() {
            return Ok(known.clone());
        }
        // The headers of frames are numbers among others.
        let rounds = |length: &usize| rounded(*length as f32) != *length as f32;
        if let Some(lengths) = self.numbers.lengths().filter(|lengths| lengths.iter().any(rounds)) {
            return Err(Fault::shape(format!("sequences of {lengths:?} rows were to lie in bf16, which rounds these")));
        }
        let made = cast(&self.numbers, ops::to_bf16)?;
        Ok(self.known.get_or_init(|| made).clone())
    }
}

impl From<Placed> for Full {
    fn from(numbers: Placed) -> Self {
        Self { numbers, known: Arc::default() }
    }
}

/// The same numbers in the other type. Sequences are still of the lengths that they were said to be of.
fn cast<T, U>(
    x: &Placed<T>,
    operation: impl FnOnce(&Device, &Array<T>) -> Result<Array<U>, Fault>,
) -> Result<Placed<U>, Fault> {
    let made = x.made(operation)?;
    Ok(match x.lengths() {
        Some(lengths) => made.with_lengths(lengths),
        None => made,
    })
}

/// The numbers between two layers, or the gradient of them, in the memory that their precision gives them. A clone shares them.
#[derive(Clone, Debug)]
pub enum Mixed {
    /// In f32.
    Full(Full),
    /// In bf16.
    Half(Placed<bf16>),
}

/// What is made of either type by one expression, which is generic in it.
macro_rules! either {
    ($numbers:expr, |$x:ident| $made:expr) => {
        match $numbers {
            $crate::gpu::Mixed::Full(full) => {
                let $x = full.numbers();
                $made
            }
            $crate::gpu::Mixed::Half($x) => $made,
        }
    };
}

/// What is made of two in the type that both have: of f32 unless both lie in bf16. The expression gives a result; so does this,
/// after the numbers that had to be widened.
macro_rules! both {
    ($left:expr, $right:expr, |$x:ident, $y:ident| $made:expr) => {
        match ($left, $right) {
            ($crate::gpu::Mixed::Half($x), $crate::gpu::Mixed::Half($y)) => $made,
            (left, right) => match (left.full(), right.full()) {
                (Ok(left), Ok(right)) => {
                    let ($x, $y) = (&left, &right);
                    $made
                }
                (Err(fault), _) | (_, Err(fault)) => Err(fault),
            },
        }
    };
}
pub(crate) use {both, either};

impl Mixed {
    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        either!(self, |x| x.device())
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        either!(self, |x| x.array().shape())
    }

    /// How many rows of the last dimension there are.
    pub fn rows(&self) -> usize {
        either!(self, |x| x.array().rows())
    }

    /// Whether they lie in bf16.
    pub fn is_half(&self) -> bool {
        matches!(self, Self::Half(_))
    }

    /// The numbers in f32; those of bf16 are widened for whoever asks, and not kept.
    ///
    /// # Errors
    /// The memory is full.
    pub fn full(&self) -> Result<Placed, Fault> {
        match self {
            Self::Full(full) => Ok(full.numbers.clone()),
            Self::Half(x) => cast(x, ops::from_bf16),
        }
    }

    /// The same of numbers that nobody else wants: those in f32 are not shared by it.
    ///
    /// # Errors
    /// As [`Mixed::full`].
    pub fn into_full(self) -> Result<Placed, Fault> {
        match self {
            Self::Full(full) => Ok(full.numbers),
            Self::Half(x) => cast(&x, ops::from_bf16),
        }
    }

    /// What bf16 has of them: rounded once for all that ask.
    ///
    /// # Errors
    /// The memory is full; sequences of lengths that bf16 does not have.
    pub fn half(&self) -> Result<Placed<bf16>, Fault> {
        match self {
            Self::Half(x) => Ok(x.clone()),
            Self::Full(full) => full.half(),
        }
    }

    /// The same numbers, rounded to bf16 where they are not yet, and lying in it.
    ///
    /// # Errors
    /// As [`Mixed::half`].
    pub fn rounded(self) -> Result<Self, Fault> {
        Ok(Self::Half(self.half()?))
    }

    /// The same numbers in another shape; a copy of them where others hold them too.
    ///
    /// # Errors
    /// One of another count.
    pub fn reshaped(self, shape: &[usize]) -> Result<Self, Fault> {
        match self {
            Self::Full(full) => full.numbers.reshaped(shape).map(Self::from),
            Self::Half(x) => x.reshaped(shape).map(Self::from),
        }
    }

    /// The numbers for the host; waits until they are made.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn download(&self) -> Result<Vec<f32>, Fault> {
        match self {
            Self::Full(full) => full.numbers.download(),
            Self::Half(x) => Ok(x.device().download(x.array())?.into_iter().map(f32::from).collect()),
        }
    }
}

impl<T: Element> From<Placed<T>> for Mixed {
    fn from(placed: Placed<T>) -> Self {
        T::mixed(placed)
    }
}
