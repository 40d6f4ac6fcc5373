//! Which rows of a grain there are: of a pair that lacks a half, one of two networks sees nothing. What it would have made of
//! it is a row of zeros, which the loss masks and into which nothing flows back.

use candle_core::Tensor;

use crate::{
    Result,
    backbone::Unit,
    nn::{Gradients, host, tensor},
};

/// One side of some draws: what is there of them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Side {
    /// Samples.
    pub indices: Vec<usize>,
    /// The turn of each, which says in what view it is seen.
    pub turns: Vec<u64>,
    /// Which draws they belong to, ascending.
    places: Vec<usize>,
    /// How many draws there are.
    draws: usize,
}

impl Side {
    /// Of the sample of each draw, if it has one, and its turn.
    pub fn new(drawn: impl Iterator<Item = (Option<usize>, u64)>) -> Self {
        let mut side = Self::default();
        for (place, (sample, turn)) in drawn.enumerate() {
            if let Some(sample) = sample {
                side.indices.push(sample);
                side.turns.push(turn);
                side.places.push(place);
            }
            side.draws += 1;
        }
        side
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn is_whole(&self) -> bool {
        self.places.len() == self.draws
    }

    /// Of what belongs to each draw, that of those that are there.
    pub fn of<T: Copy>(&self, all: &[T]) -> Vec<T> {
        self.places.iter().map(|place| all[*place]).collect()
    }

    /// Rows of what is there, with zeros between them for what is not: `[draws, width]`.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn spread(&self, rows: Tensor) -> Result<Tensor> {
        if self.is_whole() {
            return Ok(rows);
        }
        let width = rows.dim(1)?;
        let mut out = vec![0.0; self.draws * width];
        for (row, place) in host(&rows)?.chunks_exact(width.max(1)).zip(&self.places) {
            out[place * width..(place + 1) * width].copy_from_slice(row);
        }
        tensor(out, &[self.draws, width])
    }

    /// The way back: the rows of what is there.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn gather(&self, all: &Tensor) -> Result<Tensor> {
        if self.is_whole() {
            return Ok(all.clone());
        }
        let (width, values) = (all.dim(1)?, host(all)?);
        let rows = self.places.iter().flat_map(|place| values[place * width..(place + 1) * width].iter().copied());
        tensor(rows.collect(), &[self.places.len(), width])
    }
}

/// What is there of each draw, `[draws, 2]`: 1 for a sample, 1 for its other half.
///
/// # Errors
/// None that can be caused from outside.
pub(super) fn present(sides: [&Side; 2]) -> Result<Tensor> {
    let draws = sides[0].draws;
    let mut out = vec![0.0; 2 * draws];
    for (which, side) in sides.into_iter().enumerate() {
        side.places.iter().for_each(|place| out[2 * place + which] = 1.0);
    }
    tensor(out, &[draws, 2])
}

/// Rows of zeros, in the place of what a network would give that has nothing to see.
///
/// # Errors
/// None that can be caused from outside.
pub(super) fn nothing(draws: usize, width: usize) -> Result<Tensor> {
    tensor(vec![0.0; draws * width], &[draws, width])
}

/// Has it said of units that saw nothing that backward went as far as it could.
pub(super) fn passed_over(units: &[Unit], grads: &mut Gradients<'_>) {
    units.iter().flat_map(Unit::params).for_each(|id| grads.touched[id.0] = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_find_their_places_and_come_back() {
        let side = Side::new([Some(4), None, Some(2), None].into_iter().zip(10..));
        assert_eq!((&side.indices[..], &side.turns[..]), (&[4, 2][..], &[10, 12][..]));
        assert_eq!(side.of(&[7, 8, 9, 6]), [7, 9]);
        let rows = tensor(vec![1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let spread = side.spread(rows.clone()).unwrap();
        assert_eq!(host(&spread).unwrap().to_vec(), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
        assert_eq!(host(&side.gather(&spread).unwrap()).unwrap().to_vec(), [1.0, 2.0, 3.0, 4.0]);
        let other = Side::new([None, Some(0), Some(1), None].into_iter().zip(0..));
        let there = present([&side, &other]).unwrap();
        assert_eq!((there.dims(), host(&there).unwrap().to_vec()), (&[4, 2][..], vec![1., 0., 0., 1., 1., 1., 0., 0.]));
        let whole = Side::new([Some(1), Some(1)].into_iter().zip(0..));
        assert!(whole.is_whole() && !side.is_whole() && !side.is_empty());
        assert_eq!(host(&whole.spread(rows).unwrap()).unwrap().len(), 4);
        assert!(Side::new(std::iter::once((None, 0))).is_empty());
    }
}
