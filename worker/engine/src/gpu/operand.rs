//! What products take, in the memory that their precision gives it.

use std::sync::Arc;

use half::bf16;

use super::{
    Array, Device, Fault, Placed,
    ops::{self, Convolution, Step},
};

/// Numbers of a GPU as products take them: those of an array, or what bf16 has of them, in half the memory. A clone shares
/// them.
#[derive(Clone)]
pub struct Operand {
    device: Arc<Device>,
    numbers: Numbers,
}

#[derive(Clone)]
enum Numbers {
    F32(Arc<Array>),
    Bf16(Arc<Array<bf16>>),
}

/// An operation on the numbers of an operand, of whichever type.
macro_rules! of_either {
    ($operand:expr, |$x:ident| $made:expr) => {
        match &$operand.numbers {
            Numbers::F32($x) => $made,
            Numbers::Bf16($x) => $made,
        }
    };
}

/// The same on those of two, which must be of one type.
macro_rules! of_both {
    ($left:expr, $right:expr, |$x:ident, $y:ident| $made:expr) => {
        match (&$left.numbers, &$right.numbers) {
            (Numbers::F32($x), Numbers::F32($y)) => $made,
            (Numbers::Bf16($x), Numbers::Bf16($y)) => $made,
            _ => Err(Fault::shape("a product was to take f32 and bf16")),
        }
    };
}

impl Operand {
    /// The numbers of an array, or, if `half`, what bf16 has of them.
    ///
    /// # Errors
    /// The memory is full, or the GPU does not multiply bf16.
    pub fn of(x: &Placed, half: bool) -> Result<Self, Fault> {
        let numbers = if half {
            multiplies_bf16(x.device().capability())?;
            Numbers::Bf16(x.half()?)
        } else {
            Numbers::F32(x.shared().clone())
        };
        Ok(Self { device: x.device().clone(), numbers })
    }

    fn placed(&self, array: Array) -> Placed {
        Placed::new(self.device.clone(), array)
    }

    /// As [`ops::linear`], with a bias if there is one.
    ///
    /// # Errors
    /// Weights of another shape or type, a full memory, or cuBLAS is not there or refuses; so for all that follow.
    pub fn linear(&self, w: &Self, bias: Option<&Placed>) -> Result<Placed, Fault> {
        let device = &self.device;
        let y = match bias {
            Some(bias) => of_both!(self, w, |x, w| ops::linear_biased(device, x, w, bias.array())),
            None => of_both!(self, w, |x, w| ops::linear(device, x, w)),
        };
        y.map(|y| self.placed(y))
    }

    /// As [`ops::linear_input`].
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn linear_input(&self, w: &Self) -> Result<Placed, Fault> {
        let dx = of_both!(self, w, |dy, w| ops::linear_input(&self.device, dy, w));
        dx.map(|dx| self.placed(dx))
    }

    /// As [`ops::linear_weights`].
    ///
    /// # Errors
    /// As [`Operand::linear`].
    pub fn linear_weights(&self, x: &Self, dw: &mut Array) -> Result<(), Fault> {
        of_both!(self, x, |dy, x| ops::linear_weights(&self.device, dy, x, dw))
    }

    /// As [`ops::conv`], with a bias if there is one.
    ///
    /// # Errors
    /// As [`Operand::linear`]; cuDNN is not there or refuses.
    pub fn conv(&self, w: &Self, bias: Option<&Placed>, how: Convolution) -> Result<Placed, Fault> {
        let device = &self.device;
        let y = match bias {
            Some(bias) => of_both!(self, w, |x, w| ops::conv_biased(device, x, w, bias.array(), how)),
            None => of_both!(self, w, |x, w| ops::conv(device, x, w, how)),
        };
        y.map(|y| self.placed(y))
    }

    /// As [`ops::conv_input`].
    ///
    /// # Errors
    /// As [`Operand::conv`].
    pub fn conv_input(&self, w: &Self, shape: [usize; 4], how: Convolution) -> Result<Placed, Fault> {
        let dx = of_both!(self, w, |dy, w| ops::conv_input(&self.device, dy, w, shape, how));
        dx.map(|dx| self.placed(dx))
    }

    /// As [`ops::conv_weights`].
    ///
    /// # Errors
    /// As [`Operand::conv`].
    pub fn conv_weights(&self, x: &Self, how: Convolution, dw: &mut Array) -> Result<(), Fault> {
        of_both!(self, x, |dy, x| ops::conv_weights(&self.device, dy, x, how, dw))
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
        of_either!(self, |wh| ops::lstm_step(&self.device, all, wh, step))
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
        of_either!(self, |wh| ops::lstm_back(&self.device, gates, given, wh, dstate, dmemory, step))
    }
}

/// The first GPUs that multiply bf16 have that compute capability.
const SINCE: (i32, i32) = (8, 0);

/// Refuses one that does not.
pub(in crate::gpu) fn multiplies_bf16(capability: (i32, i32)) -> Result<(), Fault> {
    if capability >= SINCE {
        return Ok(());
    }
    Err(Fault::NoBf16 { capability: format!("{}.{}", capability.0, capability.1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_gpu_that_does_not_multiply_bf16_is_the_users_to_know() {
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)] {
            multiplies_bf16(capability).unwrap();
        }
        for (major, minor) in [(7, 5), (7, 0), (6, 1)] {
            let refused = Error::from(multiplies_bf16((major, minor)).unwrap_err());
            let Error::User { message, hint } = refused else { panic!("a user can mend it") };
            assert!(message.contains(&format!("compute capability {major}.{minor}")), "{message}");
            assert!(hint.contains("precision"), "{hint}");
        }
    }
}
