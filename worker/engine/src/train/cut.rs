//! Where the outputs of a network are taken and kept, and what of them.

use candle_core::Tensor;

use super::net::{Net, rows};
use crate::{
    Result,
    cache::Packed,
    nn::{Store, tensor},
    objective::Look,
};

/// A place in front of a unit, or behind the last.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Units before it.
    pub at: usize,
    /// What is looked at of what comes out there, where that is not all.
    pub look: Option<Look>,
    /// How the numbers of that are kept.
    pub packed: Packed,
}

impl From<usize> for Cut {
    /// All that comes out there, as it is.
    fn from(at: usize) -> Self {
        Self { at, look: None, packed: Packed::default() }
    }
}

impl Cut {
    /// What is looked at of outputs `[n, …]`.
    ///
    /// # Errors
    /// Outputs that the look is not for.
    pub fn looked(&self, outputs: &Tensor) -> Result<Tensor> {
        match self.look {
            Some(look) => Ok((look.of)(outputs)?.contiguous()?),
            None => Ok(outputs.clone()),
        }
    }

    /// The same as it comes back once it was kept.
    ///
    /// # Errors
    /// See [`Packed::pack`].
    pub fn seen(&self, outputs: &Tensor) -> Result<Tensor> {
        let looked = self.looked(outputs)?;
        if self.packed.is_plain() {
            return Ok(looked);
        }
        let kept = rows(&looked)?.iter().map(|row| self.packed.round(row)).collect::<Result<Vec<_>>>()?;
        tensor(kept.concat(), looked.dims())
    }

    /// The shape of what is looked at of one sample, for that of its outputs.
    ///
    /// # Errors
    /// See [`Cut::looked`].
    pub fn shape(&self, outputs: Vec<usize>) -> Result<Vec<usize>> {
        if self.look.is_none() {
            return Ok(outputs);
        }
        let one: Vec<usize> = std::iter::once(1).chain(outputs).collect();
        Ok(self.looked(&tensor(vec![0.0; one.iter().product()], &one)?)?.dims()[1..].to_vec())
    }

    /// Words of four bytes that are kept of one sample.
    ///
    /// # Errors
    /// An input that is too small for the network.
    pub fn words(&self, net: &Net, store: &Store) -> Result<usize> {
        Ok(self.packed.words(self.shape(net.shape_at(store, self.at)?)?.iter().product()))
    }

    /// What is kept, as a part of a name.
    pub fn describe(&self) -> String {
        let look = self.look.map_or(String::new(), |look| format!(";{}", look.name));
        look + &self.packed.describe()
    }
}
