//! What products take, in the memory that their precision gives it.

use std::{ops::Range, sync::Arc};

use half::bf16;
use tl_proto::spec::Precision;

use super::{
    Array, Device, Fault, Mixed, Placed,
    ops::{self, Convolution, Element, Math, Step},
};

/// Numbers of a GPU as products take them: those of an array, also where products read them as TF32, or what bf16 has of them,
/// in half the memory. A clone shares them.
#[derive(Clone)]
pub struct Operand {
    device: Arc<Device>,
    numbers: Numbers,
}

#[derive(Clone)]
enum Numbers {
    F32(Arc<Array>),
    Tf32(Arc<Array>),
    Bf16(Arc<Array<bf16>>),
}

/// An operation on the numbers of an operand, of whichever type.
macro_rules! of_either {
    ($operand:expr, |$x:ident| $made:expr) => {
        match &$operand.numbers {
            Numbers::F32($x) | Numbers::Tf32($x) => $made,
            Numbers::Bf16($x) => $made,
        }
    };
}

/// The same on those of two, which must be of one precision.
macro_rules! of_both {
    ($left:expr, $right:expr, |$x:ident, $y:ident| $made:expr) => {
        match (&$left.numbers, &$right.numbers) {
            (Numbers::F32($x), Numbers::F32($y)) | (Numbers::Tf32($x), Numbers::Tf32($y)) => $made,
            (Numbers::Bf16($x), Numbers::Bf16($y)) => $made,
            _ => Err(Fault::shape("a product was to take numbers of two precisions")),
        }
    };
}

impl Operand {
    /// The numbers of an array, as products of a precision take them.
    ///
    /// # Errors
    /// The memory is full, or the GPU does not multiply so.
    pub fn of(x: &Mixed, precision: Precision) -> Result<Self, Fault> {
        multiplies(x.device().capability(), precision)?;
        let numbers = match precision {
            Precision::F32 => Numbers::F32(x.full()?.shared().clone()),
            Precision::Tf32 => Numbers::Tf32(x.full()?.shared().clone()),
            Precision::Bf16 => Numbers::Bf16(x.half()?.shared().clone()),
        };
        Ok(Self { device: x.device().clone(), numbers })
    }

    /// A parameter, which is a run of an array, in its shape, as products of a precision take it: `channels_last` as
    /// [`ops::channels_last`], or as it lies.
    ///
    /// # Errors
    /// As [`Operand::of`]; some that are not there, or a shape of another count.
    pub fn of_run(
        all: &Placed,
        run: Range<usize>,
        shape: &[usize],
        channels_last: bool,
        precision: Precision,
    ) -> Result<Self, Fault> {
        multiplies(all.device().capability(), precision)?;
        let numbers = match precision {
            Precision::F32 => Numbers::F32(laid(all, run, shape, channels_last)?),
            Precision::Tf32 => Numbers::Tf32(laid(all, run, shape, channels_last)?),
            Precision::Bf16 => Numbers::Bf16(laid(all, run, shape, channels_last)?),
        };
        Ok(Self { device: all.device().clone(), numbers })
    }

    /// Whether they take half the memory of what they were made of.
    pub fn is_half(&self) -> bool {
        matches!(self.numbers, Numbers::Bf16(_))
    }

    /// How products take them.
    fn math(&self) -> Math<'_> {
        Math { device: &self.device, tf32: matches!(self.numbers, Numbers::Tf32(_)) }
    }

    fn mixed<T: Element>(&self, array: Array<T>) -> Mixed {
        Placed::new(self.device.clone(), array).into()
    }

    /// As [`ops::linear`], with a bias if there is one: as [`ops::linear_biased`].
    ///
    /// # Errors
    /// Weights of another shape or type, a full memory, or cuBLAS is not there or refuses; so for all that follow.
    pub fn linear(&self, w: &Self, bias: Option<&Placed>) -> Result<Mixed, Fault> {
        let math = self.math();
        match bias {
            Some(bias) => {
                of_both!(self, w, |x, w| ops::linear_biased(math, x, w, bias.array()).map(|y| self.mixed(y)))
            }
            None => of_both!(self, w, |x, w| ops::linear(math, x, w).map(|y| self.mixed(y))),
        }
    }

    /// As [`ops::linear_added`].
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn linear_added(&self, w: &Self, bias: &Placed) -> Result<Mixed, Fault> {
        let math = self.math();
        of_both!(self, w, |x, w| ops::linear_added(math, x, w, bias.array()).map(|y| self.mixed(y)))
    }

    /// As [`ops::linear_input`].
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn linear_input(&self, w: &Self) -> Result<Mixed, Fault> {
        of_both!(self, w, |dy, w| ops::linear_input(self.math(), dy, w).map(|dx| self.mixed(dx)))
    }

    /// As [`ops::linear_weights`].
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn linear_weights(&self, x: &Self, dw: &mut Array) -> Result<(), Fault> {
        of_both!(self, x, |dy, x| ops::linear_weights(self.math(), dy, x, dw))
    }

    /// As [`ops::conv`], with a bias if there is one: as [`ops::conv_biased`].
    ///
    /// # Errors
    /// As [`Operand::linear`]; cuDNN is not there or refuses.
    pub fn conv(&self, w: &Self, bias: Option<&Placed>, how: Convolution) -> Result<Mixed, Fault> {
        let math = self.math();
        match bias {
            Some(bias) => {
                of_both!(self, w, |x, w| ops::conv_biased(math, x, w, bias.array(), how).map(|y| self.mixed(y)))
            }
            None => of_both!(self, w, |x, w| ops::conv(math, x, w, how).map(|y| self.mixed(y))),
        }
    }

    /// As [`ops::conv_input`].
    ///
    /// # Errors
    /// As [`Operand::conv`].
    pub fn conv_input(&self, w: &Self, shape: [usize; 4], how: Convolution) -> Result<Mixed, Fault> {
        of_both!(self, w, |dy, w| ops::conv_input(self.math(), dy, w, shape, how).map(|dx| self.mixed(dx)))
    }

    /// As [`ops::conv_weights`].
    ///
    /// # Errors
    /// As [`Operand::conv`].
    pub fn conv_weights(&self, x: &Self, how: Convolution, dw: &mut Array) -> Result<(), Fault> {
        of_both!(self, x, |dy, x| ops::conv_weights(self.math(), dy, x, how, dw))
    }

    /// As [`ops::add_sums`].
    ///
    /// # Errors
    /// Another number of channels.
    pub fn add_sums(&self, sums: &mut Array) -> Result<(), Fault> {
        of_either!(self, |dy| ops::add_sums(&self.device, dy, sums))
    }

    /// As [`ops::lstm_step`], with these weights.
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn lstm_step(&self, all: [&mut Array; 3], step: &Step) -> Result<(), Fault> {
        of_either!(self, |wh| ops::lstm_step(self.math(), all, wh, step))
    }

    /// As [`ops::lstm_back`], with these weights.
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn lstm_back(
        &self,
        gates: &mut Array,
        given: [&Array; 2],
        dstate: Option<&Array>,
        dmemory: &mut Array,
        step: &Step,
    ) -> Result<Option<Array>, Fault> {
        of_either!(self, |wh| ops::lstm_back(self.math(), gates, given, wh, dstate, dmemory, step))
    }
}

/// Numbers of a run, of which products take what the type has.
fn laid<T: Element>(
    all: &Placed,
    run: Range<usize>,
    shape: &[usize],
    channels_last: bool,
) -> Result<Arc<Array<T>>, Fault> {
    let (device, all) = (all.device(), all.array());
    let made = match channels_last {
        true => ops::channels_last_run::<T>(device, all, run, shape)?,
        false => T::part(device, all, run, shape)?,
    };
    Ok(Arc::new(made))
}

/// The first GPUs that multiply bf16 and TF32 have that compute capability.
const SINCE: (i32, i32) = (8, 0);

/// Refuses a precision that a GPU does not multiply.
pub(in crate::gpu) fn multiplies(capability: (i32, i32), precision: Precision) -> Result<(), Fault> {
    if precision.is_f32() || capability >= SINCE {
        return Ok(());
    }
    Err(Fault::TooOld { capability: format!("{}.{}", capability.0, capability.1), precision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_gpu_that_does_not_multiply_a_precision_is_the_users_to_know() {
        for precision in [Precision::Tf32, Precision::Bf16] {
            for capability in [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)] {
                multiplies(capability, precision).unwrap();
            }
            for (major, minor) in [(7, 5), (7, 0), (6, 1)] {
                multiplies((major, minor), Precision::F32).unwrap();
                let refused = Error::from(multiplies((major, minor), precision).unwrap_err());
                let Error::User { message, hint } = refused else { panic!("a user can mend it") };
                let said = format!("compute capability {major}.{minor} does not multiply {precision}");
                assert!(message.contains(&said), "{message}");
                assert!(hint.contains("precision"), "{hint}");
            }
        }
    }
}
