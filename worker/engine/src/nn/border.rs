//! Zeros around an image as a layer of their own, for networks in which more than a convolution sees them.

use rayon::prelude::*;

use super::{Array, Gradients, Layer, Padding, Pass, Saved, Tape, array, host};
#[cfg(feature = "cuda")]
use crate::gpu::{Mixed, either, ops};
use crate::{Error, Result};

/// Zeros before and after, the same in both directions; `[n, h, w, c]` to `[n, h', w', c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// What a window of side `k` at distance `stride` needs for `ceil(size / stride)` outputs.
    Same {
        /// Side of the window.
        k: usize,
        /// Distance between windows.
        stride: usize,
    },
    /// The first row and column are cut off, and zeros follow the last: the image moves up and left by one.
    Shift,
}

impl Border {
    /// How far the image moves, and its new size.
    fn plan(self, size: usize) -> (isize, usize) {
        match self {
            Self::Same { k, stride } => {
                let (before, outputs) = Padding::Same.plan(size, k, stride);
                (before as isize, size.max((outputs.max(1) - 1) * stride + k))
            }
            Self::Shift => (-1, size),
        }
    }
}

/// `x` moved down and right by `by`, cut or filled up with zeros to `size`.
fn moved(x: &Array, (down, right): (isize, isize), (oh, ow): (usize, usize)) -> Result<Array> {
    #[cfg(feature = "cuda")]
    if let Array::Device(x) = x {
        let by = (down as i32, right as i32);
        let y = either!(x, |x| x.made(|device, x| ops::move_image(device, x, by, (oh, ow))).map(Mixed::from));
        return Ok(y?.into());
    }
    let (n, h, w, c) = x.dims4()?;
    let input = host(x)?;
    let input = &*input;
    let mut out = vec![0.0; n * oh * ow * c];
    // Columns that are both in the old image and in the new one.
    let first = right.max(0) as usize;
    let last = (w as isize + right).clamp(0, ow as isize) as usize;
    out.par_chunks_exact_mut(ow * c).enumerate().for_each(|(row, out)| {
        let (i, y) = (row / oh, (row % oh) as isize - down);
        if (0..h as isize).contains(&y) && first < last {
            let line = &input[(i * h + y as usize) * w * c..][..w * c];
            let from = (first as isize - right) as usize;
            out[first * c..last * c].copy_from_slice(&line[from * c..(from + last - first) * c]);
        }
    });
    array(out, &[n, oh, ow, c])
}

impl Layer for Border {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (n, h, w, c) = x.dims4()?;
        let ((down, oh), (right, ow)) = (self.plan(h), self.plan(w));
        if pass.records() {
            tape.push(Saved::Shape(vec![n, h, w, c]));
        }
        moved(x, (down, right), (oh, ow))
    }

    fn backward(
        &self,
        dy: &Array,
        _: &Pass<'_>,
        tape: &mut Tape,
        _: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        let shape = tape.pop_shape()?;
        let &[_, h, w, _] = shape.as_slice() else {
            return Err(Error::Internal(format!("a border around {shape:?}")));
        };
        if !need_dx {
            return Ok(None);
        }
        moved(dy, (-self.plan(h).0, -self.plan(w).0), (h, w)).map(Some)
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("border:{self:?};"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, testing};

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let store = Builder::new(1).store;
        for border in [Border::Same { k: 3, stride: 2 }, Border::Same { k: 5, stride: 1 }, Border::Shift] {
            testing::check_gradients(&border, &store, &[2, 4, 5, 3]);
        }
    }

    #[test]
    fn zeros_are_where_keras_puts_them() {
        let store = Builder::new(1).store;
        let row = |border: Border, values: &[f32]| {
            let x = array(values.to_vec(), &[1, values.len(), 1, 1]).unwrap();
            let y = border.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
            let width = y.dims()[2];
            host(&y).unwrap().iter().skip(if width == 3 { 1 } else { 0 }).step_by(width).copied().collect::<Vec<_>>()
        };
        // Keras' correct_pad: (0, 1) for an even side, (1, 1) for an odd one; the row is one wide, so its border is (1, 1).
        let same = Border::Same { k: 3, stride: 2 };
        assert_eq!(row(same, &[1.0, 2.0]), [1.0, 2.0, 0.0]);
        assert_eq!(row(same, &[1.0, 2.0, 3.0]), [0.0, 1.0, 2.0, 3.0, 0.0]);
        let x = array(vec![1.0, 2.0, 3.0, 4.0], &[1, 2, 2, 1]).unwrap();
        let y = Border::Shift.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
        assert_eq!(host(&y).unwrap().to_vec(), [4.0, 0.0, 0.0, 0.0]);
    }
}
