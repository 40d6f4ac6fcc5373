//! Packed rows of samples, and heads of attention apart: `[samples·heads, t, depth]`, which products take as a batch. What is
//! behind the end of a sample is zero there.

use std::{ops::Range, sync::Arc};

use super::{Element, Spans, element::of_type};
use crate::gpu::{
    Array, Device, Fault,
    launch::{fours, launch, small},
};

/// How packed rows belong to samples and columns to heads.
pub struct Heads {
    spans: Arc<Spans>,
    heads: usize,
    depth: usize,
}

impl Heads {
    /// For samples of these lengths.
    ///
    /// # Errors
    /// No sample or an empty one, no head, or a full memory.
    pub fn new(device: &Device, lengths: &[usize], heads: usize, depth: usize) -> Result<Self, Fault> {
        Self::some(device, lengths, 0..lengths.len(), (heads, depth))
    }

    /// For some samples of these lengths: packed rows are still those of all.
    ///
    /// # Errors
    /// As [`Heads::new`]; samples that are not there.
    pub fn some(
        device: &Device,
        lengths: &[usize],
        which: Range<usize>,
        (heads, depth): (usize, usize),
    ) -> Result<Self, Fault> {
        if heads * depth == 0 {
            return Err(Fault::shape(format!("{heads} heads of {depth} columns for sequences of {lengths:?}")));
        }
        Ok(Self { spans: Spans::some(device, lengths, which)?, heads, depth })
    }

    /// Rows of each sample, as the softmax takes them.
    pub fn lengths(&self) -> &Array<u32> {
        &self.spans.lengths
    }

    /// Rows that each sample has room for.
    pub fn longest(&self) -> usize {
        self.spans.longest
    }

    fn shape(&self) -> [usize; 3] {
        [self.spans.lengths.count() * self.heads, self.spans.longest, self.depth]
    }

    /// That a matrix has the packed rows, and the columns of all heads from `first` on.
    fn expect<T>(&self, packed: &Array<T>, first: usize) -> Result<(), Fault> {
        if packed.rows() != self.spans.rows || first + self.heads * self.depth > packed.width() {
            let (heads, depth) = (self.heads, self.depth);
            return Err(Fault::shape(format!("{heads} heads of {depth} columns from {first} of {:?}", packed.shape())));
        }
        Ok(())
    }
}

/// The heads of the columns from `first` on of rows of either type, as products take them.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn split_heads<F: Element, T: Element>(
    device: &Device,
    packed: &Array<F>,
    heads: &Heads,
    first: usize,
) -> Result<Array<T>, Fault> {
    heads.expect(packed, first)?;
    let name = match (F::HALF, T::HALF) {
        (false, true) => "split_heads_to_bf16",
        (true, false) => "split_heads_from_bf16",
        _ => of_type!(T, "split_heads"),
    };
    let mut y = device.fresh::<T>(&heads.shape())?;
    let n = y.count();
    launch!(
        device,
        Layout,
        name,
        fours(n),
        &mut y.data,
        &packed.data,
        &heads.spans.starts.data,
        &heads.spans.lengths.data,
        &(n as u64),
        &small(heads.heads)?,
        &small(heads.spans.longest)?,
        &small(heads.depth)?,
        &small(packed.width())?,
        &small(first)?
    );
    Ok(y)
}

/// Writes heads, as a product gives them, into the columns from `first` on of rows of the same type.
///
/// # Errors
/// As [`split_heads`].
pub fn join_heads<T: Element>(
    device: &Device,
    x: &Array<T>,
    heads: &Heads,
    packed: &mut Array<T>,
    first: usize,
) -> Result<(), Fault> {
    heads.expect(packed, first)?;
    x.expect(&heads.shape())?;
    let (n, stride) = (x.count(), small(packed.width())?);
    launch!(
        device,
        Layout,
        of_type!(T, "join_heads"),
        fours(n),
        &mut packed.data,
        &x.data,
        &heads.spans.starts.data,
        &heads.spans.lengths.data,
        &(n as u64),
        &small(heads.heads)?,
        &small(heads.spans.longest)?,
        &small(heads.depth)?,
        &stride,
        &small(first)?
    );
    Ok(())
}
